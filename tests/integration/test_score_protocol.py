"""RewardBench's scores and rankings of any number of completions, through the passes of `score`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.support import scoring, tiny
from tests.support.tolerances import rounding
from tests.unit.scoring import rewardbench_cases as cases
from tests.unit.scoring.execute_rewardbench import VECTORS
from trl_dpo_ext import rank_completions, score_preferences
from trl_dpo_ext.errors import InputError

EXECUTED = json.loads(VECTORS.read_text(encoding="utf-8"))
KINDS = {"reference": None, "avg": "mean", "sum": "sum", "norm": "norm"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The models on which RewardBench's code was executed."""
    folders = {}
    for name, factor in cases.FACTORS.items():
        folders[name] = str(tmp_path_factory.mktemp(name))
        cases.tiny_model(factor).save_pretrained(folders[name])
        tiny.tokenizer().save_pretrained(folders[name])
    return folders


def _conversations() -> list[dict[str, Any]]:
    """The rows on which RewardBench's code was executed, with their prompts as messages."""
    prompts = [row["prompt"] for row in cases.scored_rows()]
    messages = [each if isinstance(each, list) else [{"role": "user", "content": each}] for each in prompts]
    return [{**row, "prompt": prompt} for row, prompt in zip(cases.scored_rows(), messages, strict=True)]


class TestRewardBench:
    @pytest.mark.parametrize("kind", KINDS)
    def test_scores_are_those_of_rewardbench(self, tmp_path: Any, models: dict[str, str], kind: str) -> None:
        found = score_preferences(
            models["policy"],
            Dataset.from_list(_conversations()),
            args=scoring.config(tmp_path, beta=0.5, max_length=6),
            reference=models["reference"],
            reference_free=KINDS[kind],  # type: ignore[arg-type]
            protocol="rewardbench",
        )
        rewards = np.stack([found.measures.reward_chosen, found.measures.reward_rejected])
        theirs = np.array([EXECUTED["scores"][kind][side] for side in ("chosen", "rejected")])
        np.testing.assert_allclose(rewards, theirs, rtol=0, atol=rounding(80.0))
        assert found.data["accuracy"]["strict"] == (theirs[0] > theirs[1]).mean()
        assert found.data["arguments"]["beta"] == 1.0
        assert found.data["arguments"]["protocol"] == "rewardbench"

    def test_a_tie_is_wrong_in_sections(self, tmp_path: Any, models: dict[str, str]) -> None:
        row = {"prompt": "say yes", "chosen": "yes", "rejected": "yes", "subset": "hep-go"}
        found = score_preferences(
            models["policy"], Dataset.from_list([row]), args=scoring.config(tmp_path), protocol="rewardbench",
            reference=models["reference"],
        )  # fmt: skip
        assert found.pairs.status.tolist() == ["identical"]
        assert found.data["rewardbench"]["sections"]["Reasoning"]["score"] == 0.0
        assert (found.data["accuracy"]["accuracy"], found.data["rewardbench"]["subsets"]["hep-go"]["correct"]) == (
            0.5,
            0,
        )

    def test_long_rows_are_cut_whatever_max_length_is(self, tmp_path: Any, models: dict[str, str]) -> None:
        rows = [
            {"prompt": "say", "chosen": "yes " * 2100, "rejected": "no"},
            {"prompt": "say", "chosen": "yes", "rejected": "no"},
        ]
        found = score_preferences(
            models["policy"], Dataset.from_list(rows), args=scoring.config(tmp_path, max_length=8),
            protocol="rewardbench", reference_free="mean",
        )  # fmt: skip
        assert found.pairs.status.tolist() == ["cut", "ok"]
        assert found.pairs.chosen.tokens.tolist() == [1920, 4]
        assert found.data["arguments"]["max_length"] == 2048

    def test_columns_have_the_names_that_are_given_for_them(self, tmp_path: Any, models: dict[str, str]) -> None:
        rows = [{"question": "say yes", "one": "yes", "other": "no", "better": "b"},
                {"question": "say yes", "one": "yes", "other": "no", "better": "tie"}]  # fmt: skip
        columns = {"prompt": "question", "a": "one", "b": "other", "winner": "better", "winner_is_b": "b"}
        args = scoring.config(tmp_path, dataset_columns=columns)
        with pytest.warns(UserWarning, match="are ties"):
            found = score_preferences(
                models["policy"], Dataset.from_list(rows), args=args, protocol="rewardbench", reference_free="sum"
            ).pairs
        assert found.status.tolist() == ["ok", "dropped"]
        swapped = {"prompt": "say yes", "chosen": "no", "rejected": "yes"}
        plain = score_preferences(
            models["policy"], Dataset.from_list([swapped]), args=scoring.config(tmp_path), protocol="rewardbench",
            reference_free="sum",
        ).pairs  # fmt: skip
        assert found.chosen.policy[0] == pytest.approx(plain.chosen.policy[0], abs=1e-4)

    def test_several_right_answers_need_a_ranking(self, tmp_path: Any, models: dict[str, str]) -> None:
        row = {"prompt": "say", "chosen": ["yes"], "rejected": ["no", "no no"], "num_correct": 1}
        with pytest.raises(InputError, match="more than two answers, first in row 0"):
            score_preferences(
                models["policy"], Dataset.from_list([row]), args=scoring.config(tmp_path), protocol="rewardbench",
                reference_free="sum",
            )  # fmt: skip


class TestRanking:
    prompts = ("what is the capital of france", "say yes")
    texts = ([" paris", " well let me think", " no"], [" yes", " no no no"])

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"prompt": p, "completions": c, "scores": [3.0, 2.0, 1.0][: len(c)]}
            for p, c in zip(self.prompts, self.texts, strict=True)
        ]

    def _expected(self, models: dict[str, str], beta: float) -> list[list[float]]:
        loaded = {name: cases.tiny_model(factor) for name, factor in cases.FACTORS.items()}
        return [
            [
                beta
                * (scoring.by_hand(loaded["policy"], prompt, text) - scoring.by_hand(loaded["reference"], prompt, text))
                for text in texts
            ]
            for prompt, texts in zip(self.prompts, self.texts, strict=True)
        ]

    def test_rewards_are_those_of_each_completion_alone(self, tmp_path: Any, models: dict[str, str]) -> None:
        found = rank_completions(
            models["policy"],
            Dataset.from_list(self._rows()),
            args=scoring.config(tmp_path),
            reference=models["reference"],
        )
        expected = self._expected(models, 0.5)
        for ours, theirs, order in zip(
            found.columns["dpo_rewards"].to_pylist(), expected, found.columns["dpo_order"].to_pylist(), strict=True
        ):
            assert ours == pytest.approx(theirs, abs=scoring.ATOL)
            assert order == np.argsort(-np.array(theirs)).tolist()
        top = [float(np.argmax(rewards) == 0) for rewards in expected]
        assert found.data["ranking"]["top1"]["accuracy"] == np.mean(top)
        assert json.loads(found.json())["ranking"]["completions"] == 5
        # The prompt is fed once for all of its completions, by each model.
        fed = sum(
            len(p.split()) + sum(len(t.split()) for t in ts) for p, ts in zip(self.prompts, self.texts, strict=True)
        )
        for stats in found.data["arguments"]["passes"].values():
            assert (stats["computed"], stats["positions"]) == (5, fed)

    def test_every_layout_of_the_same_completions_has_the_same_rewards(
        self, tmp_path: Any, models: dict[str, str]
    ) -> None:
        apart = [
            {"prompt": p, "completion": text}
            for p, texts in zip(self.prompts, self.texts, strict=True)
            for text in texts
        ]
        messages = [
            {
                "prompt": [{"role": "user", "content": p}],
                "completions": [
                    {"completion": [{"role": "assistant", "content": t}], "rank": at} for at, t in enumerate(ts)
                ],
            }
            for p, ts in zip(self.prompts, self.texts, strict=True)
        ]
        lists = [
            {"prompt": p, "chosen": ts[:1], "rejected": ts[1:]} for p, ts in zip(self.prompts, self.texts, strict=True)
        ]
        settings = {"args": scoring.config(tmp_path), "reference": models["reference"]}
        plain, rows, right = (
            rank_completions(models["policy"], Dataset.from_list(each), **settings)
            for each in (self._rows(), [apart[at] for at in (3, 0, 1, 4, 2)], lists)
        )
        flat = [reward for rewards in plain.columns["dpo_rewards"].to_pylist() for reward in rewards]
        assert rows.columns["dpo_reward"].to_pylist() == pytest.approx(
            [flat[at] for at in (3, 0, 1, 4, 2)], abs=scoring.ATOL
        )
        assert right.groups.rewards == pytest.approx(flat, abs=scoring.ATOL)
        templated = rank_completions(models["policy"], Dataset.from_list(messages), **settings)
        assert templated.groups.completions.tokens.tolist() == [2, 5, 2, 2, 4]

    def test_rewardbenchs_ids_are_ranked_as_its_pairs_are(self, tmp_path: Any, models: dict[str, str]) -> None:
        rows = [{"prompt": row["prompt"], "chosen": [row["chosen"]], "rejected": [row["rejected"], "no"]}
                for row in cases.scored_rows() if isinstance(row["prompt"], str)]  # fmt: skip
        found = rank_completions(
            models["policy"], Dataset.from_list(rows), args=scoring.config(tmp_path), protocol="rewardbench",
            reference=models["reference"],
        )  # fmt: skip
        texts = [at for at, row in enumerate(cases.scored_rows()) if isinstance(row["prompt"], str)]
        theirs = EXECUTED["scores"]["reference"]
        for at, rewards in zip(texts, found.columns["dpo_rewards"].to_pylist(), strict=True):
            assert rewards[:2] == pytest.approx([theirs["chosen"][at], theirs["rejected"][at]], abs=rounding(80.0))

    def test_rewardbench_2_is_told_from_its_subsets(self, tmp_path: Any, models: dict[str, str]) -> None:
        def row(kind: str, subset: str, chosen: list[str]) -> dict[str, Any]:
            return {"id": kind, "subset": subset, "prompt": "say yes", "chosen": chosen, "rejected": ["no", "no no"]}

        rows = [row("0", "Focus", ["yes"]), row("ref:3", "Ties", ["yes"]), row("tied:3", "Ties", ["yes", "yes please"])]
        settings = {"args": scoring.config(tmp_path), "reference_free": "mean", "protocol": "rewardbench"}
        found = rank_completions(models["policy"], Dataset.from_list(rows), **settings)
        rewards, _ = zip(*found.groups, strict=True)
        table = found.data["rewardbench_2"]["subsets"]
        assert table["Focus"]["accuracy"] == float(rewards[0][0] == rewards[0].max())
        assert table["Ties"]["ref_accuracy"] == float(rewards[1][0] > rewards[1][1:].max())
        rows[1]["id"] = "3"
        with pytest.raises(InputError, match="neither 'ref:N' nor 'tied:N'"):
            rank_completions(torch.nn.Linear(1, 1), Dataset.from_list(rows), tiny.tokenizer(), **settings)

    def test_no_completions_are_refused_before_a_model_is_loaded(self, tmp_path: Any) -> None:
        empty = Dataset.from_dict({"prompt": ["a"], "completions": [[]]})
        for protocol in ("train", "rewardbench"):
            with pytest.raises(InputError, match="no completions"):
                rank_completions(
                    torch.nn.Linear(1, 1), empty, tiny.tokenizer(), scoring.config(tmp_path), reference_free="sum",
                    protocol=protocol,
                )  # fmt: skip
