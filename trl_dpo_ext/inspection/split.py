"""Read one split as the trainer reads it: converted, tokenized, truncated, measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from .. import _trl
from ..checks.tokenizers import tokenizer_problems
from ..core.registry import list_losses
from ..data.columns import loss_columns
from ..data.findings import ERROR, NOTE, ROW, Finding, by_number, gravest_first
from ..data.prepare import checked_datasets, with_fitting_tool_calls
from ..data.tokenized import unprinted
from ..data.truncation import all_dropped, prompt_lengths, without_limit
from ..errors import InputError
from .pair_table import COLUMNS, PROMPTS_TOKENIZED, PairTable, check_truncation, numbered, pair_table
from .row_view import short
from .rules import find
from .token_kinds import TokenKinds

_READ_BY_TRL = (*COLUMNS, "tools", "chat_template_kwargs", *_trl.IMAGE_COLUMNS, *_trl.REFERENCE_COLUMNS)


@dataclass
class InspectedSplit:
    """One split, read as the trainer reads it."""

    raw: Any
    checked: Any
    table: PairTable | None
    findings: list[Finding]

    @classmethod
    def of(cls, name: str, dataset: Any, tokenizer: Any, args: Any, kinds: TokenKinds) -> InspectedSplit:
        """Read a split.

        Args:
            name: of the split.
            dataset: as it was loaded.
            tokenizer: the run's tokenizer, or processor.
            args: the run's configuration.
            kinds: the tokens' meaning.

        Raises:
            InputError: it is a stream.
        """
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
    ) -> InspectedSplit:
        prepare = _trl.preparation(tokenizer)
        images = _trl.image_columns(checked.column_names)
        if images:  # they are processed batch by batch, and TRL truncates behind them
            checked, args = checked.remove_columns(images), without_limit(args)
        prepared = prepare(checked, tokenizer, args, name)
        loaded = checked[ROW][:]
        if not len(prepared):
            whole = prepare(checked, tokenizer, without_limit(args), name)
            return cls(raw, checked, None, [all_dropped(whole, args.max_length)])
        numbers = np.array(prepared[ROW][:], dtype=np.int64)
        table = pair_table(prepared, kinds, tokenizer, args, loaded, numbers, PROMPTS_TOKENIZED)
        if len(table.dropped):
            places = np.flatnonzero(np.isin(loaded, table.dropped))
            whole = prepare(checked.select(places), tokenizer, without_limit(args), name)
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
        if _trl.image_columns(names):
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


def _columns(split: InspectedSplit, names: list[str], args: Any) -> dict[str, Any]:
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
