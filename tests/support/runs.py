"""Trainers on the tiny model, with the settings that keep a run short and silent."""

from __future__ import annotations

from typing import Any

import torch
from trl import DPOConfig, DPOTrainer

from tests.support import tiny
from trl_dpo_ext import DPOExtConfig, DPOExtTrainer

QUIET = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "bf16": False,
    "use_cpu": True,
    "disable_tqdm": True,
}


def config(folder: Any, kind: type = DPOExtConfig, **settings: Any) -> Any:
    return kind(output_dir=str(folder), **{**QUIET, **settings})


def trainer(folder: Any, kind: type = DPOExtTrainer, model: Any = None, **settings: Any) -> Any:
    """A trainer of TRL's or of ours; keywords of the trainer itself are taken out of `settings`."""
    names = ("ref_model", "train_dataset", "eval_dataset", "peft_config", "quantization_config", "data_collator")
    names += ("compute_metrics", "callbacks", "optimizers", "processing_class")
    keywords = {name: settings.pop(name) for name in names if name in settings}
    keywords.setdefault("train_dataset", tiny.preferences())
    args = config(folder, DPOConfig if kind is DPOTrainer else DPOExtConfig, **settings)
    keywords.setdefault("processing_class", tiny.tokenizer())
    return kind(tiny.model() if model is None else model, args=args, **keywords)


def trained(folder: Any, kind: type = DPOExtTrainer, **settings: Any) -> Any:
    run = trainer(folder, kind, **settings)
    run.train()
    return run


def logs(run: Any) -> list[dict[str, Any]]:
    """What was logged, without what depends on the clock."""
    timed = ("runtime", "per_second", "flos")
    return [{k: v for k, v in line.items() if not any(word in k for word in timed)} for line in run.state.log_history]


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}
