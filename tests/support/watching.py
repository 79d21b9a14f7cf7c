"""Watched runs, and what they have written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from tests.support import runs, tiny
from trl_dpo_ext.watch.sampled import Sampled

EVERY_TWO = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "watch": True,
    "watch_prompts": 0,
    "per_device_eval_batch_size": 80,
}


def watched(folder: Path, sampler: Any = None, **settings: Any) -> Any:
    """A run that was watched at every second step, or as the settings say."""
    settings.setdefault("eval_dataset", tiny.preferences(8))
    run = runs.trainer(folder, **{**EVERY_TWO, **settings})
    if sampler is not None:
        run.new_sampler = lambda: sampler
    run.train()
    return run


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / "watch" / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def fired(folder: Path) -> list[str]:
    """Names of the alarms that have fired, in order."""
    return list(dict.fromkeys(line["name"] for line in lines(folder, "alarms")))


def swapped(data: Dataset) -> Dataset:
    """The same pairs with their sides exchanged."""
    return data.rename_columns({"chosen": "_"}).rename_columns({"rejected": "chosen", "_": "rejected"})


def undecided(rows: int) -> Dataset:
    """Every pair both ways around, so that no policy ranks more than half of them right."""
    half = tiny.preferences(rows // 2)
    return concatenate_datasets([half, swapped(half).select_columns(half.column_names)])


class Scripted:
    """A sampler that gives the metrics it was told to, one entry for each time."""

    def __init__(self, series: Sequence[Mapping[str, float]]) -> None:
        self.series, self.steps = list(series), []

    def begin(self, step: int) -> None:
        """Write no file."""

    def sample(self, step: int) -> Sampled:
        self.steps.append(step)
        values = dict(self.series[min(len(self.steps), len(self.series)) - 1])
        row = {"prompt_id": "a1", "prompt": "say yes", "completion": f"answer {len(self.steps)} <eos>", "ended": True}
        return Sampled(values, [row], kl="exact")
