"""Which model the reference is, and how it is loaded."""
