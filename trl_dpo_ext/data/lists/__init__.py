"""Lists: several completions of one prompt, read from rows and made ready for training."""
