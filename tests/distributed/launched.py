"""What the launched tests run in every process: functions of a job's folder and its settings (see on_cpu.py)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import runs
from datasets import load_dataset
from trl import DPOTrainer

from trl_dpo_ext import DPOExtTrainer


def trainer(folder: Path, settings: dict[str, Any]) -> Any:
    """A trainer of ours, or of TRL's for kind="trl", on the model and the pairs that the test left in the folder."""
    settings = {"use_cpu": False, **settings}  # on_cpu.py stands in for GPUs
    kind = DPOTrainer if settings.pop("kind", "ours") == "trl" else DPOExtTrainer
    cache = str(folder / "cache")
    data = {
        "train_dataset": load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train", cache_dir=cache)
    }
    held_out = folder / "held_out.jsonl"
    if held_out.is_file():
        data["eval_dataset"] = load_dataset("json", data_files=str(held_out), split="train", cache_dir=cache)
    if "lora" in settings:
        from peft import LoraConfig

        data["peft_config"] = LoraConfig(task_type="CAUSAL_LM", **settings.pop("lora"))
    return runs.trainer(folder / "out", kind, model=str(folder / "model"), **data, **settings)


def train(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and record the losses' running state."""
    resume = settings.pop("resume", None)
    run = trainer(folder, settings)
    run.train(resume_from_checkpoint=resume)
    return {"loss_state": run.mixture.state_dict() if isinstance(run, DPOExtTrainer) else {}}


def train_plain(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train as if accelerate had not been asked to split the model."""
    os.environ.pop("ACCELERATE_USE_FSDP")
    return train(folder, settings)
