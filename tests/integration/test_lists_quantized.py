"""Lists against a quantized reference, live and stored: the expanded pairs' numbers, accumulated and resumed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import runs, tiny
from tests.support.lists import expanded, lists, loss_and_gradients
from tests.support.references import logits
from tests.support.tolerances import rounding
from trl_dpo_ext import load_reference
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.correction.layers import correction_of

pytestmark = pytest.mark.slow

STORED: dict[str, Any] = {"precompute_ref_log_probs": True}
FORWARDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padding_free": {"padding_free": True},
    "share_prompt": {"share_prompt": True},
    "stored, padding_free": {**STORED, "padding_free": True},
}
CASES = [("nf4", name) for name in FORWARDS] + [("int8", "plain"), ("int8", "stored, padding_free")]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that is not the policy, so that rewards are far from 0."""
    return tiny.saved_model(str(tmp_path_factory.mktemp("other")), seed=1)


@pytest.fixture(scope="module")
def make(other: str) -> Callable[..., Any]:
    """Makes trainers whose reference is that model, quantized."""

    def trainer(folder: Path, **settings: Any) -> Any:
        if settings.get("precompute_ref_log_probs"):
            settings = {"ref_store": str(folder / "store"), **settings}
        settings = {"ref_quantization": "nf4", "ref_drift_num_pairs": 0, "beta": 1.0, **settings}
        return runs.trainer(folder / "out", ref_model_name_or_path=other, **settings)

    return trainer


@pytest.fixture(scope="module")
def of_pairs(make: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Loss and gradients of the expanded pairs, fed one by one by the plain forward."""

    @cache
    def found(kind: str) -> Any:
        data = {"train_dataset": expanded(lists()), "weight_column": "weight", "ref_quantization": kind}
        return loss_and_gradients(make(tmp_path_factory.mktemp(kind), **data))

    return found


@pytest.mark.parametrize(("kind", "forward"), CASES)
def test_lists_are_their_expanded_pairs(tmp_path, make, of_pairs, kind: str, forward: str) -> None:
    run = make(tmp_path, train_dataset=lists(), ref_quantization=kind, **FORWARDS[forward])
    loss, gradients = loss_and_gradients(run)
    pair_loss, pair_gradients = of_pairs(kind)
    assert abs(loss - 0.6931) > 0.1
    assert loss == pytest.approx(pair_loss, abs=rounding(60))
    largest = max(float(each.abs().max()) for each in pair_gradients.values())
    assert largest > 0.1
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, pair_gradients[name], rtol=0, atol=rounding(8 * largest))


def test_accumulated_batches_train_what_one_batch_trains(tmp_path, make) -> None:
    """On drawn pairs, too: those of a list do not depend on its batch."""
    start = tiny.model().state_dict()

    def weights(per_device: int) -> dict[str, torch.Tensor]:
        sizes = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": 4 // per_device}
        settings = {"max_steps": 2, "list_pairs": "2", "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
        run = make(tmp_path, train_dataset=lists((4, 3, 2, 5, 6, 7, 4, 2)), padding_free=True, **settings, **sizes)
        run.train()
        return runs.weights(run)

    whole, parts = weights(4), weights(1)
    for name, tensor in parts.items():
        assert not torch.equal(tensor, start[name])
        torch.testing.assert_close(tensor, whole[name], rtol=1e-5, atol=rounding(8))


@pytest.mark.parametrize("forward", ["plain", "stored, padding_free"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path, make, forward: str) -> None:
    settings = {
        "train_dataset": lists((3, 2, 5, 4, 2, 3, 6, 2)), "list_pairs": "2", "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2, "max_steps": 4, **FORWARDS[forward],
    }  # fmt: skip
    if forward == "plain":
        settings |= {"ref_calibrate": True, "ref_drift_num_pairs": 4}
    whole = make(tmp_path, save_strategy="steps", save_steps=2, **settings)
    whole.train()
    resumed = make(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert all(torch.equal(tensor, runs.weights(whole)[name]) for name, tensor in runs.weights(resumed).items())
    of_whole_run = ("num_tokens", "train_loss")  # which TRL and transformers count anew
    for mine, theirs in zip(runs.logs(resumed), runs.logs(whole), strict=True):
        assert {**mine, **dict.fromkeys(of_whole_run)} == {**theirs, **dict.fromkeys(of_whole_run)}


def test_a_store_of_lists_serves_their_pairs_and_is_found_again(tmp_path, make) -> None:
    first = make(tmp_path, train_dataset=lists(), **STORED)
    assert first.reference.stored.stats.computed > 0
    for data in (lists(), expanded(lists())):
        assert make(tmp_path, train_dataset=data, **STORED).reference.stored.stats.computed == 0


# --- a correction ---------------------------------------------------------------------------------------------------

CORRECTED: dict[str, Any] = {"ref_correction_rank": 4, "ref_correction_pairs": 5, "ref_drift_num_pairs": 3}
EIGHT = (3, 2, 5, 4, 2, 3, 7, 4)


@pytest.mark.parametrize("attached", [False, True], ids=["before the collator of lists is attached", "after it"])
def test_a_correction_is_fitted_on_the_best_and_the_worst_completion_of_each_list(
    tmp_path, make, other: str, attached: bool
) -> None:
    run = make(tmp_path, train_dataset=lists(EIGHT), **CORRECTED)
    ends = [run.train_dataset[at] for at in range(3, 8)]
    rows = [row["prompt_ids"] + row["list_ids"][at] for row in ends for at in _best_and_worst(row["list_scores"])]
    expected = load_reference(other, quantization="nf4", correction_rank=4, correction_data=rows)
    correction = run.reference.producer.correction
    if attached:
        correction.fitted = None
        assert correction.described(run.host) == correction_of(expected)
    else:
        assert correction_of(run.ref_model) == correction_of(expected)
        assert torch.equal(logits(run.ref_model), logits(expected))


def _best_and_worst(scores: list[float]) -> tuple[int, int]:
    return scores.index(max(scores)), scores.index(min(scores))


def test_before_a_model_is_loaded_lists_are_counted_and_not_the_rows_that_they_stand_in(
    tmp_path, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    with pytest.raises(InputError, match=r"=6 and ref_drift_num_pairs=3 need 9 training pairs.*train_dataset has 8"):
        make(tmp_path, train_dataset=lists(EIGHT), **{**CORRECTED, "ref_correction_pairs": 6})
