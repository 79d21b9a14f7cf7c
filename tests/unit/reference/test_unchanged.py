"""A model is recognized as unchanged: by every weight, broken ones included."""

from __future__ import annotations

import pytest
import torch

from tests.support import tiny
from trl_dpo_ext.reference.identity.unchanged import WeightsState, checksums


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-3])
def test_weights_that_stay_are_unchanged_whatever_their_values_are(value):
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight.fill_(value)
    state = WeightsState(model)
    assert state.holds_for(model)
    model.lm_head.weight.data[0, 0] = 2.0
    assert not state.holds_for(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_checksum_tells_every_value_in_every_dtype(dtype):
    model = tiny.model().to(dtype)
    before = checksums(model)
    assert checksums(model) == before
    values = model.model.layers[0].mlp.up_proj.weight.data
    for row, column in [(0, 0), (11, 7), (31, 15)]:
        values[row, column] += 0.5
        after = checksums(model)
        assert [name for name in before if after[name] != before[name]] == ["model.layers.0.mlp.up_proj.weight"]
        before = after


def test_a_checksum_is_that_of_the_values_wherever_they_are():
    model, copied = tiny.model(), tiny.model()
    copied.lm_head.weight.data = copied.lm_head.weight.data.t().contiguous().t()
    assert checksums(copied) == checksums(model)
