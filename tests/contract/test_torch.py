"""One test for each private part of torch that this package reads."""

from __future__ import annotations

import torch


def test_changes_in_place_are_counted() -> None:
    layer = torch.nn.Linear(2, 2)
    before = layer.weight._version
    layer.to(torch.bfloat16)
    assert layer.weight._version <= before, "a cast is no change of `_version`"
    layer.load_state_dict({name: torch.ones_like(value) for name, value in layer.state_dict().items()})
    assert layer.weight._version > before, "torch has moved `Tensor._version`: mend reference/identity/unchanged.py"
