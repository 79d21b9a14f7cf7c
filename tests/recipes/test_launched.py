"""Every recipe, launched with its own accelerate config: three steps, a checkpoint, and a resume from it.

Two CPU processes stand in for the GPUs of every config but `single_gpu` and `cpu`, which are of one process. Model and rows
are small; architecture, quantization, adapter, losses, precision and engine are the recipe's own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.engines import launch, needs_deepspeed
from tests.support.small_recipes import small_flags
from trl_dpo_ext.recipe_registry import Recipe, list_recipes

pytestmark = pytest.mark.recipes

NOT_LAUNCHED: dict[str, str] = {}
"""Recipe -> why it is not launched here."""
ONE_PROCESS = ("single_gpu", "cpu")
RECIPES = list_recipes()
LAUNCHED = [recipe for recipe in RECIPES if recipe.name not in NOT_LAUNCHED]


def parameters() -> list[Any]:
    return [
        pytest.param(recipe, id=recipe.name, marks=needs_deepspeed if recipe.accelerate.startswith("zero") else ())
        for recipe in LAUNCHED
    ]


def test_every_recipe_on_disk_is_launched_or_listed_with_its_reason() -> None:
    assert len(LAUNCHED) + len(NOT_LAUNCHED) == len(RECIPES) == 33
    assert set(NOT_LAUNCHED) <= {recipe.name for recipe in RECIPES}


def train(recipe: Recipe, folder: Path, flags: list[str]) -> dict[int, dict[str, float]]:
    processes = 1 if recipe.accelerate in ONE_PROCESS else 2
    record = launch(folder / "job", recipe.accelerate, ["-m", "trl_dpo_ext", "train", *flags], processes=processes)
    assert record["processes"] == processes  # which engine ran, the launcher has compared with the accelerate config
    return {line["step"]: line for line in record["logs"] if "loss" in line}


@pytest.mark.parametrize("recipe", parameters())
def test_a_recipe_is_launched_saved_and_resumed(tmp_path, recipe: Recipe) -> None:
    on_gpus = {} if recipe.accelerate in ONE_PROCESS else {"ddp_backend": "gloo"}
    changed = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, "ignore_pitfalls": "other_batch", **on_gpus}
    flags = small_flags(recipe, tmp_path, **changed)
    first = train(recipe, tmp_path, flags)
    assert sorted(first) == [1, 2, 3]
    assert all(line["grad_norm"] > 0 for line in first.values())
    expected = re.match(r"loss = ([\d.]+)(?: \+ ([\d.]+) x loss/sft)?", recipe.header["First step"])
    if expected:
        likelihood = float(expected[2]) * first[1]["loss/sft"] if expected[2] else 0.0
        # Two digits in bf16, where the stored log-probs come from rows of other lengths.
        assert first[1]["loss"] == pytest.approx(float(expected[1]) + likelihood, abs=0.02)

    saved = [*(tmp_path / "out").glob("*.safetensors")]
    assert saved
    assert max(file.stat().st_size for file in saved) > 10_000
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 2
    again = train(recipe, tmp_path, [*flags, "--resume_from_checkpoint", str(checkpoint)])
    # the third step sees the same rows with the same weights
    assert again[3]["loss"] == pytest.approx(first[3]["loss"], abs=1e-3)
