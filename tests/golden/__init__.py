"""Golden values: an independent oracle, published numbers it must reproduce, and the cases it writes for the tests."""
