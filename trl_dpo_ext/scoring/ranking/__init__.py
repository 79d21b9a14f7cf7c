"""Rewards of several completions of a prompt, their order, and how it agrees with ranks or scores of the data."""
