"""What TRL's collator builds, and what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import torch
from datasets import Dataset
from trl.trainer import dpo_trainer

from .models import ModelSeams

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
"""Seam: the batch keys in which TRL expects precomputed reference log-probs, each (pairs,)."""

COMPLETION_MASK = "completion_mask"
"""Seam: the batch key of the (rows, tokens) mask of completion tokens; rows = 2 x pairs, chosen half first."""

COMPLETION_IDS = {"chosen": "chosen_ids", "rejected": "rejected_ids"}
"""Seam: the columns in which TRL keeps a row's tokenized completions, EOS included."""

TOKEN_IDS = ("prompt_ids", *COMPLETION_IDS.values())
"""Seam: the columns in which TRL keeps a row's tokens."""

IMAGE_COLUMNS = ("image", "images")
"""The columns from one of which TRL takes a row's images."""

IMAGE_ROW_COLUMNS = ("prompt", "chosen", "rejected", *IMAGE_COLUMNS, "tools", "chat_template_kwargs")
"""Seam: the columns of a row with images that TRL's collator may read."""


def is_transformed(dataset: Any) -> TypeGuard[Dataset]:
    """Whether a user's function makes the rows of a dataset when they are read.

    Seam: `set_transform` and `with_transform` of `datasets` set a format of the type `custom`.
    """
    return isinstance(dataset, Dataset) and dataset.format["type"] == "custom"


def column_names(dataset: Any) -> list[str]:
    """The names of a dataset's columns, in their order; those of the first row where only that tells.

    This is so of a stream that does not know them, and of a dataset with a transform.
    """
    names = None if is_transformed(dataset) else getattr(dataset, "column_names", [])
    return list(next(iter(dataset), {}) if names is None else names)


def image_columns(names: Iterable[str]) -> list[str]:
    """Those of a row's columns that hold images."""
    return [name for name in IMAGE_COLUMNS if name in {*names}]


def is_tokenized(dataset: Any) -> bool:
    """Whether a dataset has TRL's columns of token ids."""
    return not is_transformed(dataset) and set(TOKEN_IDS) <= set(column_names(dataset))


def keeps_end(collator: Any) -> bool:
    """Whether truncation removes the start of a sequence instead of its end.

    Seam: the collator truncates to `max_length`, by the mode in `truncation_mode`.
    """
    return getattr(collator, "truncation_mode", "keep_start") == "keep_end"


def reads_token_ids(collator: Any) -> bool:
    """Whether a collator is TRL's own, whose sequences are prompt and completion of the columns of token ids.

    Seam: `DataCollatorForPreference` reads nothing else, and cuts the two together to its `max_length`, if it has one.
    """
    return type(collator) is dpo_trainer.DataCollatorForPreference


def labels_of(inputs: Mapping[str, Any]) -> torch.Tensor:
    """The labels that TRL gives a model, (rows, tokens): token ids in completions, -100 elsewhere."""
    return inputs["input_ids"].masked_fill(inputs[COMPLETION_MASK] == 0, -100)


class BatchSeams(ModelSeams):
    """How a trainer prepares its data."""

    @property
    def has_images(self) -> bool:
        """Whether rows have images, so that the collator prepares them.

        Seam: `_is_vision_dataset`, whether the first row of the training data has a column of images.
        """
        return self.trainer._is_vision_dataset

    def prepared(self, dataset: Any) -> Any:
        """Tokenize a dataset, or a dictionary of them, as TRL does.

        Seam: `_prepare_dataset(dataset, processing_class, args, name)`, which leaves tokenized data as it is. Data with
        images is prepared by the collator instead.
        """
        if self.has_images:
            return dataset
        if isinstance(dataset, dict):
            return {name: self._prepared(part, name) for name, part in dataset.items()}
        return self._prepared(dataset, "eval")

    def _prepared(self, dataset: Any, name: str) -> Any:
        return self.trainer._prepare_dataset(dataset, self.trainer.processing_class, self.trainer.args, name)

    @property
    def pad_token_id(self) -> int:
        """The token that fills rows up to the longest; any token if the tokenizer has none, for it is masked.

        Seam: `_tokenizer` is the processing class, or its tokenizer if it is a processor.
        """
        return self.trainer._tokenizer.pad_token_id or 0

    def collated_columns(self) -> list[str] | None:
        """The dataset columns that the collator is given; None for all.

        Seam: `_signature_columns` lists them, once `_set_signature_columns_if_needed` has run.
        """
        if not self.trainer.args.remove_unused_columns:
            return None
        self.trainer._set_signature_columns_if_needed()
        return list(self.trainer._signature_columns)

    def unsupported_inputs(self) -> list[str]:
        """Reasons why models cannot be fed rows of ours, but for images, which `late_refusals` names before.

        Seam: context and sequence parallelism cut the batch before the loss sees it; hooks on compiled models are
        ignored.
        """
        parallel = self.trainer.accelerator.parallelism_config
        split = [name for name in ("cp_size", "sp_size") if getattr(parallel, name, 1) > 1]
        problems = [f"{name}={getattr(parallel, name)} splits sequences" for name in split]
        return problems + self.compilation_problems()

    def batch_of(self, rows: list[Any]) -> dict[str, Any]:
        """Collate rows of the training dataset and move them to this process's device."""
        return self.on_device(self.trainer.data_collator(rows))

    def on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a collated batch to this process's device, in the dtype of an engine that has one.

        Seam: `_prepare_inputs(batch)` of transformers' `Trainer`.
        """
        return self.trainer._prepare_inputs(batch)
