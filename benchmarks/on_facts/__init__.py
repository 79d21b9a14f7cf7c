"""Lists of right and wrong, short and padded answers to the demo's questions: a start, runs on it, and a report."""
