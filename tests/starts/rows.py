"""Rows as users have them, and what reaches TRL of them."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from tests.support import runs
from trl_dpo_ext.data.prepare import checked_datasets
from trl_dpo_ext.errors import InputError


def system(text: str = "be short") -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str = "say yes") -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


YES, NO = answer("yes"), answer("no")
ROW = {"prompt": [user()], "chosen": [YES], "rejected": [NO]}
TEXTS = {"prompt": "say", "chosen": " yes", "rejected": " no"}


def prepared(rows: Any, **columns: str) -> tuple[Any, list[str]]:
    """What reaches TRL, and the warnings."""
    dataset = Dataset.from_list(rows, on_mixed_types="use_json") if isinstance(rows, list) else rows
    args = SimpleNamespace(
        gather_lists=False, texts_to_messages=False, dataset_columns=columns or None, precompute_ref_log_probs=False
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = checked_datasets({}, args, train_dataset=dataset)["train_dataset"]
    return found, [str(warning.message) for warning in caught]


def problems(rows: Any, **columns: str) -> str:
    with pytest.raises(InputError) as caught:
        prepared(rows, **columns)
    return str(caught.value)


def meaning(row: dict[str, Any]) -> dict[str, Any]:
    """Prompt and sides, without fields that `datasets` has added."""

    def plain(value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{name: field for name, field in message.items() if field is not None} for message in value]

    return {name: plain(row[name]) for name in ("prompt", "chosen", "rejected")}


def streamed(rows: list[dict[str, Any]]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


def construct(folder: Any, rows: list[dict], **settings: Any) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = runs.trainer(folder, train_dataset=Dataset.from_list(rows), loss_type="simpo", **settings)
    return trainer, [str(w.message) for w in caught if "dataset" in str(w.message)]
