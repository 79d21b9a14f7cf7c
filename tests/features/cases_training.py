"""Features of the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from tests.support import tiny

from .feature import HALF, ROUNDING, STEEP, Differs, Feature, Refused, Run

COMPILED = Refused("hooks on a compiled model are ignored", "cannot be used with torch_compile=True")
NOT_STORED = Refused("stored log-probs do not follow the reference", "cannot be used with sync_ref_model=True")
WITHOUT_EFFECT = Refused("it has no effect in TRL", "label_smoothing_factor=0.1 has no effect")
NOISE_BY_LENGTH = Refused(
    "NEFTune scales its noise by the length of a row", "cannot be used with neftune_noise_alpha=5.0"
)
_EAGER = {"torch_compile": True, "torch_compile_backend": "eager"}
STARTING_EVALUATION = {
    "eval_dataset": tiny.preferences(4),
    "eval_on_start": True,
    "eval_strategy": "steps",
    "eval_steps": 99,
}


def _equal_until_trained(ours: Run, other: Run) -> None:
    """Without dropout, at the evaluation before the first step, both are equal; in training each draws its own."""
    ROUNDING.check_line(ours.logs[0], other.logs[0])
    assert ours.logs[0]["eval_loss"] > 0
    mine, theirs = ([line["loss"] for line in run.logs if "loss" in line] for run in (ours, other))
    assert mine != theirs
    assert mine == pytest.approx(theirs, abs=0.2)


OTHER_DRAWS = Differs("dropout draws other numbers for rows of another shape", _equal_until_trained)


class OutOfMemoryOnce(TrainerCallback):
    """Reports a full device after the first step, once."""

    raised = False

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if not self.raised:
            self.raised = True
            raise RuntimeError("CUDA out of memory.")


class Events(TrainerCallback):
    """Notes what it is told of."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda *_, **__: self.seen.append(name)


def _callback(trainer: Any, kind: type) -> Any:
    return next(each for each in trainer.callback_handler.callbacks if isinstance(each, kind))


def _with_optimizer(folder: Path) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    return {"model": model, "optimizers": (optimizer, schedule)}


def _interrupted(trainer: Any) -> None:
    trainer.train()
    trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-1")


OPTIMIZERS = ("adafactor", "adagrad", "adamw_8bit", "ademamix", "lion_8bit", "lion_32bit", "paged_adamw_32bit")
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {},
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr": 1e-3}},
    "warmup_stable_decay": {"warmup_steps": 1, "lr_scheduler_kwargs": {"num_decay_steps": 1}, "max_steps": 3},
    "constant_with_warmup": {"warmup_steps": 1},
}

TRAINING = [
    Feature("the defaults", {}),
    Feature("`gradient_checkpointing`, not reentrant", {"gradient_checkpointing": True}),
    Feature(
        "`gradient_checkpointing`, reentrant",
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ),
    Feature("`gradient_accumulation_steps`", {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    Feature("`torch_compile`", _EAGER, share_prompt=COMPILED, padding_free=COMPILED),
    Feature(
        "`bf16`",
        {"bf16": True, "optim": "sgd", "learning_rate": 0.1},
        share_prompt=HALF,
        store=HALF,
        padding_free=HALF,
    ),
    Feature("`max_grad_norm`", {"max_grad_norm": 0.1}),
    Feature(
        "`sync_ref_model`",
        {"sync_ref_model": True, "ref_model_sync_steps": 1, "max_steps": 3},
        store=NOT_STORED,
    ),
    Feature(
        "`neftune_noise_alpha`",
        {"neftune_noise_alpha": 5.0},
        share_prompt=NOISE_BY_LENGTH,
        padding_free=NOISE_BY_LENGTH,
    ),
    Feature(
        "`disable_dropout=False`",
        {"disable_dropout": False, "model_init_kwargs": {"attention_dropout": 0.2}, **STARTING_EVALUATION},
        share_prompt=OTHER_DRAWS,
        padding_free=OTHER_DRAWS,
    ),
    Feature(
        "`label_smoothing_factor`",
        {"label_smoothing_factor": 0.1},
        plain=WITHOUT_EFFECT,
        share_prompt=WITHOUT_EFFECT,
        store=WITHOUT_EFFECT,
        padding_free=WITHOUT_EFFECT,
    ),
    *(Feature(f"`optim={name}`", {"optim": name}) for name in OPTIMIZERS),
    Feature("`optim=sgd`", {"optim": "sgd", "learning_rate": 0.1}),
    Feature("`optim=rmsprop`", {"optim": "rmsprop"}, share_prompt=STEEP, store=STEEP, padding_free=STEEP),
    Feature("`optim_args`, `weight_decay`", {"optim": "ademamix", "optim_args": "alpha=2.0", "weight_decay": 0.1}),
    Feature("`optimizers`", _with_optimizer),
    *(Feature(f"`lr_scheduler_type={name}`", {"lr_scheduler_type": name, **each}) for name, each in SCHEDULES.items()),
    Feature("`torch_empty_cache_steps`", {"torch_empty_cache_steps": 1}),
    Feature("`logging_nan_inf_filter=False`", {"logging_nan_inf_filter": False}),
    Feature(
        "`include_num_input_tokens_seen`",
        {"include_num_input_tokens_seen": "non_padding"},
        facts=lambda trainer: trainer.state.num_input_tokens_seen,
    ),
    Feature("`seed`, `data_seed`", {"seed": 7, "data_seed": 8}),
    Feature("`num_train_epochs`", {"max_steps": -1, "num_train_epochs": 1.5}),
    Feature(
        "`auto_find_batch_size`",
        {"auto_find_batch_size": True, "callbacks": [OutOfMemoryOnce()]},
        facts=lambda trainer: (trainer.state.train_batch_size, _callback(trainer, OutOfMemoryOnce).raised),
    ),
    Feature("`resume_from_checkpoint`", {"save_strategy": "steps", "save_steps": 1}, drive=_interrupted),
    Feature("`callbacks`", {"callbacks": [Events()]}, facts=lambda trainer: _callback(trainer, Events).seen),
    Feature(
        "`loss_type`, `loss_weights`", {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
    ),
    Feature("`ld_alpha`", {"ld_alpha": 0.5}),
    Feature("`f_divergence_type`", {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3}),
    Feature("`use_weighting`", {"use_weighting": True}),
    Feature("`label_smoothing`", {"loss_type": ["robust"], "label_smoothing": 0.1}),
    Feature(
        "`discopop_tau`, `beta`",
        {"loss_type": ["discopop"], "discopop_tau": 0.1, "beta": 0.3},
        share_prompt=STEEP,
        store=STEEP,
        padding_free=STEEP,
    ),
]
