"""Which reference a store belongs to."""
