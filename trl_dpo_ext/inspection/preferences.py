"""`inspect_preferences`: preference data as the trainer will see it, before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from .. import _trl
from ..data.findings import NOTE, Finding, gravest_first, gravity
from ..result_heading import result_heading
from ..statistics import finite
from .blocks import split_blocks
from .overlap import overlap
from .result import Inspection
from .split import InspectedSplit
from .token_kinds import TokenKinds


def inspect_preferences(
    dataset: Any,
    tokenizer: Any,
    args: Any,
    *,
    subset_column: str | None = None,
    ignore: Iterable[str] = (),
    examples: int = 3,
    eos_ids: Iterable[int] = (),
    images: bool = False,
    described: Mapping[str, Any] | None = None,
) -> Inspection:
    """Convert, tokenize and truncate preference data as a run does, and say what comes of it.

    Args:
        dataset: a training dataset, or a dictionary with `train` and `test`.
        tokenizer: the run's tokenizer, or processor.
        args: the run's `DPOExtConfig`: lengths, batch size, losses, `dataset_columns`, `ignore_findings`.
        subset_column: column by whose values the length bias is given, too.
        ignore: names of findings that are intended.
        examples: how many rows are shown: the first one, and one of each of the gravest findings.
        eos_ids: further tokens that end a sequence, such as those of the model's generation configuration.
        images: whether every image is processed to count its tokens; otherwise the texts beside images are counted.
        described: what else the result says about its `arguments`, such as names.

    Raises:
        InputError: the data cannot be tokenized.

    Example:
        >>> from trl_dpo_ext import inspect_preferences
        >>> inspect_preferences(dataset, tokenizer, DPOExtConfig("out", max_length=512))  # doctest: +SKIP
    """
    splits = dict(dataset) if isinstance(dataset, dict) else {"train": dataset}
    ignored = {*ignore, *args.ignore_findings}
    inspected: dict[str, InspectedSplit] = {}
    for name, part in splits.items():
        inspected[name] = InspectedSplit.of(name, part, tokenizer, args, TokenKinds(tokenizer, eos_ids), images)
    tables = {name: split.table for name, split in inspected.items() if split.table is not None}
    found = {name: split.findings for name, split in inspected.items()}
    shared = None
    if {"train", "test"} <= set(tables):
        shared, more = overlap(tables["test"], tables["train"])
        found["test"] = gravest_first([*found["test"], *more])
    data = {
        **result_heading("inspect", "trl", "transformers", "datasets", "tokenizers"),
        "arguments": {**_arguments(tokenizer, args), "subset_column": subset_column, **(described or {})},
        "splits": {
            name: {**split.described(args), **(split_blocks(split.table, args, subset_column) if split.table else {})}
            for name, split in inspected.items()
        },
        "overlap": shared,
        "findings": _as_json(found, ignored),
        "examples": [],
    }
    result = Inspection(finite(data), tables, found)
    result.data["examples"] = _examples(result, examples)
    return result


def _arguments(tokenizer: Any, args: Any) -> dict[str, Any]:
    template = getattr(tokenizer, "chat_template", None)
    return {
        "max_length": args.max_length,
        "truncation_mode": args.truncation_mode,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "share_prompt": args.share_prompt,
        "loss_type": [str(spec) for spec in args.loss_type],
        "dataset_columns": args.dataset_columns,
        "chat_template": hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else None,
        "tokenizer": getattr(_trl.tokenizer_of(tokenizer), "name_or_path", None),
    }


def _as_json(found: Mapping[str, list[Finding]], ignored: set[str]) -> list[dict[str, Any]]:
    listed = [(split, finding) for split, findings in found.items() for finding in findings]
    listed.sort(key=lambda item: gravity(item[1]))
    return [
        {
            "name": finding.name,
            "level": finding.level,
            "split": split,
            "count": finding.count,
            "total": finding.total,
            "share": finding.share,
            "rows": [int(row) for row in finding.rows[:5]],
            "sentence": finding.sentence,
            "remedy": finding.remedy,
            "ignored": finding.name in ignored,
        }
        for split, finding in listed
    ]


def _examples(result: Inspection, most: int) -> list[dict[str, Any]]:
    """The first row, and one of each of the gravest findings."""
    chosen: dict[tuple[str, int], None] = {}
    for split, table in list(result.tables.items())[:1]:
        chosen[(split, int(table.numbers[0]))] = None
    for finding in result.data["findings"]:
        table = result.tables.get(finding["split"])
        if table is None or finding["level"] == NOTE or finding["ignored"] or finding["name"] == "dropped":
            continue
        kept = set(table.numbers.tolist())
        new = [
            (finding["split"], row) for row in finding["rows"] if row in kept and (finding["split"], row) not in chosen
        ]
        if new and finding["share"] < 1:
            chosen[new[0]] = None
    picked = list(chosen)[:most]
    return [row for split, number in picked for row in result.rows([number], split, whole=False)]
