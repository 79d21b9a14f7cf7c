"""RewardBench's scores of the demo's model on its held-out pairs, as RewardBench's own code gave them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from demo.model import find_gguf, load_model, load_tokenizer
from tests.support import scoring
from tests.support.tolerances import rounding
from tests.unit.scoring import rewardbench_cases as cases
from tests.unit.scoring.execute_rewardbench import DEMO_VECTORS
from trl_dpo_ext import score_preferences
from trl_dpo_ext.scoring.measures import measure

pytestmark = pytest.mark.model
KINDS: dict[str, Any] = {"reference": None, "avg": "mean", "sum": "sum", "norm": "norm"}


def test_the_scores_of_the_demos_pairs_are_those_of_rewardbench(tmp_path: Any) -> None:
    executed = json.loads(DEMO_VECTORS.read_text(encoding="utf-8"))["scores"]
    file = find_gguf()
    found = score_preferences(
        cases.with_adapter(load_model(file)),
        Dataset.from_list(cases.demo_rows()),
        load_tokenizer(file),
        scoring.config(tmp_path),
        protocol="rewardbench",
    )
    assert found.pairs.status.tolist() == ["ok"] * 65
    largest = np.abs(executed["sum"]["rejected"]).max()
    for kind, free in KINDS.items():
        ours = measure(found.pairs, reference_free=free)
        theirs = np.array([executed[kind][side] for side in ("chosen", "rejected")])
        np.testing.assert_allclose(
            [ours.reward_chosen, ours.reward_rejected], theirs, rtol=0, atol=rounding(2 * largest)
        )
        assert ((ours.margin > 0) == (theirs[0] > theirs[1])).all()
    assert 0.2 < found.data["accuracy"]["accuracy"] < 1  # neither all right nor all wrong
