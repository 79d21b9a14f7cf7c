"""How far a reference is from what it stands for: measured at the start of a run, logged and kept."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.support import runs, tiny
from tests.support.tolerances import rounding
from trl_dpo_ext import load_reference
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.drift import measure
from trl_dpo_ext.reference.drift.monitor import monitor_drift

NF4 = {"ref_quantization": "nf4", "ref_drift_num_pairs": 8}


def token_logps(model: Any, rows: Dataset, side: str) -> list[torch.Tensor]:
    found = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
        with torch.no_grad():
            logps = model.eval()(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        found.append(logps.gather(1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :, 0])
    return found


@pytest.mark.parametrize("pairs", [3, 8, 99])
def test_what_is_measured_is_the_difference_of_the_two_models_on_the_first_pairs(tmp_path, pairs: int) -> None:
    run = runs.trained(tmp_path, ref_quantization="nf4", ref_drift_num_pairs=pairs, per_device_train_batch_size=2)
    rows = run.train_dataset.select(range(min(pairs, 8)))
    start, reference = tiny.model(), load_reference(tiny.model(), quantization="nf4")
    chosen, rejected = (
        [r - s for r, s in zip(token_logps(reference, rows, side), token_logps(start, rows, side), strict=True)]
        for side in ("chosen", "rejected")
    )
    tokens = torch.cat([*chosen, *rejected])
    margins = torch.stack([c.sum() - r.sum() for c, r in zip(chosen, rejected, strict=True)])
    first = runs.logs(run)[0]
    assert first["reference/drift_token_mean"] == pytest.approx(tokens.mean().item(), abs=rounding(5))
    assert first["reference/drift_token_std"] == pytest.approx(tokens.std(unbiased=False).item(), abs=rounding(5))
    assert first["reference/drift_margin_mean"] == pytest.approx(margins.mean().item(), abs=rounding(60))
    assert first["reference/drift_margin_std"] == pytest.approx(margins.std().item(), abs=rounding(60))
    assert margins.std() > 0.05
    assert not any("reference/" in name for name in runs.logs(run)[1])  # once
    assert run.reference.drift_monitor.measured.pairs == min(pairs, 8)


def test_the_measurement_is_printed_and_written(tmp_path, capsys: pytest.CaptureFixture) -> None:
    run = runs.trained(tmp_path, **NF4, max_steps=1, disable_tqdm=False)
    assert "Reference drift vs. unquantized model (8 pairs" in capsys.readouterr().out
    written = json.loads((tmp_path / measure.FILE).read_text())
    assert written["margin_std"] == run.reference.drift_monitor.measured.margin_std
    assert measure.Drift.load(tmp_path) == run.reference.drift_monitor.measured


@pytest.mark.parametrize("silence", [{"disable_tqdm": True}, {"log_level": "error", "disable_tqdm": False}])
def test_the_measurement_is_not_printed_in_a_silent_run(tmp_path, capsys: pytest.CaptureFixture, silence) -> None:
    runs.trained(tmp_path, **NF4, max_steps=1, **silence)
    assert "Reference drift" not in capsys.readouterr().out


def test_measuring_changes_nothing_of_the_training(tmp_path) -> None:
    measured = runs.trained(tmp_path / "a", **NF4)
    not_measured = runs.trained(tmp_path / "b", ref_quantization="nf4", ref_drift_num_pairs=0)
    assert not_measured.reference.drift_monitor is None
    assert not (tmp_path / "b" / measure.FILE).exists()
    for name, tensor in runs.weights(measured).items():
        assert torch.equal(runs.weights(not_measured)[name], tensor)


def test_a_streamed_dataset_is_measured_too(tmp_path) -> None:
    streamed = tiny.preferences(8).to_iterable_dataset()
    run = runs.trained(tmp_path / "a", **NF4, train_dataset=streamed)
    plain = runs.trained(tmp_path / "b", **NF4)
    assert run.reference.drift_monitor.measured == plain.reference.drift_monitor.measured


def test_an_evaluation_before_training_measures_first(tmp_path) -> None:
    settings = {**NF4, "ref_calibrate": True, "loss_type": "apo_zero", "eval_dataset": tiny.preferences(4)}
    run = runs.trainer(tmp_path, **settings)
    metrics = run.evaluate()
    assert metrics["eval_reference/drift_margin_std"] > 0
    assert run.reference.drift_monitor.measured.shift_per_token is not None
    run.train()
    assert not any("drift" in name for name in runs.logs(run)[1])


def test_a_resumed_run_without_calibration_measures_no_trained_policy(tmp_path) -> None:
    settings = {**NF4, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    runs.trained(tmp_path / "out", **settings)
    (tmp_path / "out" / "checkpoint-2" / measure.FILE).unlink()
    resumed = runs.trainer(tmp_path / "out", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert resumed.reference.drift_monitor.measured is None
    assert not any("drift" in name for line in runs.logs(resumed)[2:] for name in line)


def test_another_checkpoint_is_compared_with_itself_unquantized(tmp_path) -> None:
    other = tiny.saved_model(str(tmp_path / "other"), seed=1)
    model = tiny.saved_model(str(tmp_path / "model"))
    run = runs.trained(tmp_path / "a", model=model, ref_model_name_or_path=other, **NF4)
    itself = runs.trained(tmp_path / "b", model=other, **NF4)
    assert (
        run.reference.drift_monitor.measured == itself.reference.drift_monitor.measured
    )  # and not with the policy, nats away


@pytest.mark.parametrize(("started_from", "measured"), [("policy", True), ("other", False), ("elsewhere", False)])
def test_a_reference_that_is_given_is_measured_where_it_stands_for_the_policy(tmp_path, started_from, measured) -> None:
    model = tiny.saved_model(str(tmp_path / "model"))
    other = tiny.saved_model(str(tmp_path / "other"), seed=1)
    given = load_reference(other if started_from == "other" else model, quantization="nf4")
    if started_from == "elsewhere":
        del given._reference_source  # not made by load_reference
    args = runs.config(tmp_path / "out")
    assert (monitor_drift(args, args.loss_mixture(), model, given) is not None) == measured


@pytest.mark.parametrize("named", [True, False], ids=["by name", "instance"])
def test_a_quantized_reference_is_stored_measured_and_freed(tmp_path, named: bool) -> None:
    folder = tiny.saved_model(str(tmp_path / "model"))
    policy: Any = folder if named else tiny.model()
    settings = {**NF4, "model": policy, "ref_calibrate": True, "loss_type": ["apo_zero", "d2po"]}
    stored = runs.trained(tmp_path / "a", precompute_ref_log_probs=True, ref_store=str(tmp_path / "store"), **settings)
    live = runs.trained(tmp_path / "b", **{**settings, "model": folder if named else tiny.model()})
    assert stored.ref_model is None
    assert live.ref_model is not None
    kept, found = stored.reference.drift_monitor.measured, live.reference.drift_monitor.measured
    assert kept.metrics == pytest.approx(found.metrics, abs=1e-4)  # rows of other shapes: rounding
    assert [line.get("loss") for line in runs.logs(stored)] == pytest.approx(
        [line.get("loss") for line in runs.logs(live)], abs=1e-3, nan_ok=True
    )
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert "nf4" in json.dumps(manifest)
    with pytest.raises(InputError, match="quantization is nf4"):
        runs.trainer(tmp_path / "c", model=folder, precompute_ref_log_probs=True, ref_store=str(tmp_path / "store"))


def test_columns_of_the_datasets_own_and_flags_of_a_reference_are_refused(tmp_path) -> None:
    columns = {"ref_chosen_logps": [-9.0] * 8, "ref_rejected_logps": [-9.0] * 8}
    data = tiny.preferences(8, **columns)
    with pytest.raises(InputError, match="have reference log-probs of their own"):
        runs.trained(tmp_path, **NF4, train_dataset=data, precompute_ref_log_probs=True)


def test_a_loud_error_is_warned_of_with_the_ways_out(tmp_path) -> None:
    with pytest.warns(UserWarning, match=r"spreads the margin by .*int8.*ref_skip_modules.*precompute_ref_log_probs"):
        runs.trained(tmp_path / "loud", **NF4, beta=10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*pin_memory.*")
        runs.trained(tmp_path / "quiet", **NF4, beta=0.1)
