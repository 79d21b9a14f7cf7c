"""What the launched tests of scores run in every process: functions of a job's folder and its settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from datasets import load_dataset

from tests.support import scoring
from trl_dpo_ext import score_preferences
from trl_dpo_ext.reference.precompute import stored


def score(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Score the pairs with an adapter, and with a full model against another; record what was run in which form."""
    pairs = load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train", cache_dir=str(folder / "cache"))
    ran: list[str] = []
    run = stored.sequence_logps

    def watched(model: Any, *rest: Any) -> Any:
        ran.append(type(model).__name__)
        return run(model, *rest)

    stored.sequence_logps = watched
    args = scoring.config(folder / "out", use_cpu=False, gradient_checkpointing=False, **settings)
    found = {}
    for name, more in {"adapter": {}, "policy": {"reference": str(folder / "base")}}.items():
        work = folder / "work" / name
        result = score_preferences(str(folder / name), pairs, args=args, work_dir=work, **more)
        sums = {of: scoring.sums(result.pairs, of).tolist() for of in ("policy", "ref")}
        found[name] = {**sums, "passes": result.scored.described["passes"], "ran": sorted({*ran})}
        ran.clear()
    sys.modules["__main__"].TRAINERS.clear()  # their models are not wrapped for training
    return {"scores": found, "processes": args.world_size}
