"""A run in which no weight would change is stopped."""

from __future__ import annotations

from .listing import Kind

nothing_trains = Kind("Nothing trains")
