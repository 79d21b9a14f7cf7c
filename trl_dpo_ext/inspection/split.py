"""Read one split as the trainer reads it: converted, tokenized, truncated, measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from .. import _trl
from ..checks.tokenizers import tokenizer_problems
from ..data.columns import loss_columns
from ..data.findings import ERROR, NOTE, Finding, gravest_first
from ..data.lists.pair_rows import LIST_ROW, is_of_lists
from ..data.lists.tokenizing import ListPreparation
from ..data.prepare import Kept, checked_datasets, with_fitting_tool_calls
from ..data.tokenized import prepared_by, tokenized_as_trl, unprinted
from ..data.truncation import all_dropped, prompt_lengths, without_limit
from ..errors import InputError
from .list_table import list_table
from .loaded import columns_block, dated_template, guessed_prompt, layout_name, unused_column
from .pair_table import PROMPTS_TOKENIZED, PairTable, check_truncation, pair_table, whole_rows
from .rules import find
from .token_kinds import TokenKinds

_UNCOUNTED = "text tokens only; image tokens are not counted"
_COUNTED = "image tokens are counted"


@dataclass
class InspectedSplit:
    """One split, read as the trainer reads it."""

    raw: Any
    table: PairTable | None
    findings: list[Finding]
    kept: Kept = field(default_factory=Kept)
    checked: Any = None
    images: str | None = None
    """Whether image tokens are counted; None where there are no images."""

    @classmethod
    def of(
        cls, name: str, dataset: Any, tokenizer: Any, args: Any, kinds: TokenKinds, images: bool = False
    ) -> InspectedSplit:
        """Read a split.

        Args:
            name: of the split.
            dataset: as it was loaded.
            tokenizer: the run's tokenizer, or processor.
            args: the run's configuration.
            kinds: the tokens' meaning.
            images: whether every image is processed, to count its tokens.

        Raises:
            InputError: it is a stream, or has a transform.
        """
        label = f"{name} dataset"
        if isinstance(dataset, IterableDataset):
            raise InputError(f"{label} is a stream. Set --max_rows, or pass its first rows: list(dataset.take(1000)).")
        if _trl.is_transformed(dataset):
            raise InputError(f"{label} has a transform (set_transform or with_transform). Apply it with dataset.map.")
        split, kept = cls(dataset, None, []), {}
        try:
            split.checked = split._check(label, tokenizer, args, kept)
            split.kept = kept[label]
            split._measure(name, tokenizer, args, kinds, images)
        except InputError as error:
            split.findings += map(_error, error.problems)
            split.findings = gravest_first(split.findings)
        return split

    def _check(self, label: str, tokenizer: Any, args: Any, kept: dict[str, Kept]) -> Dataset:
        """The split in a layout that TRL takes."""
        columns = loss_columns(args, args.loss_mixture())

        def tell(_: str, finding: Finding) -> None:
            self.findings.append(finding)

        if _trl.is_tokenized(self.raw):
            raise InputError(
                f"{label} is tokenized already, and has no texts to inspect. Load the data as it was before."
            )
        checked = checked_datasets(columns, args, tell=tell, kept=kept, **{label: self.raw})[label]
        if is_of_lists(checked):
            kept[label] = replace(kept[label], numbers=checked[LIST_ROW][:])
        problems = tokenizer_problems(tokenizer, None, args, {label: checked})
        if problems:
            raise InputError(*problems)
        checked = with_fitting_tool_calls({label: checked}, tokenizer, kept)[label]
        self.findings += unprinted(checked, tokenizer, kept[label].numbers)
        return checked

    def _measure(self, name: str, tokenizer: Any, args: Any, kinds: TokenKinds, images: bool) -> None:
        if is_of_lists(self.checked):
            self._measure_lists(name, tokenizer, args, kinds)
        else:
            self._measure_pairs(name, tokenizer, args, kinds, images)

    def _measure_lists(self, name: str, tokenizer: Any, args: Any, kinds: TokenKinds) -> None:
        preparation = ListPreparation(_trl.preparation(tokenizer))
        prepared = prepared_by(preparation, self.checked, tokenizer, args, name, self.kept.numbers)
        lost = preparation.lost(args)
        if not len(prepared):
            self.findings = gravest_first([*self.findings, *filter(None, [lost])])
            return
        assert preparation.found is not None
        table = list_table(preparation.found, self.checked, kinds, tokenizer, args, PROMPTS_TOKENIZED)
        check_truncation(table, _trl.pair_collator(tokenizer, args))
        table.loaded, table.order = self.kept.lists, self.kept.order
        self._found_in(table, args, tokenizer, filter(None, [lost, _shown_as_pairs(table)]))

    def _measure_pairs(self, name: str, tokenizer: Any, args: Any, kinds: TokenKinds, images: bool) -> None:
        data, numbers = self.checked, np.asarray(self.kept.numbers[: len(self.checked)], dtype=np.int64)
        columns, own = _trl.image_columns(data.column_names), args
        self.images = (_COUNTED if images else _UNCOUNTED) if columns else None
        if columns and images:
            prepared = _trl.tokenized_with_images(data, tokenizer, name)
        else:
            if columns:  # TRL truncates behind the images, and a processor takes no text without them
                data, own = data.remove_columns(columns), without_limit(args)
                tokenizer = _trl.text_tokenizer(tokenizer)
            prepared = tokenized_as_trl(data, tokenizer, own, name, numbers.tolist())
        if not len(prepared):
            whole = tokenized_as_trl(data, tokenizer, without_limit(args), name)
            self.findings = gravest_first([*self.findings, all_dropped(whole, args.max_length)])
            return
        places = _trl.kept_rows(prepared)
        prompts = 0 if columns and images else PROMPTS_TOKENIZED
        table = pair_table(prepared, kinds, tokenizer, own, numbers, numbers[places], prompts)
        if len(places) < len(data):
            lost = data.select(np.setdiff1d(np.arange(len(data)), places))
            whole = tokenized_as_trl(lost, tokenizer, without_limit(args), name)
            table.dropped_prompts, table.dropped_measured = prompt_lengths(whole), whole_rows(whole, kinds)
        if not (columns and images):
            check_truncation(table, _trl.pair_collator(tokenizer, own))
        table.loaded = len(self.raw)
        self._found_in(table, args, tokenizer)

    def _found_in(self, table: PairTable, args: Any, tokenizer: Any, more: Iterable[Finding] = ()) -> None:
        """Add to what was found before tokenization what was found after it."""
        self.table = table
        table.columns, table.origin = self.kept.columns, self.raw
        table.findings = [*find(table), *more]
        left = set(table.numbers.tolist())
        before = [_of_kept(finding, left, len(self.table)) for finding in self.findings]
        apart = [
            guessed_prompt(self.table, self.kept),
            unused_column(self.raw, self.kept, self.checked, args, len(self.table)),
            dated_template(self.checked, tokenizer, len(table)),
        ]
        self.findings = gravest_first([*filter(None, before), *self.table.findings, *filter(None, apart)])

    def described(self, args: Any) -> dict[str, Any]:
        """Layout and columns."""
        names = list(self.raw.column_names) if isinstance(self.raw, Dataset) else []
        if self.table is None:
            return {"rows": {"loaded": len(self.raw)}, "columns": {"given": names}}
        described: dict[str, Any] = {"layout": layout_name(self.table, self.kept), "converted": dict(self.kept.notes)}
        described["columns"] = columns_block(self.raw, self.kept, self.checked, args)
        return described | ({"images": self.images} if self.images else {})


def _shown_as_pairs(table: PairTable) -> Finding:
    """The note on how lists are shown."""
    lists, completions = len(table), int(table.examples.once.sum())
    sentence = (
        f"{lists} lists with {completions} completions: all are counted, the best of a list as chosen and the others "
        "as rejected; what compares two is counted over every ordered pair, and rows show the best beside each other"
    )
    return Finding("lists_as_pairs", NOTE, lists, lists, sentence, unit="lists")


def _error(problem: str) -> Finding:
    name = "empty_answer" if "completion is empty" in problem else "layout"
    return Finding(name, ERROR, 0, 0, problem.rstrip("."))


def _of_kept(finding: Finding, kept: set[int], total: int) -> Finding | None:
    """A finding of the loaded rows, without those that were dropped."""
    if finding.name in ("torn", "ties", "lists_left_out"):
        return finding
    left = [row for row in finding.rows if row in kept]
    if finding.rows and not left:
        return None
    return Finding(
        finding.name, finding.level, len(left) or total, total, finding.sentence, finding.remedy, left, finding.unit
    )
