"""What may be wrong with preference data: one name, level and meaning per finding, for `inspect` and `train` alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

ERROR, WARNING, NOTE = "error", "warning", "note"
EVERY_ROW: Sequence[int] = range(1 << 62)
"""The numbers of the rows of a dataset none of which was dropped."""
LEVELS = (NOTE, WARNING, ERROR)
"""From the least to the gravest: an error would stop `train`, a warning changes what is learned."""

NAMES = MappingProxyType(
    {
        "layout": "columns or messages that are not read as they look",
        "empty_answer": "an answer without a scored token but EOS and whitespace",
        "all_dropped": "no row is left",
        "ties": "rows whose winner column names neither answer, which are dropped",
        "torn": "no prompt, and one side is the start of the other, so that the row is dropped",
        "dropped": "the prompt alone fills max_length",
        "prompt_lost": "truncation from the left leaves less than half of the prompt",
        "identical_after_truncation": "answers that differ only beyond max_length",
        "identical": "chosen and rejected are the same",
        "near_identical": "answers that differ in at most a tenth of their tokens",
        "contradictory": "the same two answers, the other way around, in another row",
        "duplicate_row": "second and later copies of a row",
        "many_per_prompt": "prompts in more than 8 rows",
        "train_test_overlap": "test prompts that are in the training set",
        "answer_cut": "answers that max_length cuts",
        "eos_cut": "answers that lose their EOS by truncation",
        "missing_eos": "whole answers that do not end with EOS",
        "double_eos": "answers that end twice",
        "double_bos": "sequences that begin with two BOS tokens",
        "scored_after_eos": "tokens behind the last EOS, which are scored",
        "special_token_in_text": "the text of a special token inside a message",
        "prompt_not_prefix": "prompts that are tokenized otherwise with an answer behind them",
        "prompt_guessed": "no column prompt: the common start of both sides is taken",
        "prompt_repeated": "sides that repeat the prompt",
        "last_turn": "turns of others than the assistant that are scored",
        "prompt_ends_open": "prompts that end with the assistant's message",
        "one_token_answer": "answers of one token",
        "first_token_unscored": "no prompt and no BOS, so that the first token of an answer is not scored",
        "length_bias": "length alone tells which answer is chosen",
        "unused_column": "columns that nothing reads",
        "loss_column": "a column whose values turn off or reverse a loss, or a part of it",
        "unicode": "damaged or invisible characters",
        "script_differs": "answers in different scripts",
        "long_tail": "a few rows that are much longer than the others",
        "dated_template": "a chat template that prints today's date",
        "lists_left_out": "lists with one completion, or without an order",
        "answers_unscored": "completions of lists without a usable score, which are left out",
        "answers_repeated": "completions that stand twice in a list",
        "answers_contradictory": "completions that stand twice in a list, with different scores, which are left out",
        "lists_as_pairs": "lists, whose best completion is shown beside each of the others",
        "not_gathered": "pairs that gather_lists makes no list of, as no two share a prompt",
        "template_drops": "answers in a field that the chat template does not print",
    }
)
"""Name of a finding -> what it means in a few words."""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found in a dataset."""

    name: str
    level: str
    count: int
    """Number of rows, or of what `unit` says."""
    total: int
    """Number of rows that it is a part of."""
    sentence: str
    """What is found, without a period at its end."""
    remedy: str = ""
    """What to do, likewise."""
    rows: Sequence[int] = ()
    """The rows that have it, counted from 0."""
    unit: str = "rows"

    @property
    def share(self) -> float:
        """Share of the rows."""
        return self.count / self.total if self.total else 0.0

    def line(self, dataset: str) -> str:
        """Return the finding in one line, as `train` prints it.

        Args:
            dataset: what messages call it.
        """
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{dataset}: {self.sentence}.{remedy} (ignore_findings: {self.name})"


def numbered(rows: Iterable[int], numbers: Sequence[int]) -> list[int]:
    """Return the numbers of some rows, ascending, each once: the rows of pairs of a list have one number.

    Args:
        rows: their places.
        numbers: the number that messages give each row.
    """
    return sorted({int(numbers[row]) for row in rows})


def count_rows(rows: int, numbers: Sequence[int]) -> int:
    """Return the number of rows that messages count: those with different numbers.

    Args:
        rows: how many there are.
        numbers: the number that messages give each.
    """
    return rows if isinstance(numbers, range) else len(set(numbers[:rows]))


def gravity(finding: Finding) -> tuple[int, float]:
    """What findings are sorted by, the gravest first: their level, then the share of rows."""
    return -LEVELS.index(finding.level), -finding.share


def gravest_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by `gravity`."""
    return sorted(findings, key=gravity)


def ties(total: int, decided: Sequence[int]) -> Finding:
    """Return the finding of rows that have no winner.

    Args:
        total: number of loaded rows.
        decided: the numbers of those that have one.
    """
    rows = np.setdiff1d(np.arange(total), decided).tolist()
    sentence = f"{len(rows)} of {total} rows are ties and are dropped"
    return Finding("ties", WARNING, len(rows), total, sentence, "", rows)


def told(findings: Iterable[Finding], dataset: str, args: Any) -> list[str]:
    """Return the lines that `train` prints: findings that are no notes, and that the run does not ignore.

    Args:
        findings: of one dataset.
        dataset: what messages call it.
        args: the run's configuration.
    """
    ignored = getattr(args, "ignore_findings", None) or ()
    return [finding.line(dataset) for finding in findings if finding.level != NOTE and finding.name not in ignored]


def unknown_findings(names: Sequence[str], option: str = "ignore_findings") -> list[str]:
    """Return one problem listing the names that no finding has, or an empty list; `option` is where they stand."""
    unknown = [name for name in names if name not in NAMES]
    return [f"{option}: unknown {', '.join(unknown)}; one of {', '.join(NAMES)}."] if unknown else []
