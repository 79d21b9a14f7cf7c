"""How far a reference is from what it stands for: measured, logged, kept, removed."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.support import runs, tiny
from trl_dpo_ext import load_reference
from trl_dpo_ext.core import transforms
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.drift import measure
from trl_dpo_ext.reference.drift.monitor import monitor_drift

NF4 = {"ref_quantization": "nf4", "ref_drift_num_pairs": 8}
# Four rows: chosen, chosen, rejected, rejected. The last chosen token of the second pair is padding.
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]]).bool()
START = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0], [0.0, -2.0, -2.0], [-1.0, -1.0, -1.0]])
ERROR = torch.tensor([[-0.5, -0.5, -0.5], [-0.25, -0.25, 9.0], [9.0, -1.0, -1.0], [-0.5, -0.5, 0.25]])


def errors_of_pairs(pairs: int, shift: float, noise: float, seed: int = 0) -> torch.Tensor:
    """(pairs, 2, 3): answers of 5 to 60 tokens, each token off by `shift`, each answer by `noise` per root token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 60, (pairs, 2), generator=generator).double()
    sums = shift * tokens + noise * tokens.sqrt() * torch.randn(pairs, 2, generator=generator, dtype=torch.float64)
    return torch.stack([tokens, sums, sums.square() / tokens], dim=-1)


def test_errors_are_counted_on_completion_tokens_alone() -> None:
    errors = measure.answer_errors(START + ERROR, START, MASK)
    assert errors.shape == (2, 2, 3)
    assert errors[..., measure.TOKENS].tolist() == [[3, 2], [2, 3]]
    assert errors[..., measure.SHIFT].tolist() == [[-1.5, -2.0], [-0.5, -0.75]]
    assert errors[..., measure.SQUARES].tolist() == [[0.75, 2.0], [0.125, 0.5625]]


def test_the_summary_is_what_the_definitions_say() -> None:
    measured = measure.summarize(measure.answer_errors(START + ERROR, START, MASK), beta=0.5)
    per_token = ERROR[MASK].double()
    sequences = torch.tensor([-1.5, -2.0, -0.5, -0.75])
    margins = torch.tensor([0.5, 0.25])
    assert (measured.pairs, measured.tokens) == (2, 10)
    assert measured.token_mean == pytest.approx(per_token.mean().item())
    assert measured.token_std == pytest.approx(per_token.std(unbiased=False).item())
    assert (measured.sequence_mean, measured.sequence_std) == pytest.approx(
        (sequences.mean().item(), sequences.std().item())
    )
    assert (measured.margin_mean, measured.margin_std) == pytest.approx((margins.mean().item(), margins.std().item()))
    assert measured.metrics["reference/drift_beta_margin_std"] == pytest.approx(0.5 * margins.std().item())
    assert measured.shift_per_token is None
    assert not any("calibrated" in name for name in measured.metrics)


def test_an_exact_shift_is_found_and_a_reference_without_error_has_none() -> None:
    assert measure.shift_per_token(errors_of_pairs(16, -0.2, 0.0)) == pytest.approx(-0.2, abs=1e-12)
    assert measure.shift_per_token(errors_of_pairs(16, 0.0, 0.0)) == 0.0


def test_a_shift_that_pairs_do_not_agree_on_is_not_removed() -> None:
    means, shrunk = [], []
    for seed in range(200):
        errors = errors_of_pairs(16, 0.0, 0.5, seed)
        means.append(float(errors[..., measure.SHIFT].sum() / errors[..., measure.TOKENS].sum()))
        shrunk.append(measure.shift_per_token(errors))
    assert sum(shift == 0 for shift in shrunk) > 0.55 * len(shrunk)  # 68% of means lie within one standard error
    assert torch.tensor(shrunk).square().mean() < 0.7 * torch.tensor(means).square().mean()
    clear = measure.shift_per_token(errors_of_pairs(16, -0.2, 0.5))
    assert clear == pytest.approx(-0.2, abs=0.06)


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
def test_the_shift_is_taken_from_every_token_before_tokens_are_summed(ld_alpha: float | None) -> None:
    measured = measure.summarize(errors_of_pairs(16, -0.2, 0.0), beta=0.1, calibrate=True)
    tokens = (START + ERROR) * MASK
    logps, corrected = measured.corrected(transforms.sum_logps(tokens, MASK, ld_alpha), tokens, MASK, ld_alpha)
    torch.testing.assert_close(corrected, (tokens + 0.2) * MASK)
    torch.testing.assert_close(logps, transforms.sum_logps(corrected, MASK, ld_alpha))
    assert measured.calibrated_sequence_mean == pytest.approx(0.0, abs=1e-9)


def test_log_probs_that_are_not_finite_are_an_error_with_the_fix() -> None:
    broken = START.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"not finite.*ref_compute_dtype.*bfloat16"):
        measure.summarize(measure.answer_errors(broken, START, MASK), beta=0.1)


@pytest.mark.parametrize("count", [1, 5, 8])
def test_processes_share_the_pairs_and_find_what_one_finds(count: int) -> None:
    def errors_of(rows: list[int]) -> torch.Tensor:
        return torch.tensor([[[1.0, float(row), 0.0]] * 2 for row in rows])

    alone = measure.measure(range(count), errors_of, lambda x: x, batch_size=2, rank=0, processes=1)
    parts, batches = [], []
    for rank in range(3):

        def counted(rows: list[int], rank: int = rank) -> torch.Tensor:
            batches.append(rank)
            return errors_of(rows)

        measure.measure(range(count), counted, lambda x: parts.append(x) or x, batch_size=2, rank=rank, processes=3)
    joined = measure.measure(range(count), errors_of, lambda _: torch.cat(parts), batch_size=2, rank=0, processes=3)
    assert torch.equal(joined, alone)
    assert alone[:, 0, 1].tolist() == list(range(count))
    assert len({batches.count(rank) for rank in range(3)}) == 1  # as many forwards each: none waits for ever


def test_the_largest_beta_of_the_losses_counts(tmp_path) -> None:
    def beta(**settings: Any) -> float:
        args = runs.config(tmp_path, **settings)
        return measure.max_beta(args.loss_mixture().terms, args.beta)

    assert beta(beta=0.3) == 0.3
    assert beta(loss_type=["sigmoid:beta=1.0", "cal_dpo", "sft"]) == 1.0
    assert beta(loss_type=["alpha_dpo"]) == 2.5
    assert beta(loss_type="trl:sigmoid", beta=0.2) == 0.2


# In a run.


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
    assert first["reference/drift_token_mean"] == pytest.approx(tokens.mean().item(), abs=1e-6)
    assert first["reference/drift_token_std"] == pytest.approx(tokens.std(unbiased=False).item(), abs=1e-5)
    assert first["reference/drift_margin_mean"] == pytest.approx(margins.mean().item(), abs=1e-5)
    assert first["reference/drift_margin_std"] == pytest.approx(margins.std().item(), abs=1e-5)
    assert margins.std() > 0.05
    assert not any("reference/" in name for name in runs.logs(run)[1])  # once
    assert run.reference.drift_monitor.measured.pairs == min(pairs, 8)


@pytest.mark.parametrize("silence", [{"disable_tqdm": True}, {"log_level": "error", "disable_tqdm": False}])
def test_the_measurement_is_not_printed_in_a_silent_run(tmp_path, capsys: pytest.CaptureFixture, silence) -> None:
    runs.trained(tmp_path, **NF4, max_steps=1, **silence)
    assert "Reference drift" not in capsys.readouterr().out


def test_the_measurement_is_printed_and_written(tmp_path, capsys: pytest.CaptureFixture) -> None:
    run = runs.trained(tmp_path, **NF4, max_steps=1, disable_tqdm=False)
    assert "Reference drift vs. unquantized model (8 pairs" in capsys.readouterr().out
    written = json.loads((tmp_path / measure.FILE).read_text())
    assert written["margin_std"] == run.reference.drift_monitor.measured.margin_std
    assert measure.Drift.load(tmp_path) == run.reference.drift_monitor.measured


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
    assert plain.reference.drift_monitor.measured.shift_per_token == pytest.approx(shift, abs=1e-5)
    assert runs.logs(plain)[0]["rewards/chosen"] == pytest.approx(0.0, abs=1e-5)


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
