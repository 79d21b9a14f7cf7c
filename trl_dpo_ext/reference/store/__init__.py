"""Reference log-probs on disk. No trainer, no model."""
