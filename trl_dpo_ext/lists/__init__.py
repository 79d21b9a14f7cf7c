"""Trains on lists: what losses read of a batch, and what is logged."""
