"""The `trl-dpo-ext` command line: argument parsing and printing."""
