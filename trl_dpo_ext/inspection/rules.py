"""Apply every rule to a measured dataset."""

from __future__ import annotations

from ..data.findings import Finding, gravest_first
from . import pair_rules, token_rules, truncation_rules  # noqa: F401  (importing them declares the rules)
from .pair_table import PairTable
from .rule import RULES


def find(table: PairTable) -> list[Finding]:
    """Apply every rule; the gravest findings come first."""
    return gravest_first(finding for each in RULES for finding in each(table))
