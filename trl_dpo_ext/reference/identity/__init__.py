"""Identity of the reference model that a store belongs to."""
