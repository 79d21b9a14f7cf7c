"""What preference data becomes when it is tokenized and truncated, what is wrong with it, and how that is shown."""
