"""Features of datasets, batches and evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import EarlyStoppingCallback, EvalPrediction, PreTrainedTokenizerFast
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tests.support import tiny

from . import vision
from .feature import BIT_FOR_BIT, Differs, Feature, Refused, Run

TOOLS = [{"type": "function", "function": {"name": "color", "parameters": {"type": "object", "properties": {}}}}]
_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool['function']['name'] + ' ' }}{% endfor %}"
    "{% if short %}{{ 'short ' }}{% endif %}" + tiny.CHAT_TEMPLATE
)
_EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4}
_ONE_SET = {"eval_dataset": tiny.preferences(4), **_EVALUATED}
_IMAGES = {"max_length": None, "per_device_train_batch_size": 4}
_IN_WHOLE_ROWS = Refused(
    "image tokens are looked for in whole rows", "(share_prompt|padding_free) cannot be used with images"
)


def _tokenizer() -> PreTrainedTokenizerFast:
    """With a template that shows tools, and `short`."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _conversations(column: str, value: Callable[[int], Any]) -> dict[str, Any]:
    rows = tiny.preferences(8, conversational=True)
    return {"train_dataset": Dataset.from_list([{**row, column: value(i)} for i, row in enumerate(rows)])}


def _implicit_prompts() -> Dataset:
    sides = ("chosen", "rejected")
    return Dataset.from_list([{side: row["prompt"] + row[side] for side in sides} for row in tiny.preferences()])


class OwnCollator(DataCollatorForPreference):
    """Trains on completions without their first token."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        first = batch["completion_mask"].cumsum(dim=1) == 1
        batch["completion_mask"] = batch["completion_mask"].masked_fill(first, 0)
        return batch


def _after_its_reference_pass(trainer: Any) -> None:
    """A stream is stored on request."""
    if getattr(getattr(trainer, "reference", None), "is_stored", False):
        trainer.precompute_reference()
    trainer.train()


def _mean_prediction(prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
    return {"mean": float(np.mean(np.asarray(prediction.predictions, dtype=np.float64)))} if compute_result else {}


def _best(trainer: Any) -> tuple[Any, ...]:
    return trainer.state.best_global_step, trainer.state.global_step


def _counts_pairs(ours: Run, other: Run) -> None:
    """Training is TRL's; in evaluation three pairs weigh a third each, and not a quarter, a quarter and a half."""
    for mine, theirs in zip(ours.logs, other.logs, strict=True):
        if "eval_loss" not in theirs:
            BIT_FOR_BIT.check_line(mine, theirs)
        else:
            assert mine["eval_loss"] == theirs["eval_loss"]  # of transformers, which counts pairs
            assert mine["eval_rewards/accuracies"] in (0, 1 / 3, 2 / 3, 1)
            assert abs(mine["eval_logps/rejected"] - theirs["eval_logps/rejected"]) > 0.1


def _longest_first(ours: Run, _: Run) -> None:
    """As transformers groups rows: within each two of them the longer one is first, and so is the longest of all."""
    counted = [line["num_tokens"] for line in ours.logs if "num_tokens" in line]
    rows = np.diff([0, *counted])
    assert rows[0] == rows.max() > rows.min()
    assert (rows[0::2] >= rows[1::2]).all()


DATA = [
    Feature("`pad_to_multiple_of`", {"pad_to_multiple_of": 16}),
    Feature("`dataset_num_proc`", {"dataset_num_proc": 2}),
    Feature("`max_length`", {"max_length": 10}),
    Feature("`max_length=None`", {"max_length": None}),
    Feature("`truncation_mode=keep_end`", {"max_length": 10, "truncation_mode": "keep_end"}),
    Feature("conversations", {"train_dataset": tiny.preferences(8, conversational=True)}),
    Feature(
        "column `tools`", {**_conversations("tools", lambda _: json.dumps(TOOLS)), "processing_class": _tokenizer()}
    ),
    Feature(
        "column `chat_template_kwargs`",
        {
            **_conversations("chat_template_kwargs", lambda row: {"short": row % 2 == 0}),
            "processing_class": _tokenizer(),
        },
    ),
    Feature("no column `prompt`", {"train_dataset": _implicit_prompts()}),
    Feature(
        "columns `image`, `images`",
        lambda _: {"processing_class": vision.processor(), "train_dataset": vision.preferences(), **_IMAGES},
        policy=vision.saved_model,
        share_prompt=_IN_WHOLE_ROWS,
        padding_free=_IN_WHOLE_ROWS,
    ),
    Feature(
        "streamed datasets",
        lambda _: {"train_dataset": tiny.preferences().to_iterable_dataset()},
        drive=_after_its_reference_pass,
    ),
    Feature("`remove_unused_columns=False`", {"remove_unused_columns": False}),
    Feature("`data_collator`", {"data_collator": OwnCollator(pad_token_id=0, max_length=12)}),
    Feature("`dataloader_num_workers`", {"dataloader_num_workers": 1}),
    Feature("`dataloader_drop_last`", {"dataloader_drop_last": True, "train_dataset": tiny.preferences(7)}),
    Feature("`train_sampling_strategy=sequential`", {"train_sampling_strategy": "sequential"}),
    Feature(
        "`train_sampling_strategy=group_by_length`",
        {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 1, "max_steps": 8},
        plain=Differs("TRL finds no lengths and stops", _longest_first),
        trl_fails=ValueError,
    ),
    Feature("`eval_dataset`", _ONE_SET),
    Feature(
        "`eval_dataset` in batches of unequal size",
        {"eval_dataset": tiny.preferences(3), **_EVALUATED, "per_device_eval_batch_size": 2},
        plain=Differs("each pair counts once, where TRL counts each batch once", _counts_pairs),
    ),
    Feature(
        "several evaluation sets (their losses)",
        {"eval_dataset": {"easy": tiny.preferences(4), "hard": tiny.preferences(2)}, **_EVALUATED},
        logged=lambda name: not name.startswith("eval_") or name.endswith("_loss"),
    ),
    Feature("`eval_on_start`", {**_ONE_SET, "eval_on_start": True}),
    Feature("`compute_metrics`", {**_ONE_SET, "compute_metrics": _mean_prediction}),
    Feature("`batch_eval_metrics`", {**_ONE_SET, "compute_metrics": _mean_prediction, "batch_eval_metrics": True}),
    Feature(
        "`include_for_metrics`",
        {**_ONE_SET, "compute_metrics": _mean_prediction, "include_for_metrics": ["inputs", "loss"]},
    ),
    Feature(
        "`eval_accumulation_steps`", {**_ONE_SET, "compute_metrics": _mean_prediction, "eval_accumulation_steps": 1}
    ),
    Feature("`prediction_loss_only`", {**_ONE_SET, "prediction_loss_only": True}),
    Feature("`bf16_full_eval`", {**_ONE_SET, "bf16_full_eval": True}),
    Feature(
        "`EarlyStoppingCallback`, `load_best_model_at_end`",
        {
            **_ONE_SET,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": True,  # so that the first is the best
            "callbacks": [EarlyStoppingCallback(1)],
            "max_steps": 5,
        },
        facts=_best,
    ),
    Feature(
        "`save_strategy=best`",
        {**_ONE_SET, "save_strategy": "best", "metric_for_best_model": "eval_rewards/margins"},
        facts=_best,
    ),
    Feature(
        "`lr_scheduler_type=reduce_lr_on_plateau`",
        {
            **_ONE_SET,
            "lr_scheduler_type": "reduce_lr_on_plateau",
            "lr_scheduler_kwargs": {"patience": 0},
            "metric_for_best_model": "eval_loss",
            "greater_is_better": True,
            "max_steps": 3,
        },
    ),
]
