"""Folders of runs, as trainers and watching write them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trl_dpo_ext.distributed.resumption import RUN_FILE
from trl_dpo_ext.run_files import ALARMS_FILE, LOG_FILE, METRICS_FILE, SAMPLES_FILE

HOSTILE = "</script><script>document.title='broken'</script> مرحبا 👩‍👩‍👧"


def entries(steps: int, every: int = 10, **changed: Any) -> list[dict[str, Any]]:
    """A log with a training entry for each step and an evaluation every few."""
    found: list[dict[str, Any]] = []
    for step in range(steps + 1):
        share = step / max(steps, 1)
        values = {
            "loss": 0.7 - 0.5 * share, "rewards/accuracies": 0.5 + 0.4 * share, "rewards/margins": 2 * share,
            "logps/chosen": -20 + 5 * share, "logps/rejected": -22 - 9 * share,
        } | changed  # fmt: skip
        if step:
            further = {"grad_norm": 1.0 + share, "learning_rate": 1e-5 * (1 - share)}
            found.append({**values, **further, "epoch": step / 20, "step": step})
        if step % every == 0:
            found.append({**{f"eval_{name}": v for name, v in values.items()}, "epoch": step / 20, "step": step})
    return found


def record(**changed: Any) -> dict[str, Any]:
    evaluated = {"": {"rows": 50, "fingerprint": changed.pop("evaluated", "50 rows, aaaa")}}
    beta = changed.pop("beta", 0.1)
    return {
        "losses": [{"name": changed.pop("loss", "sigmoid"), "weight": 1.0, "hyperparameters": {"beta": beta}}],
        "options": [],
        "model": "some/model",
        "trained": "all parameters",
        "reference": ["Model: the policy before training"],
        "data": {
            "train": {"names": ["some/data"], "rows": 99, "fingerprint": "99 rows, bbbb"},
            "evaluation": evaluated,
        },
        "batch": {"per_device": 4, "accumulation": 2, "processes": 1, "pairs_per_step": 8},
        "steps": {"max": changed.pop("max_steps", 40), "epochs": 2},
        "settings": {"learning_rate": 1e-5, **changed},
        "launch": None,
        "resumed_from": None,
        "versions": {},
    }


def write_lines(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_state(folder: Path, log: list[dict[str, Any]], **state: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"log_history": log, "max_steps": 40, "num_train_epochs": 2, "train_batch_size": 4, **state})
    (folder / "trainer_state.json").write_text(text)


def write_run(folder: Path, steps: int = 40, finished: bool = True, **changed: Any) -> Path:
    """A run of this package's trainer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN_FILE).write_text(json.dumps({"losses": "", "record": record(**changed)}))
    write_lines(folder / LOG_FILE, entries(steps))
    if finished:
        write_state(folder, entries(steps))
    return folder


def write_watched(folder: Path, prompts: Iterable[str] = ("What is it?", HOSTILE), steps: int = 40) -> Path:
    """What watching adds."""
    places = range(0, steps + 1, 10)
    write_lines(
        folder / METRICS_FILE,
        [
            {
                "step": step, "epoch": step / 20, "evaluated": True, "pairs": 50, "accuracy": 0.5 + step / 100,
                "margin": step / 20, "watch/chosen_logp_per_token": -1.5 + step / 100,
                "watch/rejected_logp_per_token": -2.0 - step / 50, "watch/kl_per_token": step / 100,
                "watch/length": 10 + step, "watch/eos_rate": 1.0, "watch/repetition": 0.0,
            }
            for step in places
        ],
    )  # fmt: skip
    write_lines(
        folder / SAMPLES_FILE,
        [
            {
                "step": step, "epoch": step / 20, "prompt_id": at, "prompt": prompt, "completion_ids": [1],
                "completion": f"{HOSTILE} is {'new' if step > 20 else 'old'} <eos>", "ended": True, "length": 4,
                "repetition": 0.0, "logp": -1.0, "ref_logp": -1.0,
            }
            for step in places for at, prompt in enumerate(prompts)
        ],
    )  # fmt: skip
    fired = {"name": "kl_high", "value": 0.2, "start": 0.0, "threshold": 0.1, "message": HOSTILE, "stopped": False}
    write_lines(
        folder / ALARMS_FILE,
        [{"step": 10, "epoch": 0.5, **fired, "fired": False}, {"step": 20, "epoch": 1.0, **fired, "fired": True}],
    )
    return folder
