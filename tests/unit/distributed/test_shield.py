"""A sharded forward that fails on one process gathers all weights there all the same, and raises at its end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trl_dpo_ext.distributed import shield
from trl_dpo_ext.distributed.shield import Shield


class Layer(nn.Module):
    """A layer whose weights an engine would gather before its forward."""

    def __init__(self, number: int, gathered: list[int], fails: bool = False) -> None:
        super().__init__()
        self.number, self.fails = number, fails
        self.weight = nn.Parameter(torch.ones(1))
        self.register_forward_pre_hook(lambda *_: gathered.append(number))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise torch.OutOfMemoryError(f"layer {self.number} is out of memory")
        return hidden * self.weight


class Stack(nn.Module):
    """Layers that run from the last to the first, and something before and behind them."""

    def __init__(self, layers: list[Layer], before: str = "", behind: str = "") -> None:
        super().__init__()
        self.layers, self.before, self.behind = nn.ModuleList(layers), before, behind

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.before:
            raise ValueError(self.before)
        for layer in reversed(self.layers):
            hidden = layer(hidden)
        if self.behind:
            raise ValueError(self.behind)
        return hidden + 1


@pytest.fixture(autouse=True)
def layers_are_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shield, "_gathers", lambda module: isinstance(module, Layer))


def test_a_forward_that_does_not_fail_is_the_forward() -> None:
    gathered: list[int] = []
    model = Stack([Layer(number, gathered) for number in range(4)])
    with Shield(model).put_on() as covered:
        assert covered(torch.ones(2)).tolist() == [2.0, 2.0]
    assert gathered == [3, 2, 1, 0]
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("failing", range(4))
def test_the_layers_behind_the_one_that_fails_are_gathered_in_the_order_of_others(failing: int) -> None:
    gathered: list[int] = []
    layers = [Layer(number, gathered) for number in range(4)]
    model = Stack(layers)
    with Shield(model).put_on() as covered:
        covered(torch.ones(2))
        layers[failing].fails = True
        gathered.clear()
        with pytest.raises(torch.OutOfMemoryError, match=f"layer {failing} is out"):
            covered(torch.ones(2))
        assert gathered == [3, 2, 1, 0]
        layers[failing].fails = False
        assert covered(torch.ones(2)).tolist() == [2.0, 2.0]  # nothing of it is left


@pytest.mark.parametrize("place", ["before", "behind"])
def test_what_fails_around_the_layers_waits_for_them_too(place: str) -> None:
    gathered: list[int] = []
    settings: dict[str, Any] = {place: "no room"}
    model = Stack([Layer(number, gathered) for number in range(3)], **settings)
    with Shield(model).put_on() as covered, pytest.raises(ValueError, match="no room"):
        covered(torch.ones(2))
    assert sorted(gathered) == [0, 1, 2]
    assert not any("forward" in vars(module) for module in model.modules())
