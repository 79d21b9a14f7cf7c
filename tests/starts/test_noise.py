"""A policy that computes other log-probs in training mode than in evaluation mode, whether its user knows or not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from tests.support import runs, tiny
from trl_dpo_ext.errors import InputError

from .listing import Kind

noise = Kind("Noise in the policy")


class Noisy(nn.Module):
    """Dropout that `disable_dropout` does not find."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.dropout(self.inner(hidden), 0.5, self.training)


def with_function() -> Any:
    model = tiny.model()
    model.model.layers[0].mlp = Noisy(model.model.layers[0].mlp)
    return model


def with_setting() -> Any:
    return tiny.model(attention_dropout=0.5)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        noise.case(
            "`attention_dropout` in the model's configuration", "warning", with_setting, "attention_dropout=0.5"
        ),
        noise.case("dropout as a function in a module", "warning, and no false alarm", with_function, "nats per token"),
    ],
)
def test_noise_that_disable_dropout_leaves_on_is_told(tmp_path: Path, make: Any, named: str) -> None:
    with pytest.warns(UserWarning, match=f"trains with other noise: .*{named}"):
        run = runs.trained(tmp_path, model=make(), max_steps=1)
    assert run.first_step.start_difference < 1e-4


@noise("the same, with `disable_dropout=False`", "trains in silence")
def test_intended_noise_is_silent(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        runs.trained(tmp_path, model=with_setting(), max_steps=1, disable_dropout=False)


def test_noise_does_not_hide_another_reference(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, model=with_function(), max_steps=1)
    run.model.model.embed_tokens.weight.data.mul_(2.0)
    with pytest.raises(InputError, match="should be the same model"):
        run.train()
