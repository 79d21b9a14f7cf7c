"""A run that takes the measured shift from its reference."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.support import runs, tiny
from tests.support.tolerances import rounding
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.drift import measure

NF4 = {"ref_quantization": "nf4", "ref_drift_num_pairs": 8}


@pytest.mark.parametrize("loss", ["apo_zero", "d2po", "mallows_dpo"])
def test_a_calibrated_run_reads_log_probs_without_the_shift(tmp_path, loss: str) -> None:
    run = runs.trainer(tmp_path, **NF4, ref_calibrate=True, loss_type=loss)
    inputs = next(iter(run.get_train_dataloader()))
    run.compute_loss(run.model, inputs)  # measures
    seen = {}
    run.mixture = _Spy(run.mixture, seen)
    run.reference.drift_monitor.measured = _with_shift(run.reference.drift_monitor.measured, 0.0)
    run.compute_loss(run.model, inputs)
    raw = seen.pop("pairs")
    run.reference.drift_monitor.measured = _with_shift(run.reference.drift_monitor.measured, -0.25)
    run.compute_loss(run.model, inputs)
    for side in ("chosen", "rejected"):
        before, after = getattr(raw, side), getattr(seen["pairs"], side)
        torch.testing.assert_close(after.ref_logps, before.ref_logps + 0.25 * before.lengths)
        torch.testing.assert_close(after.logps, before.logps)
        torch.testing.assert_close(after.logratio, after.logps - after.ref_logps)
        if before.ref_token_logps is not None:
            torch.testing.assert_close(after.ref_token_logps, before.ref_token_logps + 0.25 * before.mask)
        if before.ref_entropy is not None:
            assert torch.equal(after.ref_entropy, before.ref_entropy)


def _with_shift(measured: measure.Drift, shift: float) -> measure.Drift:
    return measure.Drift(**{**vars(measured), "shift_per_token": shift})


class _Spy:
    """A mixture that shows the pairs it is given."""

    def __init__(self, mixture: Any, seen: dict[str, Any]) -> None:
        self._mixture, self._seen = mixture, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mixture, name)

    def __call__(self, pairs: Any, weights: Any) -> Any:
        self._seen["pairs"] = pairs
        return self._mixture(pairs, weights)


def test_the_logged_rewards_of_a_calibrated_run_start_nearer_to_zero(tmp_path) -> None:
    settings = {"model": tiny.saved_model(str(tmp_path / "model")), "max_steps": 1, "per_device_train_batch_size": 8}
    shift = -0.3
    plain = runs.trainer(tmp_path / "out", **settings, ref_dtype="float32", ref_drift_num_pairs=8, ref_calibrate=True)
    _lower_log_probs(plain.ref_model, shift)
    plain.train()
    assert plain.reference.drift_monitor.measured.shift_per_token == pytest.approx(shift, abs=rounding(5))
    assert runs.logs(plain)[0]["rewards/chosen"] == pytest.approx(0.0, abs=rounding(0.1 * 60))


def _lower_log_probs(model: Any, shift: float) -> None:
    forward = model.forward

    def lower(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.log_probs = output.log_probs + shift * (output.log_probs != 0)
        return output

    model.forward = lower


def test_a_resumed_run_goes_on_with_its_calibration(tmp_path) -> None:
    settings = {
        **NF4,
        "model": tiny.saved_model(str(tmp_path / "model")),
        "ref_calibrate": True,
        "loss_type": "dpop",
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
    }
    whole = runs.trained(tmp_path / "out", **settings)
    file = tmp_path / "out" / "checkpoint-2" / measure.FILE
    assert json.loads(file.read_text())["shift_per_token"] == whole.reference.drift_monitor.measured.shift_per_token
    resumed = runs.trainer(tmp_path / "out", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert resumed.reference.drift_monitor.measured == whole.reference.drift_monitor.measured
    for name, tensor in runs.weights(whole).items():
        assert torch.equal(runs.weights(resumed)[name], tensor)
    file.unlink()
    with pytest.raises(InputError, match="holds no calibration"):
        runs.trainer(tmp_path / "out", **settings).train(resume_from_checkpoint=str(file.parent))
