"""What TRL 1.15 and 1.16 get wrong in their loss code, and what this package does there.

Each test shows the defect in the installed TRL first, so that it says when TRL has mended it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from trl import DPOTrainer

from tests.parity.test_values import PAIRS, batch, loss_and_gradient, set_host, set_ours
from tests.support import runs, tiny
from tests.support.tolerances import rounding
from trl_dpo_ext import DPOExtTrainer, get_loss


@pytest.mark.parametrize("name", ["hinge", "sft"])
def test_weighting_with_hinge_or_sft_raises_in_trl_and_weighs_here(host: Any, ours: Any, name: str) -> None:
    set_host(host, name, "reverse_kl", None, True, 0.0)
    with pytest.raises(RuntimeError):
        loss_and_gradient(host, batch(1.0))

    set_ours(ours, name, "reverse_kl", None, False, 0.0)
    unweighted, _ = loss_and_gradient(ours, batch(1.0))
    set_ours(ours, name, "reverse_kl", None, True, 0.0)
    weighted, gradient = loss_and_gradient(ours, batch(1.0))
    assert torch.isfinite(gradient).all()
    assert weighted != unweighted


def test_label_smoothing_with_sigmoid_is_ignored_by_trl_and_an_error_here(host: Any, tmp_path) -> None:
    set_host(host, "sigmoid", "reverse_kl", None, False, 0.4)
    smoothed, _ = loss_and_gradient(host, batch(1.0))
    set_host(host, "sigmoid", "reverse_kl", None, False, 0.0)
    plain, _ = loss_and_gradient(host, batch(1.0))
    assert smoothed == plain
    with pytest.raises(ValueError, match=r"label_smoothing=0.4 is not used by any chosen loss \(sigmoid\).*cdpo"):
        runs.config(tmp_path, loss_type="sigmoid", label_smoothing=0.4)


def test_wpo_weights_exceed_one_in_trl_and_are_clamped_here_on_request(ours: Any) -> None:
    inputs = batch(0.1)
    inputs["log_sum_sq_probs"] = inputs["log_probs"] - 0.5  # every token likelier than the policy's average
    set_ours(ours, "sigmoid", "reverse_kl", None, False, 0.0)
    plain, _ = loss_and_gradient(ours, inputs)
    set_ours(ours, "sigmoid", "reverse_kl", None, True, 0.0)
    unclamped, _ = loss_and_gradient(ours, inputs)
    torch.testing.assert_close(unclamped, plain * torch.tensor(1.0).exp())  # exp(0.5) for each side
    ours.args.wpo_clamp = True
    clamped, _ = loss_and_gradient(ours, inputs)
    ours.args.wpo_clamp = False
    torch.testing.assert_close(clamped, plain)


def test_forward_kl_has_nan_gradients_in_trl_and_finite_ones_here(host: Any, ours: Any) -> None:
    inputs = batch(1.0)
    inputs["ref_rejected_logps"] = torch.full((PAIRS,), 100.0)
    set_host(host, "sigmoid", "forward_kl", None, False, 0.0)
    set_ours(ours, "sigmoid", "forward_kl", None, False, 0.0)
    assert torch.isnan(loss_and_gradient(host, inputs)[1]).any()
    assert torch.isfinite(loss_and_gradient(ours, inputs)[1]).all()


def test_a_far_wrong_pair_is_nan_in_trl_under_discopop_and_finite_here(host: Any, ours: Any) -> None:
    inputs = batch(1.0)
    inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = torch.full((PAIRS,), 1000.0), torch.zeros(PAIRS)
    set_host(host, "discopop", "reverse_kl", None, False, 0.0)
    set_ours(ours, "discopop", "reverse_kl", None, False, 0.0)
    assert torch.isnan(loss_and_gradient(host, inputs)[0])
    value, gradient = loss_and_gradient(ours, inputs)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


def test_a_string_prompt_beside_message_lists_raises_in_trl_and_trains_here(tmp_path) -> None:
    dataset = tiny.preferences(4, conversational=True)
    conversations = dataset.map(
        lambda row: {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
    )
    layout = conversations.map(lambda row: {"text": row["prompt"][0]["content"]}).remove_columns("prompt")
    layout = layout.rename_column("text", "prompt")
    settings = {"train_dataset": layout, "ref_model": tiny.model(seed=1), "max_steps": 1}
    with pytest.raises((TypeError, AttributeError)):
        runs.trainer(tmp_path / "host", DPOTrainer, **settings)
    mixed = runs.trained(tmp_path / "ours", **settings)
    plain = runs.trained(tmp_path / "plain", **{**settings, "train_dataset": dataset, "ref_model": tiny.model(seed=1)})
    assert mixed.train_dataset["prompt_ids"] == plain.train_dataset["prompt_ids"]
    assert mixed.train_dataset["chosen_ids"] == plain.train_dataset["chosen_ids"]
    assert runs.logs(mixed) == runs.logs(plain)


def test_bco_without_its_shift_is_what_trl_has_and_the_shift_has_a_name_of_its_own() -> None:
    assert get_loss("bco_pair").from_trl
    assert not get_loss("bco_pair_delta").from_trl


def test_evaluation_depends_on_batches_and_on_what_ran_before_in_trl_and_on_its_data_alone_here(tmp_path) -> None:
    def evaluations(kind: type) -> list[dict[str, float]]:
        """In one batch, in three batches, and in one batch again, after two rows were predicted."""
        run = runs.trainer(tmp_path, kind, ref_model=tiny.model(seed=1), eval_dataset=tiny.preferences(7))
        found = []
        for size in (7, 3, 7):
            run.args.per_device_eval_batch_size = size
            if len(found) == 2:
                outputs = run.predict(run.eval_dataset.select(range(2)))
                assert ("test_rewards/accuracies" in outputs.metrics) == (kind is DPOExtTrainer)
            metrics = run.evaluate(metric_key_prefix="eval_mine")
            found.append({name.removeprefix("eval_").removeprefix("mine_"): value for name, value in metrics.items()})
        return found

    averaged = ["entropy", "logits/chosen", "logits/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen"]
    (one, three, after), ours = evaluations(DPOTrainer), evaluations(DPOExtTrainer)
    for name in averaged:
        assert three[name] != pytest.approx(one[name], rel=1e-5)
        assert after[name] != pytest.approx(one[name], rel=1e-5)
        assert [other[name] for other in ours] == pytest.approx([one[name]] * 3, rel=1e-5, abs=rounding(0.1 * 60))


def test_rows_of_an_incomplete_last_batch_are_not_predicted_in_trl_and_are_here(tmp_path) -> None:
    def predicted(kind: type) -> int:
        run = runs.trainer(tmp_path, kind, ref_model=tiny.model(seed=1), per_device_eval_batch_size=8)
        return len(run.predict(run.train_dataset.select(range(7))).label_ids)

    assert (predicted(DPOTrainer), predicted(DPOExtTrainer)) == (7, 2 * 7)
