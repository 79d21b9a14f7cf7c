"""Memory per GPU, expected initial loss and known pitfalls of a run, computed before anything is loaded."""
