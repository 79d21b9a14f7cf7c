"""Runs that would train something other than what was meant: each is made right, or stopped before the first step."""
