"""A model is recognized as unchanged: by every weight, broken ones included."""

from __future__ import annotations

import pytest
import torch

from tests.support import tiny
from trl_dpo_ext.reference.identity.unchanged import WeightsState


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-3])
def test_weights_that_stay_are_unchanged_whatever_their_values_are(value):
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight.fill_(value)
    state = WeightsState(model)
    assert state.holds_for(model)
    model.lm_head.weight.data[0, 0] = 2.0
    assert not state.holds_for(model)
