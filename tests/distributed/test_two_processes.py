"""Two processes are one process with twice the batch, and two processes of ours are two of TRL's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.engines import FLOAT32, Record, launch, prepared
from tests.support import tiny
from trl_dpo_ext import Need, list_losses

MPO = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}


def train(folder: Path, processes: int, rows: int = 8, function: str = "train", **settings: Any) -> Record:
    """Train the tiny model data-parallel, or alone."""
    config = "multi_gpu" if processes > 1 else "single_gpu"
    prepared(folder, rows)
    return launch(
        folder, config, f"tests.distributed.launched:{function}", settings, processes=processes, flags=FLOAT32
    )


@pytest.mark.slow
def test_two_processes_of_ours_equal_two_of_trl_bit_for_bit(tmp_path) -> None:
    settings = {"per_device_train_batch_size": 2, "gradient_checkpointing": False, **MPO}
    ours = train(tmp_path / "both", 2, function="train_both", **settings)
    assert ours["processes"] == 2
    assert ours.weights.keys() == ours["host_weights"].keys()
    assert all(torch.equal(torch.tensor(host), ours.weights[name]) for name, host in ours["host_weights"].items())
    for theirs, mine in zip(ours["host_logs"], ours.logs, strict=True):
        assert {key: mine[key] for key in theirs} == theirs


@pytest.mark.distributed
@pytest.mark.parametrize("loss", ["bco_pair_delta", "margin", "simpo", "aot:global=true", "tdpo1"])
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, loss: str) -> None:
    settings = {"loss_type": loss, "gradient_checkpointing": False, "max_grad_norm": 0.0}
    two = train(tmp_path / "two", 2, per_device_train_batch_size=2, **settings)
    one = train(tmp_path / "one", 1, per_device_train_batch_size=4, **settings)
    for name, tensor in one.weights.items():
        torch.testing.assert_close(two.weights[name], tensor, rtol=1e-4, atol=1e-5)
    assert two["loss_state"].keys() == one["loss_state"].keys()
    for label, state in one["loss_state"].items():
        assert two["loss_state"][label] == pytest.approx(state, rel=1e-4)


BATCH_LOSSES = [v.name for v in list_losses() if Need.BATCH in v.needs and not v.name.startswith("aot")]


@pytest.mark.distributed
def test_every_loss_that_compares_pairs_is_the_same_over_two_processes(tmp_path) -> None:
    losses = [*BATCH_LOSSES, "aot:global=true", "aot_unpaired:aot_global=true"]
    settings = {"loss_type": losses, "gradient_checkpointing": False, "max_grad_norm": 0.0, "optim": "sgd"}
    two = train(tmp_path / "two", 2, per_device_train_batch_size=2, **settings)
    one = train(tmp_path / "one", 1, per_device_train_batch_size=4, **settings)
    assert {"dr_dpo", "kldpo", "kto_pair", "gamma_po", "alpha_dpo", "beta_dpo", "bco_pair_delta"} <= set(BATCH_LOSSES)
    for mine, theirs in zip(two.logs, one.logs, strict=True):
        terms = {key for key in theirs if key.startswith("loss/")}
        assert len(terms) in (0, len(losses))  # the last line sums the run up
        assert {key: mine[key] for key in terms} == pytest.approx({key: theirs[key] for key in terms}, rel=1e-4)
    moved = 0.0
    start = tiny.model().state_dict()
    for name, tensor in one.weights.items():  # plain gradient descent: weights differ by what gradients differ by
        torch.testing.assert_close(two.weights[name], tensor, rtol=0, atol=2e-6)
        moved = max(moved, (tensor - start[name]).abs().max().item())
    assert moved > 1e-3
    for label, state in one["loss_state"].items():
        assert two["loss_state"][label] == pytest.approx(state, rel=1e-4, abs=1e-7)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "settings",
    [{"precompute_ref_log_probs": True}, {"gradient_accumulation_steps": 2, **MPO}],
    ids=["precomputed", "accumulated"],
)
def test_two_processes_equal_trl_in_more_configurations(tmp_path, settings: dict) -> None:
    settings = {"per_device_train_batch_size": 2, "gradient_checkpointing": True, "rows": 16, **settings}
    host = train(tmp_path / "host", 2, kind="trl", **settings)
    ours = train(tmp_path / "ours", 2, **settings)
    # Our pass has batches of another shape.
    tolerance = None if "precompute_ref_log_probs" in settings else 0
    for name, tensor in host.weights.items():
        torch.testing.assert_close(ours.weights[name], tensor, rtol=tolerance, atol=tolerance)
