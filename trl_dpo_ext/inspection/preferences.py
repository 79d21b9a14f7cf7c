"""`inspect_preferences`: preference data as the trainer will see it, before anything is trained."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from .. import _trl
from ..checks.tokenizers import tokenizer_problems
from ..core.registry import list_losses
from ..data.columns import loss_columns
from ..data.findings import ERROR, LEVELS, NOTE, ROW, Finding, by_number, gravest_first
from ..data.prepare import checked_datasets, with_fitting_tool_calls
from ..data.tokenized import unprinted
from ..errors import InputError
from .blocks import split_blocks
from .overlap import overlap
from .pair_table import COLUMNS, PROMPTS_TOKENIZED, PairTable, check_truncation, numbered, pair_table
from .row_view import even_sample, row_views, short
from .rules import find
from .statistics import finite
from .token_kinds import TokenKinds

_READ_BY_TRL = (*COLUMNS, "tools", "chat_template_kwargs", "image", "images", "ref_chosen_logps", "ref_rejected_logps")
_VERSIONS = ("trl", "transformers", "datasets", "tokenizers")


@dataclass
class Inspection:
    """What `inspect_preferences` found; `data` is what JSON, terminal and page show."""

    data: dict[str, Any]
    """`kind`, `format`, `versions`, `date`, `arguments`, `splits` (blocks of statistics each), `overlap`, `findings`,
    `examples`."""
    tables: dict[str, PairTable] = field(default_factory=dict, repr=False)
    """The measured rows of each split."""
    found: dict[str, list[Finding]] = field(default_factory=dict, repr=False)
    """The findings of each split, with all their rows."""

    def json(self) -> str:
        """Return `data` as JSON text."""
        return json.dumps(self.data, ensure_ascii=False, allow_nan=False, indent=1)

    def worst(self) -> str | None:
        """Return the gravest level of a finding that is not ignored; None where there is none."""
        levels = [each["level"] for each in self.data["findings"] if not each["ignored"]]
        return max(levels, key=LEVELS.index, default=None)

    def rows(self, numbers: Sequence[int], split: str = "train") -> list[dict[str, Any]]:
        """Return some rows with token ids, texts and findings.

        Args:
            numbers: of the rows in the loaded split, counted from 0.
            split: `train` or `test`.

        Raises:
            InputError: a row does not exist, or was dropped.
        """
        table = self.tables[split]
        places = {int(number): place for place, number in enumerate(table.numbers)}
        problems = []
        for number in numbers:
            if number in places:
                continue
            why = f"does not exist; there are {table.loaded}" if number >= table.loaded else "was dropped"
            why += ": its prompt alone fills max_length" if np.isin(number, table.dropped) else ""
            problems.append(f"Row {number} of the {split} split {why}.")
        if problems:
            raise InputError(*problems)
        return finite(row_views(table, split, [places[number] for number in numbers], self.found[split]))

    def rows_with(self, name: str, most: int) -> list[dict[str, Any]]:
        """Return the first rows that have a finding; of the training split first.

        Args:
            name: of the finding.
            most: how many rows, at most.
        """
        rows: list[dict[str, Any]] = []
        for split, table in self.tables.items():
            kept = set(table.numbers.tolist())
            of_split = [number for f in self.found[split] if f.name == name for number in f.rows if number in kept]
            rows += self.rows(of_split[: most - len(rows)], split)
        return rows

    def sample(self, most: int) -> list[dict[str, Any]]:
        """Return rows for a page: first those with findings, at most half of them for one finding, then others.

        Args:
            most: how many rows, at most.
        """
        chosen: dict[str, dict[int, None]] = {split: {} for split in self.tables}
        for split, table in self.tables.items():
            kept = set(table.numbers.tolist())
            for finding in self.found[split]:
                for number in itertools.islice((each for each in finding.rows if each in kept), max(most // 2, 1)):
                    if sum(map(len, chosen.values())) < most:
                        chosen[split][number] = None
        for split, table in self.tables.items():
            left = most - sum(map(len, chosen.values()))
            others = [number for number in table.numbers.tolist() if number not in chosen[split]]
            chosen[split] |= dict.fromkeys(others[place] for place in even_sample(len(others), left) if left > 0)
        return [row for split, numbers in chosen.items() for row in self.rows(sorted(numbers), split)]

    def _repr_html_(self) -> str:
        from .terminal import as_html

        return as_html(self.data)


def inspect_preferences(
    dataset: Any,
    tokenizer: Any,
    args: Any,
    *,
    subset_column: str | None = None,
    ignore: Iterable[str] = (),
    examples: int = 3,
    eos_ids: Iterable[int] = (),
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
        described: what else the result says about its `arguments`, such as names.

    Raises:
        InputError: the data cannot be tokenized.

    Example:
        >>> from trl_dpo_ext import inspect_preferences
        >>> inspect_preferences(dataset, tokenizer, DPOExtConfig("out", max_length=512))  # doctest: +SKIP
    """
    splits = dict(dataset) if isinstance(dataset, dict) else {"train": dataset}
    ignored = {*ignore, *args.ignore_findings}
    inspected: dict[str, _Split] = {}
    for name, part in splits.items():
        inspected[name] = _Split.of(name, part, tokenizer, args, TokenKinds(tokenizer, eos_ids))
    tables = {name: split.table for name, split in inspected.items() if split.table is not None}
    found = {name: split.findings for name, split in inspected.items()}
    shared = None
    if {"train", "test"} <= set(tables):
        shared, more = overlap(tables["test"], tables["train"])
        found["test"] = gravest_first([*found["test"], *more])
    data = {
        "kind": "trl_dpo_ext.inspect",
        "format": 1,
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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


@dataclass
class _Split:
    """One split, read as the trainer reads it."""

    raw: Any
    checked: Any
    table: PairTable | None
    findings: list[Finding]

    @classmethod
    def of(cls, name: str, dataset: Any, tokenizer: Any, args: Any, kinds: TokenKinds) -> _Split:
        findings: list[Finding] = []
        label = f"{name} dataset"
        if isinstance(dataset, IterableDataset):
            raise InputError(f"{label} is a stream. Set --max_rows, or pass its first rows: list(dataset.take(1000)).")
        columns = loss_columns(args, args.loss_mixture())
        raw = numbered(dataset) if isinstance(dataset, Dataset) else dataset
        try:
            tell = lambda _, finding: findings.append(finding)  # noqa: E731
            checked = checked_datasets(columns, args, tell=tell, **{label: raw})[label]
            problems = tokenizer_problems(tokenizer, None, args, {label: checked})
            if problems:
                raise InputError(*problems)
            checked = with_fitting_tool_calls({label: checked}, tokenizer)[label]
            findings += [by_number(finding, checked) for finding in unprinted(checked, tokenizer)]
        except InputError as error:
            return cls(raw, None, None, [_error(problem) for problem in error.problems])
        return cls._measured(raw, checked, tokenizer, args, kinds, name, findings)

    @classmethod
    def _measured(
        cls, raw: Any, checked: Any, tokenizer: Any, args: Any, kinds: TokenKinds, name: str, findings: list[Finding]
    ) -> _Split:
        prepare = _trl.preparation(tokenizer)
        images = [column for column in ("image", "images") if column in checked.column_names]
        if images:  # they are processed batch by batch, and TRL truncates behind them
            checked, args = checked.remove_columns(images), _without_limit(args)
        prepared = prepare(checked, tokenizer, args, name)
        loaded = checked[ROW][:]
        if not len(prepared):
            whole = prepare(checked, tokenizer, _without_limit(args), name)
            return cls(raw, checked, None, [all_dropped(whole, args.max_length)])
        numbers = np.array(prepared[ROW][:], dtype=np.int64)
        table = pair_table(prepared, kinds, tokenizer, args, loaded, numbers, PROMPTS_TOKENIZED)
        if len(table.dropped):
            places = np.flatnonzero(np.isin(loaded, table.dropped))
            whole = prepare(checked.select(places), tokenizer, _without_limit(args), name)
            table.dropped_prompts = prompt_lengths(whole)
        check_truncation(table, _trl.pair_collator(tokenizer, args))
        table.findings = find(table)
        table.loaded = len(raw)
        kept = set(table.numbers.tolist())
        before = [_of_kept(finding, kept, len(table)) for finding in findings]
        found = gravest_first([*filter(None, before), *table.findings, *_guessed(raw, table)])
        return cls(raw, checked, table, found)

    def described(self, args: Any) -> dict[str, Any]:
        """Layout and columns."""
        names = [name for name in self.raw.column_names if name != ROW] if isinstance(self.raw, Dataset) else []
        if self.table is None:
            return {"rows": {"loaded": len(self.raw)}, "columns": {"given": names}}
        kind = "texts" if self.table.are_texts else "messages"
        prompt = (
            "prompt + answers" if "prompt" in names else "whole conversations" if kind == "messages" else "whole texts"
        )
        described = {"layout": f"{prompt}, {kind}", "columns": _columns(self, names, args)}
        if {"image", "images"} & set(names):
            described["images"] = "text tokens only; image tokens are not counted"
        return described


def _error(problem: str) -> Finding:
    name = "empty_answer" if "completion is empty" in problem else "layout"
    return Finding(name, ERROR, 0, 0, problem.rstrip("."))


def _of_kept(finding: Finding, kept: set[int], total: int) -> Finding | None:
    """A finding of the loaded rows, without those that were dropped."""
    if finding.name == "torn":
        return finding
    left = [row for row in finding.rows if row in kept]
    if finding.rows and not left:
        return None
    return Finding(
        finding.name, finding.level, len(left) or total, total, finding.sentence, finding.remedy, left, finding.unit
    )


def _guessed(raw: Dataset, table: PairTable) -> list[Finding]:
    """A note that the prompt of texts is their common start."""
    if not table.are_texts or "prompt" in raw.column_names:
        return []
    sentence = "there is no column 'prompt': the characters with which both texts begin are taken as the prompt"
    remedy = "If another column has it, set --dataset_columns prompt=COLUMN."
    return [Finding("prompt_guessed", NOTE, len(table), len(table), sentence, remedy, table.numbers.tolist())]


def _columns(split: _Split, names: list[str], args: Any) -> dict[str, Any]:
    of_losses = set(loss_columns(args, args.loss_mixture()))
    mapped = {part for source in (args.dataset_columns or {}).values() for part in (source, *source.split(","))}
    kept = [name for name in split.checked.column_names if name != ROW]
    unused = [name for name in names if name in kept and name not in {*_READ_BY_TRL, *of_losses, *mapped}]
    first = split.raw.with_format(None)[0]
    could = {column for variant in list_losses() for column in variant.columns}
    readable = sorted((could & set(unused)) - of_losses)
    if unused:
        listed = ", ".join(unused)
        number = len(split.table) if split.table else 0
        finding = Finding("unused_column", NOTE, 0, number, f"{listed}: read by no chosen loss", unit="columns")
        split.findings.append(finding)
    return {
        "used": [name for name in names if name not in unused],
        "of_losses": sorted(of_losses & set(kept)),
        "unused": {name: short(first[name]) for name in unused},
        "readable": readable,
    }


def all_dropped(whole: Dataset, limit: int) -> Finding:
    """The finding that no row is left.

    Args:
        whole: the rows, tokenized without a limit.
        limit: `max_length`.
    """
    shortest = int(prompt_lengths(whole).min())
    return Finding(
        "all_dropped",
        ERROR,
        len(whole),
        len(whole),
        f"all {len(whole)} rows dropped: the prompt alone fills max_length={limit} in every row, and the shortest "
        f"prompt has {shortest} tokens",
        "Raise max_length, or set truncation_mode='keep_end'.",
    )


def prompt_lengths(tokenized: Dataset) -> Any:
    """Return the number of tokens of each prompt, (rows,)."""
    from ..data.batches import read_batches
    from ..data.columnar import list_lengths

    name = _trl.TOKEN_IDS[0]
    parts = [list_lengths(batch.column(name)) for batch in read_batches(tokenized, [name])]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _without_limit(args: Any) -> Any:
    import copy

    unlimited = copy.copy(args)
    unlimited.max_length = None
    return unlimited


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
    listed.sort(key=lambda item: (-LEVELS.index(item[1].level), -item[1].share))
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
    return [row for split, number in picked for row in result.rows([number], split)]


def write_rows(result: Inspection, file: Path) -> int:
    """Write one line per loaded row: its number, lengths and findings; return the number of lines.

    Args:
        result: of `inspect_preferences`.
        file: ends in `.jsonl` or `.parquet`.

    Raises:
        InputError: it ends in anything else.
    """
    if file.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"--write_rows {file}: a file of rows must end in .jsonl or .parquet.")
    parts = [_row_lines(table, split, result.found[split]) for split, table in result.tables.items()]
    lines = Dataset.from_list([line for part in parts for line in part])
    if file.suffix == ".jsonl":
        lines.to_json(str(file), lines=True, force_ascii=False)
    else:
        lines.to_parquet(str(file))
    return len(lines)


def _row_lines(table: PairTable, split: str, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    names: dict[int, list[str]] = {}
    for finding in findings:
        for row in finding.rows:
            names.setdefault(int(row), []).append(finding.name)
    rows = table.rows
    lines = [
        {
            "split": split,
            "row": int(number),
            "n_prompt": int(rows.prompt[at]),
            "n_chosen": int(rows.sides[at, 0]),
            "n_rejected": int(rows.sides[at, 1]),
            "cut_chosen": int(rows.cut[at, 0]),
            "cut_rejected": int(rows.cut[at, 1]),
            "first_difference": None if rows.same[at] else int(rows.common[at]),
            "findings": names.get(int(number), []),
        }
        for at, number in enumerate(table.numbers.tolist())
    ]
    empty = dict.fromkeys(("n_prompt", "n_chosen", "n_rejected", "cut_chosen", "cut_rejected", "first_difference"))
    lines += [{"split": split, "row": int(row), **empty, "findings": ["dropped"]} for row in table.dropped.tolist()]
    return sorted(lines, key=lambda line: line["row"])
