"""On a GPU no loss mixes devices, and none makes the host wait for the device but those that are listed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.support.batches import PUBLISHED, hypers_of, make_pairs
from tests.support.fake_cuda import WAITS, fake_cuda, no_waits
from tests.support.list_batches import SMOOTH_PROMPTS, list_hypers_of, make_lists
from trl_dpo_ext import get_loss, list_losses

MAY_WAIT = {"sampo": "what is drawn depends on the lengths", "sft": "TRL's own expression, to the last bit"}


def run(name: str, hyper: dict[str, Any]) -> list[torch.Tensor]:
    """The loss on a batch of training and one of evaluation, when a running state is known."""
    pairs, loss = make_pairs(PUBLISHED, dtype=torch.float32), get_loss(name).make()
    with fake_cuda() as on_gpu:
        sides = {"chosen": on_gpu(pairs.chosen), "rejected": on_gpu(pairs.rejected)}
        moved = dataclasses.replace(pairs, **sides, columns=on_gpu(dict(pairs.columns)))
        with no_waits():
            return [loss(dataclasses.replace(moved, training=training), **hyper) for training in (True, True, False)]


@pytest.mark.parametrize("name", [variant.name for variant in list_losses(reads="pairs")])
def test_values_stay_on_the_device_and_the_host_does_not_wait(name: str) -> None:
    hyper = hypers_of(get_loss(name))[-1]
    if name in MAY_WAIT:
        with pytest.raises(WAITS):
            run(name, hyper)
        return
    for values in run(name, hyper):
        assert values.device.type == "cuda"
        assert values.shape == (len(PUBLISHED["chosen"]),)
        assert values.dtype == torch.float32


@pytest.mark.parametrize("name", [variant.name for variant in list_losses(reads="lists")])
def test_values_of_lists_stay_on_the_device_and_the_host_does_not_wait(name: str) -> None:
    lists, variant = make_lists(SMOOTH_PROMPTS, dtype=torch.float32), get_loss(name)
    pairs = make_pairs(PUBLISHED, dtype=torch.float32)
    for hyper in list_hypers_of(variant):
        with fake_cuda() as on_gpu:
            moved = on_gpu(dataclasses.replace(lists, count=len(SMOOTH_PROMPTS)))
            sides = {"chosen": on_gpu(pairs.chosen), "rejected": on_gpu(pairs.rejected)}
            of_two = dataclasses.replace(pairs, **sides, columns=on_gpu(dict(pairs.columns)))
            with no_waits():
                values, as_pairs = variant(moved, **hyper), variant(of_two, **hyper)
        assert (values.device.type, values.shape) == ("cuda", (len(SMOOTH_PROMPTS),))
        assert (as_pairs.device.type, as_pairs.shape) == ("cuda", (len(PUBLISHED["chosen"]),))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: bool(x.any()),
        lambda x: x + torch.tensor([1.0]).to(x.device),
    ],
)
def test_a_wait_is_found(wait: Any) -> None:
    with fake_cuda() as on_gpu:
        x = on_gpu(torch.ones(3))
        with no_waits(), pytest.raises(WAITS):
            wait(x)


def test_mixed_devices_are_found() -> None:
    with fake_cuda() as on_gpu:
        x = on_gpu(torch.ones(3))
        with pytest.raises(RuntimeError, match="device"):
            x + torch.ones(3)
        assert (x + torch.ones(3).to(x.device, non_blocking=True)).device.type == "cuda"


def test_indices_mean_what_they_mean() -> None:
    x = torch.arange(24).view(2, 3, 4)
    rows = torch.tensor([1, 0, 1])
    for index in (0, slice(1, None), None, (..., 1), (slice(None), rows), (0, rows, slice(None, -1)), (None, ..., 2)):
        shape = x[index].shape
        with fake_cuda() as on_gpu:
            moved = index if not isinstance(index, tuple) else tuple(on_gpu(each) for each in index)
            assert on_gpu(x)[moved].shape == shape, index
