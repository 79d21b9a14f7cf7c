"""Summarizes and compares runs from their folders."""
