"""Small pictures, and preferences about them for the model of `tests.features.vision`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from tests.features import vision
from tests.support import runs, tiny

STORED = {"precompute_ref_log_probs": True}
SETTINGS = {"max_length": None}


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """Noise, the same for the same seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def pictured(rows: int = 6, each: Any = 1, start: int = 0) -> Dataset:
    """Conversations about pictures that differ from row to row.

    Args:
        rows: number of them.
        each: images per row, one number for all or one per row.
        start: seed of the first picture.
    """
    counts = [each] * rows if isinstance(each, int) else list(each)
    seeds = iter(range(start, start + sum(counts)))
    texts = tiny.preferences(rows, conversational=True)
    images = [[picture(next(seeds)) for _ in range(count)] for count in counts]
    features = Features({**texts.features, "images": List(ImageFeature())})
    return Dataset.from_dict({**texts.to_dict(), "images": images}, features=features)


def on_disk(data: Dataset, folder: Path) -> Dataset:
    """The same rows from a file, which is written once, as another process would load them."""
    if not (folder / "data.parquet").exists():
        data.to_parquet(str(folder / "data.parquet"))
    return load_dataset("parquet", data_files=str(folder / "data.parquet"), split="train", cache_dir=str(folder / "c"))


def trainer(folder: Path, model: str, **settings: Any) -> Any:
    """A trainer of ours on images."""
    given = {"train_dataset": pictured(), "processing_class": vision.processor(), **SETTINGS, **settings}
    return runs.trainer(folder, model=model, **given)


def stored(folder: Path, model: str, **settings: Any) -> Any:
    """A trainer that reads its reference log-probs from the store `refs` beside its folder."""
    return trainer(folder, model, **{"ref_store": str(folder.parent / "refs"), **STORED, **settings})


def counts(run: Any) -> tuple[int, int]:
    """Sequences that were found in the store, and computed."""
    stats = run.reference.stored.stats
    return stats.found, stats.computed


def sums(run: Any) -> list[float]:
    """Reference log-probs of the training data's rows, summed: all chosen sides, then all rejected ones."""
    batch = run.data_collator([run.train_dataset[row] for row in range(len(run.train_dataset))])
    return batch["ref_token_logps"].sum(dim=1).tolist()


def live_sums(run: Any) -> list[float]:
    """The same of TRL's live reference, of a trainer without a store."""
    batch = run.host.batch_of([run.train_dataset[row] for row in range(len(run.train_dataset))])
    chosen, rejected = run.compute_ref_log_probs(run.ref_model or run.model, batch)
    return [*chosen.tolist(), *rejected.tolist()]
