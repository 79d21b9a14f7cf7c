"""Preference datasets before they reach TRL: loading, validation, columns, lengths."""
