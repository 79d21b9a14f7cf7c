"""Runs whose quantized reference is corrected: what it is fitted on, what it gives, and how it is stored."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig

from tests.support import runs, tiny
from tests.support.references import LORA, logits
from trl_dpo_ext import load_reference
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference import corrected
from trl_dpo_ext.reference.correction.layers import correction_of, terms
from trl_dpo_ext.reference.drift import measure

NF4: dict[str, Any] = {"ref_quantization": "nf4", "ref_drift_num_pairs": 4, "max_steps": 1}
CORRECTED: dict[str, Any] = {**NF4, "ref_correction_rank": 4, "ref_correction_pairs": 8}

pytestmark = pytest.mark.slow


def pairs(count: int = 16) -> Any:
    return tiny.preferences(count).map(
        lambda row, at: {"prompt": row["prompt"] + " yes" * (at // 8)}, with_indices=True
    )


def trainer(folder: Any, **settings: Any) -> Any:
    return runs.trainer(folder, **{"train_dataset": pairs(), **CORRECTED, **settings})


def fitted_rows(run: Any, first: int = 4, count: int = 8) -> list[list[int]]:
    rows = [run.train_dataset[at] for at in range(first, first + count)]
    return [row["prompt_ids"] + row[side] for row in rows for side in ("chosen_ids", "rejected_ids")]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The unquantized models that are loaded to fit a correction."""
    made: list[Any] = []

    def load(*args: Any, **settings: Any) -> Any:
        made.append(load_reference(*args, **settings))
        return made[-1]

    monkeypatch.setattr(corrected, "load_reference", load)
    return made


@pytest.mark.parametrize("named", [True, False], ids=["by name", "instance"])
def test_the_reference_is_that_of_the_pairs_after_the_measured_ones(tmp_path, named: bool, loads: list[Any]) -> None:
    folder = tiny.saved_model(str(tmp_path / "model"))
    run = trainer(tmp_path / "out", model=folder if named else tiny.model())
    expected = load_reference(folder, quantization="nf4", correction_rank=4, correction_data=fitted_rows(run))
    assert torch.equal(logits(run.ref_model), logits(expected))
    assert correction_of(run.ref_model) == correction_of(expected)
    assert not loads  # the policy is the unquantized model
    run.train()
    assert torch.equal(logits(run.ref_model), logits(expected))


def test_the_drift_is_measured_after_the_correction_and_says_on_which_pairs(tmp_path) -> None:
    run, plain = trainer(tmp_path / "a"), runs.trainer(tmp_path / "b", train_dataset=pairs(), **NF4)
    assert "corrected at rank 4" in run.describe_reference()
    for each in (run, plain):
        each.train()
    measured, before = run.reference.drift_monitor.measured, plain.reference.drift_monitor.measured
    assert measured.pairs == before.pairs == 4
    assert measured.token_std < 0.7 * before.token_std
    assert "correction of rank 4, on pairs that it was not fitted on" in measured.describe()
    assert "correction" not in before.describe()
    assert json.loads((tmp_path / "a" / measure.FILE).read_text())["correction_rank"] == 4
    assert set(runs.logs(run)[0]) == set(runs.logs(plain)[0])


def test_another_checkpoint_is_corrected_to_itself_and_its_unquantized_form_is_freed(tmp_path, loads) -> None:
    other = tiny.saved_model(str(tmp_path / "other"), seed=1)
    run = trainer(tmp_path / "out", ref_model_name_or_path=other)
    expected = load_reference(other, quantization="nf4", correction_rank=4, correction_data=fitted_rows(run))
    assert torch.equal(logits(run.ref_model), logits(expected))
    assert len(loads) == 1


@pytest.mark.parametrize("kind", ["fp4", "int8"])
def test_other_quantizations_are_corrected(tmp_path, kind: str) -> None:
    run = trainer(tmp_path / "out", ref_quantization=kind, ref_calibrate=True)
    run.train()
    plain = load_reference(tiny.model(), quantization=kind)
    start = logits(tiny.model())
    assert (logits(run.ref_model) - start).std() < (logits(plain) - start).std()
    assert run.reference.drift_monitor.measured.shift_per_token is not None


def test_a_policy_with_an_adapter_is_left_alone(tmp_path) -> None:
    with pytest.warns(UserWarning, match="needs no extra memory"):
        run = trainer(tmp_path / "out", peft_config=LORA)
    assert not list(terms(run.model))
    assert run.model.peft_config.keys() == {"default"}
    expected = load_reference(tiny.model(), quantization="nf4", correction_rank=4, correction_data=fitted_rows(run))
    assert torch.equal(logits(run.ref_model), logits(expected))
    with run.model.disable_adapter():
        assert torch.equal(logits(run.model), logits(tiny.model()))
    run.train()
    assert torch.equal(logits(run.ref_model), logits(expected))
    run.save_model()
    assert not [name for name in (tmp_path / "out").iterdir() if "correction" in name.name]


def test_correct_use_is_silent(tmp_path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path / "out", gradient_checkpointing=False).train()
    assert not [w for w in caught if "trl_dpo_ext" in w.filename]


# --- with the store -------------------------------------------------------------------------------------------------


def stored(folder: Any, store: Any, **settings: Any) -> Any:
    return trainer(folder, precompute_ref_log_probs=True, ref_store=str(store), **settings)


@pytest.mark.parametrize("named", [True, False], ids=["by name", "instance"])
def test_a_stored_reference_is_the_corrected_one_and_is_found_again(tmp_path, named: bool) -> None:
    folder = tiny.saved_model(str(tmp_path / "model"))
    live = trainer(tmp_path / "live", model=folder if named else tiny.model())
    live.train()
    for attempt in ("0 stored", "24 stored"):
        run = stored(tmp_path / attempt, tmp_path / "store", model=folder if named else tiny.model())
        assert run.ref_model is None
        run.train()
        assert runs.logs(run)[0]["loss"] == pytest.approx(runs.logs(live)[0]["loss"], abs=1e-4)
    assert run.reference.stored.stats.computed == 0
    assert "corrected rank 4 on" in (tmp_path / "store" / "manifest.json").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"ref_correction_rank": 3},
        {"ref_correction_pairs": 7},
        {"ref_correction_rank": 0, "ref_correction_pairs": 32},
        {"train_dataset": tiny.preferences(16)},
    ],
    ids=["rank", "pairs", "none", "content"],
)
def test_another_correction_is_another_reference(tmp_path, change: dict[str, Any]) -> None:
    folder, store = tiny.saved_model(str(tmp_path / "model")), tmp_path / "store"
    stored(tmp_path / "a", store, model=folder)
    with pytest.raises(InputError, match="quantization is nf4 float32 except lm_head corrected rank 4 on"):
        stored(tmp_path / "b", store, model=folder, **change)


def test_a_given_reference_is_stored_under_the_same_identity_as_a_described_one(tmp_path) -> None:
    folder, store = tiny.saved_model(str(tmp_path / "model")), tmp_path / "store"
    described = stored(tmp_path / "a", store, model=folder)
    given = load_reference(folder, quantization="nf4", correction_rank=4, correction_data=fitted_rows(described))
    flags = {"ref_quantization": None, "ref_correction_rank": 0}
    run = stored(tmp_path / "b", store, model=folder, ref_model=given, **flags)
    assert run.reference.stored.stats.computed == 0


def test_what_a_store_lacks_after_training_has_begun_comes_from_the_same_correction(tmp_path) -> None:
    folder = tiny.saved_model(str(tmp_path / "model"))
    run = stored(tmp_path / "a", tmp_path / "store", model=folder)
    run.train()
    run.evaluate(pairs(24).select(range(16, 24)))
    with run.reference.producer.running() as (_, causal):
        expected = load_reference(folder, quantization="nf4", correction_rank=4, correction_data=fitted_rows(run))
        assert torch.equal(logits(causal), logits(expected))


# --- losses of absolute rewards -------------------------------------------------------------------------------------


def test_a_loss_of_absolute_rewards_is_accepted_where_no_bias_is_left(tmp_path) -> None:
    run = trainer(tmp_path / "out", loss_type="apo_zero", ref_drift_num_pairs=8)
    run.train()
    assert run.reference.drift_monitor.measured.is_unbiased


def test_a_loss_of_absolute_rewards_is_refused_where_a_bias_is_left(tmp_path) -> None:
    run = trainer(tmp_path / "out", loss_type="apo_zero", ref_drift_num_pairs=8)
    forward = run.ref_model.forward

    def lower(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.log_probs = output.log_probs - 0.5 * (output.log_probs != 0)
        return output

    run.ref_model.forward = lower
    with pytest.raises(InputError, match=r"cannot be used with apo_zero .* leaves a bias of -\d"):
        run.train()


# --- what cannot be corrected ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ref_correction_pairs": 13}, "=13 and ref_drift_num_pairs=4 need 17 training pairs.*train_dataset has 16"),
        (
            {"ref_skip_modules": ["query"], "ref_correction_rank": 0},
            "ref_skip_modules: 'query' matches no linear layer",
        ),
        (
            {"ref_correction_rank": 17},
            r"ref_correction_rank=17 is larger than the rank of the smallest quantized layer \(16\)",
        ),
        ({"ref_correction_rank": -1}, "ref_correction_rank must be 0 .* got -1"),
        ({"ref_correction_pairs": 3}, "set ref_correction_pairs to 4 or more; got 3"),
        ({"ref_quantization": None}, "ref_correction_rank=4 has no error to correct"),
        ({"ref_quantization": None, "ref_dtype": "bfloat16"}, "ref_correction_rank=4 has no error to correct"),
        ({"loss_type": "simpo"}, "ref_correction_rank=4 has no effect"),
        ({"loss_type": "apo_zero", "ref_drift_num_pairs": 0}, "cannot be used with apo_zero without calibration"),
        ({"sync_ref_model": True}, "sync_ref_model=True cannot be used with ref_quantization"),
    ],
)
def test_what_cannot_be_corrected_is_refused_before_a_model_is_loaded(
    tmp_path, flags: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.saved_model(str(tmp_path / "model"))
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    with pytest.raises(InputError, match=message):
        trainer(tmp_path / "out", model=folder, **flags)


def test_a_stream_with_too_few_pairs_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"need 17 training pairs.*train_dataset has 16"):
        trainer(tmp_path / "out", train_dataset=pairs().to_iterable_dataset(), ref_correction_pairs=13)


def test_a_quantized_policy_is_no_start_to_be_corrected_to(tmp_path) -> None:
    folder, plan = tiny.saved_model(str(tmp_path / "model")), BitsAndBytesConfig(load_in_4bit=True)
    settings = {"model": folder, "quantization_config": plan, "peft_config": LORA}
    with (
        pytest.raises(InputError, match="the policy is quantized itself"),
        pytest.warns(UserWarning, match="needs no extra memory"),
    ):
        trainer(tmp_path / "out", **settings)


def test_a_given_reference_is_not_corrected(tmp_path) -> None:
    given = load_reference(tiny.model(), quantization="nf4")
    with pytest.raises(InputError, match="ref_model was passed together with ref_quantization"):
        trainer(tmp_path / "out", ref_model=given)
