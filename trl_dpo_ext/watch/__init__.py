"""Watching a run: samples on fixed prompts, drift, alarms that warn or stop."""
