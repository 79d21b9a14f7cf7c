"""The forward pass: a prompt and its completions in one row, so that the prompt is computed once."""
