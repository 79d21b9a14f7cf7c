"""Families of vision-language models, trained on images by TRL, and here with a live reference and a stored one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import DPOTrainer

from tests.support import runs, vision_families
from tests.support.tolerances import rounding
from trl_dpo_ext import DPOExtTrainer

pytestmark = pytest.mark.slow


def trained(folder: Path, family: str, kind: type, **settings: Any) -> Any:
    return runs.trained(
        folder,
        kind,
        model=vision_families.model(family),
        ref_model=vision_families.model(family),
        processing_class=vision_families.FAMILIES[family].processor(),
        train_dataset=vision_families.preferences(6, mixed=True),
        per_device_train_batch_size=3,
        learning_rate=1e-4,
        max_steps=2,
        max_length=None,
        **settings,
    )


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl", "gemma3", "idefics3"])
def test_images_are_trained_as_by_trl_and_stored_sums_are_those_of_its_live_reference(tmp_path, family: str) -> None:
    theirs = trained(tmp_path / "trl", family, DPOTrainer)
    live = trained(tmp_path / "live", family, DPOExtTrainer)
    expected = runs.weights(theirs)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in runs.weights(live).items())
    for line, other in zip(runs.logs(live), runs.logs(theirs), strict=True):
        assert {name: line[name] for name in other} == other

    store = {"precompute_ref_log_probs": True, "ref_store": str(tmp_path / "refs")}
    stored = trained(tmp_path / "stored", family, DPOExtTrainer, **store)
    rows = [theirs.train_dataset[row] for row in range(6)]
    batch = theirs._prepare_inputs(theirs.data_collator(rows))
    exact = torch.stack(theirs.compute_ref_log_probs(theirs.ref_model, batch))
    rows = [stored.train_dataset[row] for row in range(6)]
    found = torch.stack(stored.data_collator(rows)["ref_token_logps"].sum(dim=1).chunk(2))
    assert exact.std() > 1.0
    assert (found - exact).abs().max() < rounding(float(exact.abs().max()))
    for line, other in zip(stored.state.log_history, theirs.state.log_history, strict=False):
        if "loss" in other and "loss" in line:
            assert line["loss"] == pytest.approx(other["loss"], abs=1e-4)
