"""What the collator builds, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
"""Seam: the batch keys in which TRL expects stored reference log-probs, each (pairs,)."""


COMPLETION_MASK = "completion_mask"
"""Seam: the batch key of the (rows, tokens) mask of completion tokens; rows = 2 x pairs, chosen half first."""


COMPLETION_IDS = {"chosen": "chosen_ids", "rejected": "rejected_ids"}
"""Seam: the columns in which TRL keeps a row's tokenized completions, EOS included."""


TOKEN_IDS = ("prompt_ids", *COMPLETION_IDS.values())
"""Seam: the columns in which TRL keeps a row's tokens."""


def keeps_end(collator: Any) -> bool:
    """Whether a row that is too long loses its start instead of its end.

    Seam: the collator truncates to `max_length`, by the mode in `truncation_mode`.
    """
    return getattr(collator, "truncation_mode", "keep_start") == "keep_end"


def prepared(trainer: Any, dataset: Any) -> Any:
    """A dataset, or a dictionary of them, tokenized as TRL does it.

    Seam: `_prepare_dataset(dataset, processing_class, args, name)`, which leaves tokenized data as it is.
    """
    if isinstance(dataset, dict):
        return {
            name: trainer._prepare_dataset(d, trainer.processing_class, trainer.args, name)
            for name, d in dataset.items()
        }
    return trainer._prepare_dataset(dataset, trainer.processing_class, trainer.args, "eval")


def collated_columns(trainer: Any) -> list[str] | None:
    """The dataset columns that the collator is given; None for all.

    Seam: `_signature_columns` lists them, once `_set_signature_columns_if_needed` has run.
    """
    if not trainer.args.remove_unused_columns:
        return None
    trainer._set_signature_columns_if_needed()
    return list(trainer._signature_columns)


def unsupported_inputs(trainer: Any) -> list[str]:
    """What keeps a batch from being whole sequences of tokens and nothing else.

    Seam: `_is_vision_dataset`; context and sequence parallelism cut the batch before the loss sees it.
    """
    problems = ["the dataset has images, which stand in the prompt"] if trainer._is_vision_dataset else []
    parallel = trainer.accelerator.parallelism_config
    split = [name for name in ("cp_size", "sp_size") if getattr(parallel, name, 1) > 1]
    return problems + [f"{name}={getattr(parallel, name)} cuts sequences into parts" for name in split]


def labels_of(inputs: Mapping[str, Any]) -> torch.Tensor:
    """The labels that TRL gives a model, (rows, tokens): token ids in completions, -100 elsewhere."""
    return inputs["input_ids"].masked_fill(inputs[COMPLETION_MASK] == 0, -100)
