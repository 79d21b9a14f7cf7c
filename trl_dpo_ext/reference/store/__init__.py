"""Reference log-probs on disk; imports no trainer, no model and no torch."""
