"""The engine of a run is known before an accelerator exists, whichever way it was asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import runs
from trl_dpo_ext._trl import Engine, planned_engine

FSDP = {"ACCELERATE_USE_FSDP": "true"}


def args(fsdp: Any = None, stage: int | None = None) -> Any:
    deepspeed = None if stage is None else SimpleNamespace(zero_stage=stage)
    return SimpleNamespace(fsdp_plugin_args=fsdp, deepspeed_plugin=deepspeed)


@pytest.mark.parametrize(
    ("given", "environment", "engine"),
    [
        (args(), {}, Engine()),
        (args(), {"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "2"}, Engine()),
        (args(), FSDP, Engine(fsdp_version=1)),
        (args(), {"ACCELERATE_USE_FSDP": "True", "FSDP_VERSION": "2"}, Engine(fsdp_version=2)),
        (args(fsdp={"fsdp_version": 2}), {}, Engine(fsdp_version=2)),
        (args(fsdp={"fsdp_version": 1}), {**FSDP, "FSDP_VERSION": "2"}, Engine(fsdp_version=1)),
        (args(stage=2), {}, Engine(zero_stage=2, is_deepspeed=True)),
        (args(stage=0), {}, Engine(is_deepspeed=True)),
    ],
)
def test_the_engine_that_is_asked_for(given: Any, environment: dict[str, str], engine: Engine) -> None:
    assert planned_engine(given, environment) == engine


def test_a_configuration_asks_for_fsdp_in_the_version_of_its_fsdp_config(tmp_path) -> None:
    assert planned_engine(runs.config(tmp_path, fsdp=True), {}).fsdp_version == 2
    old = runs.config(tmp_path, fsdp=True, fsdp_config={"version": 1})
    assert planned_engine(old, {}).fsdp_version == 1
    assert planned_engine(runs.config(tmp_path), {}) == Engine()


def test_what_follows_from_an_engine() -> None:
    plain, ddp2 = Engine(), Engine(zero_stage=2, is_deepspeed=True)
    assert not plain.places_models
    assert ddp2.places_models
    assert not ddp2.splits_weights
    assert all(Engine(fsdp_version=version).splits_weights for version in (1, 2))
    assert Engine(zero_stage=3, is_deepspeed=True).splits_weights
