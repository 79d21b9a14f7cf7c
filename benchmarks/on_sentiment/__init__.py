"""The controlled sentiment task: text, scorer, language model, preferences, runs, and what is reported of them."""
