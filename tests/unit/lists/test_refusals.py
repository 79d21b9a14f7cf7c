"""What does not work on lists is refused before a model is loaded, and says what does."""

from __future__ import annotations

import pytest
from datasets import Dataset, IterableDataset

from tests.support import runs, tiny
from tests.support.lists import lists
from trl_dpo_ext.errors import InputError

RANKED = lists().map(
    lambda row: {"ranks": [int(1 + max(row["scores"]) - s) for s in row["scores"]]}, remove_columns=["scores"]
)
REFUSED = {
    "trl": ({"loss_type": "trl:sigmoid"}, "TRL's code reads pairs"),
    "batch": ({"loss_type": "aot"}, "it compares the pairs of a batch"),
    "state": ({"loss_type": "bco_pair_delta"}, "running state|compares the pairs"),
    "tokens of the batch": ({"loss_type": ["sigmoid", "sft"]}, "it averages over the tokens"),
    "column of pairs": ({"loss_type": "sppo"}, "cannot train on lists"),
    "sizes of ranks": ({"loss_type": "margin", "train_dataset": RANKED}, "it needs scores, and the data has only ranks"),
    "bounds": ({"loss_type": "lipo:scale=1.0"}, "scores must be <= 1 .*; wrong in 4 of 4 rows"),
    "weighting": ({"use_weighting": True}, "use_weighting=True cannot be used with lists yet"),
    "ld_alpha": ({"ld_alpha": 0.5}, "ld_alpha=0.5 cannot be used with lists yet"),
    "metrics": ({"compute_metrics": len}, "compute_metrics cannot be used with lists yet"),
    "unused pairs": ({"loss_type": "pl", "list_pairs": "best"}, "no chosen loss reads pairs"),
    "pairs": ({"train_dataset": tiny.preferences(), "list_pairs": "best"}, "has no effect: the data are pairs"),
    "stream": ({"train_dataset": lists().to_iterable_dataset()}, "train_dataset is a stream"),
    "choice": ({"list_pairs": "worst"}, "list_pairs must be one of"),
    "reduction": ({"list_reduction": "max"}, "list_reduction must be mean or sum"),
    "limit": ({"max_completions": 1}, "max_completions must be 2 or more"),
    "empty split": ({"eval_dataset": Dataset.from_list([{"prompt": "p", "completions": ["a"], "scores": [1.0]}])},
                    "eval_dataset: no list is left"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, settings, words) -> None:
    # No weight is there to be loaded: a model that loads fails otherwise.
    model = tiny.saved_model(str(tmp_path / "model"))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=words):
        runs.trainer(tmp_path, **{"train_dataset": lists(), "model": model, **settings})


def test_a_trainer_of_pairs_refuses_lists_later(tmp_path) -> None:
    run = runs.trainer(tmp_path)
    with pytest.raises(InputError, match="eval_dataset holds lists, and this trainer was created with pairs"):
        run.evaluate(lists())


def test_a_trainer_of_lists_does_not_predict(tmp_path) -> None:
    run = runs.trainer(tmp_path, train_dataset=lists())
    with pytest.raises(InputError, match="this trainer trains on lists"):
        run.predict(lists())
    assert run.evaluate(tiny.preferences(3))["eval_rewards/top1_accuracy"] >= 0
    assert not isinstance(run.train_dataset, IterableDataset)
