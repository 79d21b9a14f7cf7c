"""The reference pass: what to compute, in which batches, and how it is read back."""
