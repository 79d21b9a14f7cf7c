"""Lists are inspected by their best and their worst completion, and what is left out of them is said."""

from __future__ import annotations

from datasets import concatenate_datasets

from tests.support import runs, tiny
from tests.support.lists import lists
from trl_dpo_ext import inspect_preferences


def test_lists_are_shown_by_their_ends(tmp_path) -> None:
    data = concatenate_datasets([lists((4, 3, 2, 5)), lists((1,))])
    inspected = inspect_preferences(data, tiny.tokenizer(), runs.config(tmp_path))
    found = {finding.name: finding for finding in inspected.found["train"]}
    assert found["lists_as_pairs"].count == 4
    assert (found["lists_left_out"].count, found["lists_left_out"].rows) == (1, [4])
    token = tiny.tokenizer()
    (row,) = inspected.rows([1])
    assert [token.decode(row[side]) for side in ("chosen_ids", "rejected_ids")] == ["yes no <eos>", "five <eos>"]
    assert row["columns"]["list_scores"] == [2.0, 0.0]
