"""Checks of models, tokenizers and the machine before anything is loaded."""
