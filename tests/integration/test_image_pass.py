"""The reference pass over images with real models and processors: what TRL's live reference gives, at half the towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl import DPOTrainer

from tests.support import runs, vision_families
from tests.support.stored import REFERENCE
from trl_dpo_ext import _trl
from trl_dpo_ext.reference.precompute.image_keys import ImageKeys, keys_of
from trl_dpo_ext.reference.precompute.image_pass import image_pass
from trl_dpo_ext.reference.precompute.image_rows import ImageRows
from trl_dpo_ext.reference.store.keys import unpack_keys
from trl_dpo_ext.reference.store.store import Store

ROWS = 6


def trainer(folder: Path, family: str, mixed: bool = False) -> Any:
    return runs.trainer(
        folder / "run",
        DPOTrainer,
        vision_families.model(family, seed=1),
        ref_model=vision_families.model(family),
        train_dataset=vision_families.preferences(ROWS, mixed=mixed),
        processing_class=vision_families.FAMILIES[family].processor(),
        max_length=None,
    )


def rows_of(run: Any) -> ImageRows:
    dataset = run.train_dataset
    found = ImageKeys.joined([keys_of([dataset[row] for row in range(len(dataset))], run.data_collator)])
    return ImageRows.of(found, np.ones((len(dataset), 2), bool))


def towers(run: Any) -> list[int]:
    """The number of images that each call of the tower is given, as it runs."""
    calls: list[int] = []
    module = _trl.tower_of(run.ref_model)
    parts = {"visual": "grid_thw", "vision_tower": None, "vision_model": None}
    name = next(name for name in parts if hasattr(module, name))

    def seen(_module: Any, args: Any, keywords: dict[str, Any]) -> None:
        of_images = (
            keywords.get(parts[name]) if parts[name] else keywords.get("pixel_values", args[0] if args else None)
        )
        calls.append(len(of_images))

    getattr(module, name).register_forward_pre_hook(seen, with_kwargs=True)
    return calls


def live(run: Any) -> torch.Tensor:
    """What TRL's live reference gives for each row alone, (rows, 2)."""
    sums = []
    for row in range(len(run.train_dataset)):
        batch = run._prepare_inputs(run.data_collator([run.train_dataset[row]]))
        sums.append(torch.cat(run.compute_ref_log_probs(run.ref_model, batch)))
    return torch.stack(sums)


def stored(run: Any, folder: Path, **settings: Any) -> tuple[Any, torch.Tensor]:
    """The statistics of a pass, and the sums that it stores, (rows, 2)."""
    store, rows = Store.open(folder / "store", REFERENCE), rows_of(run)
    mine = image_pass(
        _trl.Host(run), run.ref_model, run.ref_model, 200, store=store, dataset=run.train_dataset,
        collator=run.data_collator, **settings,
    )  # fmt: skip
    stats = mine.run(rows)
    keys = unpack_keys(rows.keys.reshape(-1, 2))
    sums = [float(values.sum()) for values in store.load(keys).values(keys)]
    return stats, torch.tensor(sums).view(-1, 2)


@pytest.mark.parametrize("family", sorted(vision_families.FAMILIES))
def test_the_tower_runs_once_per_image_and_the_sums_are_those_of_trl(tmp_path, family: str) -> None:
    run = trainer(tmp_path, family, mixed=True)
    expected, calls = live(run), towers(run)
    assert expected.std() > 1.0
    stats, sums = stored(run, tmp_path)
    torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-3)
    images = sum(len(images) for images in run.train_dataset["images"])
    assert stats.images == images
    ours = sum(calls)  # tiles for Idefics3, images for the others
    assert ours >= images
    calls.clear()
    live(run)
    assert sum(calls) == 2 * ours
