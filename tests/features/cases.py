"""The features of TRL's trainer that this package could meet: one row of docs/features.md each."""

from __future__ import annotations

from .cases_data import DATA
from .cases_models import MODELS
from .cases_training import TRAINING
from .feature import WAYS, Feature

GROUPS: dict[str, list[Feature]] = {"Training": TRAINING, "Models and adapters": MODELS, "Data and evaluation": DATA}
FEATURES = [feature for group in GROUPS.values() for feature in group]


def as_markdown() -> str:
    """One table for each group."""
    return "\n\n".join("\n".join([f"## {title}", "", *_table(group)]) for title, group in GROUPS.items())


def _table(features: list[Feature]) -> list[str]:
    head = ["feature", "plain", "`share_prompt`", "store", "`padding_free`"]
    rows = [[feature.name, *(feature.outcome(way).cell for way in WAYS)] for feature in features]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
