"""docs/guides/score.md describes RewardBench's protocol and rankings as they are."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.support.scored import side
from trl_dpo_ext.data.lists import layouts
from trl_dpo_ext.data.lists.groups import Groups
from trl_dpo_ext.scoring.ranking.groups import GroupScores, ranking_columns, ranking_summary
from trl_dpo_ext.scoring.rewardbench import tokens

TEXT = (Path(__file__).parents[2] / "docs" / "guides" / "score.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    return TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]


def scored(in_lists: bool) -> GroupScores:
    rewards = np.array([1.0, 2.0])
    groups = Groups(np.array([0, 2]), rewards, np.arange(2), in_lists)
    return GroupScores(groups, side([1.0, 2.0], [0.0, 0.0], [1, 1]), rewards, None)


def test_the_lengths_of_the_cut_are_named() -> None:
    named = {
        int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?= tokens| of the)", section("RewardBench"))
    }
    assert named == {tokens.MAX_LENGTH, tokens.PROMPT_KEPT, tokens.MAX_LENGTH - tokens.PROMPT_KEPT}


@pytest.mark.parametrize("in_lists", [True, False])
def test_every_column_of_a_ranking_is_described(in_lists: bool) -> None:
    assert {*ranking_columns(scored(in_lists))} <= {*re.findall(r"`(\w+)`", section("Several completions of a prompt"))}


def test_every_named_statistic_of_a_ranking_is_in_the_json_object() -> None:
    table = section("Several completions of a prompt").split("| name |")[1]
    assert {*re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)} <= {*ranking_summary(scored(True))}


def test_every_name_of_given_scores_is_described() -> None:
    named = {*re.findall(r"`(\w+)`", section("Several completions of a prompt").split("| name |")[0])}
    assert {*layouts.LISTS, *layouts.SINGLE} <= named
