"""Every feature of TRL's trainer, trained by TRL and by this package, also with each option that changes the forward."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from trl import DPOTrainer

from tests.support import tiny
from trl_dpo_ext import DPOExtTrainer

from .cases import FEATURES
from .feature import WAYS, Feature, Run
from .running import run

pytestmark = pytest.mark.features
CASES = [pytest.param(feature, way, id=f"{feature.name}-{way}") for feature in FEATURES for way in WAYS]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    warnings.simplefilter("ignore")


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Feature, type, str], Run]:
    """Train with a feature, by a trainer, in a way; the ways of a feature share the run that they are compared with."""
    models: dict[object, Path] = {}

    @functools.lru_cache(maxsize=4)
    def train(feature: Feature, kind: type, way: str) -> Run:
        save = feature.policy or tiny.saved_model
        if save not in models:
            models[save] = Path(save(str(tmp_path_factory.mktemp("model"))))
        return run(feature, kind, WAYS[way], models[save], tmp_path_factory.mktemp("run"))

    return train


@pytest.mark.parametrize(("feature", "way"), CASES)
def test_a_feature_does_what_the_table_says(feature: Feature, way: str, train) -> None:
    def trl() -> Run:
        if feature.trl_fails is not None:
            with pytest.raises(feature.trl_fails):
                train(feature, DPOTrainer, "plain")
            return train(FEATURES[0], DPOTrainer, "plain")
        return train(feature, DPOTrainer, "plain")

    plain = way == "plain" or feature.follows_trl
    other = trl if plain else lambda: train(feature, DPOExtTrainer, "plain")
    feature.outcome(way).check(lambda: train(feature, DPOExtTrainer, way), other)
