"""Trains a mixture on the tiny model in however many processes it is launched with, and writes what came of it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import runs
import torch
from datasets import load_dataset
from trl import DPOTrainer

from trl_dpo_ext import DPOExtTrainer


def main(folder: Path, settings: dict) -> None:
    kind = DPOTrainer if settings.pop("kind", "ours") == "trl" else DPOExtTrainer
    pairs = load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train", cache_dir=str(folder / "cache"))
    trainer = runs.trainer(folder / "out", kind, model=str(folder / "model"), train_dataset=pairs, **settings)
    engine = str(trainer.accelerator.distributed_type)
    trainer.train()
    wrapped = type(trainer.model_wrapped).__name__
    if trainer.accelerator.is_main_process:
        weights = {name: tensor.clone().contiguous() for name, tensor in runs.weights(trainer).items()}
        torch.save(weights, folder / "weights.pt")
        state = trainer.mixture.state_dict() if kind is DPOExtTrainer else {}
        record = {
            "engine": engine,
            "processes": trainer.accelerator.num_processes,
            "wrapped": wrapped,
            "logs": runs.logs(trainer),
            "loss_state": state,
        }
        (folder / "record.json").write_text(json.dumps(record))
    trainer.accelerator.wait_for_everyone()
    # Taken down in order, a gloo group now and then waits for ever on a thread of its own; everything is written by now.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
