"""Results of other commands beside a run, in a few facts."""

from __future__ import annotations

from trl_dpo_ext.reports.documents import facts_of

RANKED = {
    "kind": "trl_dpo_ext.score",
    "arguments": {"policy": "out", "reference": None, "dataset": "k.jsonl", "split": "test"},
    "ranking": {
        "prompts": 10, "completions": 40, "compared": 9,
        "top1": {"accuracy": 0.4, "interval": [0.2, 0.7], "n": 9}, "pairs": {"accuracy": 0.475, "n": 40},
    },
}  # fmt: skip


def test_a_ranking_has_its_agreement() -> None:
    assert facts_of(RANKED) == {
        "policy": "out",
        "dataset": "k.jsonl",
        "split": "test",
        "completions": "40 of 10 prompts",
        "best completion": "40.0 % (20.0-70.0) right of 9 prompts",
        "ordered pairs": "47.5 % of 40",
    }


def test_a_ranking_without_given_scores_has_its_counts() -> None:
    found = facts_of(RANKED | {"ranking": RANKED["ranking"] | {"compared": 0}})
    assert found["completions"] == "40 of 10 prompts"
    assert "ordered pairs" not in found
