"""What the launched tests of scores run in every process: functions of a job's folder and its settings."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset

from tests.support import scoring
from trl_dpo_ext import score_preferences
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.reference.precompute import stored
from trl_dpo_ext.reference.store.store import Store


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


def score_and_die(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Score as above, until a part of the policy's log-probs is stored; then each process is killed at its next batch."""
    run = stored.sequence_logps

    def deadly(*given: Any) -> Any:
        if len(Store.read_only(folder / "work" / "adapter" / "policy")):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1.1)  # a part is written after a second
        return run(*given)

    stored.sequence_logps = deadly
    return score(folder, settings)


def command(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Run a command line; its process group is taken down at the end, so that nothing of a trainer is recorded."""
    status = cli.main(settings["argv"])
    sys.modules["__main__"].TRAINERS.clear()
    return {"status": status}
