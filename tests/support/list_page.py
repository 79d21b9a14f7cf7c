"""A page of ranked completions with texts that try to leave their place."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from tests.support.scored import side
from tests.support.scored_page import NASTY, RIGHT_TO_LEFT
from trl_dpo_ext.data.lists.reading import read_completions
from trl_dpo_ext.scoring.page import list_page
from trl_dpo_ext.scoring.ranking.groups import GroupScores, ranking_summary
from trl_dpo_ext.scoring.summary import SummaryOptions, heading

SPECIAL = 7
ARGUMENTS = {"policy": f"out {NASTY}", "reference": "its base with the adapter off", "dataset": "lists.jsonl"}


def rows_of(number: int) -> list[dict[str, Any]]:
    """Prompts with two to five completions and their scores; ranks in place of scores in every fourth; none in some."""
    rows = []
    for at in range(number):
        many = 2 + at % 4
        scores: list[float] | None = [float((at * 7 + place * 3) % 5) for place in range(many)]
        ranks = [many - place for place in range(many)] if at % 4 == 1 else None
        if ranks or at % 10 == 2:
            scores = None
        texts = [f"answer {place} of {at}" for place in range(many)]
        if at == SPECIAL:
            texts[:2] = [NASTY, RIGHT_TO_LEFT]
        subset = f"even {NASTY}" if at % 2 == 0 else "odd"
        rows.append(
            {"prompt": f"prompt {at}", "completions": texts, "scores": scores, "ranks": ranks, "subset": subset}
        )
    return rows


def scored_lists(rows: list[dict[str, Any]]) -> tuple[GroupScores, Any]:
    """Random rewards of rows; the first completion of the fourth row has none."""
    read = read_completions(Dataset.from_list(rows))
    total = len(read.texts)
    rewards = np.random.default_rng(0).normal(0, 2, total).round(2)
    if len(rows) > 3:
        rewards[read.groups.bounds[3]] = np.nan
    completions = side([0.0] * total, [0.0] * total, [3 + at % 9 for at in range(total)])
    return GroupScores(read.groups, completions, rewards, Dataset.from_list(rows)), read


def made_list_page(number: int, most: int = 2000, rows: list[dict[str, Any]] | None = None) -> str:
    """A page of random rewards."""
    found, read = scored_lists(rows_of(number) if rows is None else rows)
    column = "subset" if "subset" in found.columns.column_names else None
    data = {
        **heading(SummaryOptions(subset_column=column), 0.1, ARGUMENTS),
        "rows": {"loaded": len(found.columns)},
        "ranking": ranking_summary(found),
        "rewardbench_2": None,
        "notes": ["Weights of 4 bits."],
    }
    return list_page(data, found, read, most)
