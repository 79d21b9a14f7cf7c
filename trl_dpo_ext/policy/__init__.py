"""Which model a run trains."""
