"""The `inspect` command: show preference data as the trainer will see it, before training."""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from datasets import Dataset, IterableDataset

from .. import _trl
from ..checks.tokenizers import eos_ids, load_processing_class
from ..data.findings import LEVELS, WARNING, unknown_findings
from ..data.loading import load_splits
from ..errors import InputError, collecting
from ..inspection.page import page
from ..inspection.preferences import inspect_preferences
from ..inspection.result import ROW_FILES, Inspection, write_rows
from ..inspection.terminal import make_console, show
from ..inspection.terminal_rows import show_row
from ..version import __version__
from .adapters import saved_adapter
from .arguments import Arguments, read_for_another_machine
from .output import file_problems, write_json, write_output

_MANY_ROWS = 5000
"""Rows from which on all cores tokenize."""


def run(argv: Sequence[str], prog: str) -> int:
    """Print what becomes of a run's data; return 1 if `--strict` is given and there is a finding of its level."""
    ours, flags = _parser(prog).parse_known_args(argv)
    arguments = read_for_another_machine(flags)
    result = _inspect(ours, arguments)
    result.data["versions"]["trl_dpo_ext"] = __version__
    rows = _rows(ours, result)
    if rows is not None:
        result.data["examples"] = rows
    if ours.json:
        write_json(ours.json, result.json())
    if ours.html:
        write_output(ours.html, page(result.data, result.sample(ours.html_rows)))
    if ours.write_rows:
        count = write_rows(result, Path(ours.write_rows))
        print(f"Wrote {ours.write_rows}: {count} rows.", file=sys.stderr)
    if ours.json != "-":
        console = make_console()
        if ours.row and rows is not None:
            for row in rows:
                show_row(row, console, ids=True)
        else:
            show(result.data, console)
            if ours.problem and not rows:
                console.print(result.without_rows(ours.problem), markup=False)
    return _status(ours, result)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog,
        allow_abbrev=False,
        description="Show preference data as `train` will see it: converted, tokenized, truncated, dropped. Loads the "
        "tokenizer alone. Accepts all flags of `train` as well.",
    )
    add: Callable[..., Any] = parser.add_argument
    add("--tokenizer_name_or_path", metavar="NAME", help="the tokenizer, if --model_name_or_path is not given")
    add("--examples", type=_count, default=3, metavar="N", help="pairs that are shown (default: 3)")
    add("--row", type=int, nargs="+", metavar="I", help="show these rows with token ids and findings")
    add("--problem", metavar="NAME", help="show rows that have this finding")
    add("--json", metavar="FILE", help="write everything as JSON; - for standard output")
    add("--html", metavar="FILE", help="write a page that works without network")
    add("--html_rows", type=_count, default=2000, metavar="N", help="rows in the page (default: 2000)")
    add("--write_rows", metavar="FILE", help="write each row's lengths and findings (.jsonl or .parquet)")
    levels = ", ".join(reversed(LEVELS))
    add(
        "--strict",
        nargs="?",
        const=WARNING,
        choices=LEVELS,
        metavar="LEVEL",
        help=f"exit with status 1 if there is a finding of this level or a graver one: {levels} (default: warning)",
    )
    add("--ignore", nargs="+", default=[], metavar="NAME", help="findings that are intended")
    add("--max_rows", type=_positive, metavar="N", help="inspect the first N rows of each split")
    add("--splits", choices=("both", "train", "test"), default="both", help="which splits (default: both)")
    add(
        "--images",
        nargs="?",
        const="true",
        default="false",
        choices=("true", "false"),
        help="process every image to count its tokens; otherwise the texts alone are counted (default: false)",
    )
    add("--subset_column", metavar="COLUMN", help="give the length bias for each value of this column, too")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise the error as every other command does."""
        raise InputError(f"{message} (see --help).")


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more; got {text}")
    return int(text)


def _positive(text: str) -> int:
    return _count(text, 1)


def _inspect(ours: argparse.Namespace, arguments: Arguments) -> Inspection:
    problems = [*arguments.problems, *unknown_findings(ours.ignore, "--ignore"), *_file_problems(ours)]
    if ours.problem:
        problems += unknown_findings([ours.problem], "--problem")
    tokenizer, dataset = None, {}
    name = arguments.model.model_name_or_path or ours.tokenizer_name_or_path
    if name is None:
        problems.append("No tokenizer: set --model_name_or_path, or --tokenizer_name_or_path.")
    args = arguments.args
    ends: list[int] = []
    if name is not None:
        with collecting(problems):
            tokenizer, ends = _tokenizer(args, arguments.model, name)
    with collecting(problems):
        dataset = _datasets(ours, arguments)
    problems += _subset_problems(ours.subset_column, dataset)
    if problems:
        raise InputError(*problems)
    if args.dataset_num_proc is None and any(len(part) > _MANY_ROWS for part in dataset.values()):
        args = copy.copy(args)
        args.dataset_num_proc = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    described = {"dataset": arguments.script.dataset_name, "model": name, "max_rows": ours.max_rows}
    return inspect_preferences(
        dataset,
        tokenizer,
        args,
        subset_column=ours.subset_column,
        ignore=ours.ignore,
        examples=ours.examples,
        eos_ids=ends,
        images=ours.images == "true",
        described=described,
    )


def _file_problems(ours: argparse.Namespace) -> list[str]:
    """Why files cannot be written, before anything is computed for them."""
    problems = file_problems({flag: getattr(ours, flag) for flag in ("json", "html", "write_rows")})
    if ours.write_rows and not ours.write_rows.endswith(ROW_FILES):
        problems.append(f"--write_rows {ours.write_rows}: a file of rows must end in {' or '.join(ROW_FILES)}.")
    return problems


def _subset_problems(column: str | None, splits: Mapping[str, Any]) -> list[str]:
    names = {name: _trl.column_names(part) for name, part in splits.items()}
    return [
        f"--subset_column {column}: the {split} split has no such column; it has {', '.join(columns)}."
        for split, columns in names.items()
        if column is not None and column not in columns
    ]


def _tokenizer(args: Any, model: Any, name: str) -> tuple[Any, list[int]]:
    """The tokenizer of a model, or of an adapter's base, and the tokens that end a sequence of it."""
    revision = model.model_revision if model.model_name_or_path else None
    adapter = saved_adapter(args, model) if model.model_name_or_path else None
    if adapter is not None:
        with collecting(unreadable := []):
            return load_processing_class(args, name, None), eos_ids(adapter.base)
        if unreadable and adapter.base:
            name, revision = adapter.base, adapter.base_revision
    return load_processing_class(args, name, revision), eos_ids(name, revision=revision)


def _datasets(ours: argparse.Namespace, arguments: Arguments) -> dict[str, Any]:
    """The splits to inspect, as `train` and `test`."""
    script = arguments.script
    splits: Mapping[str, Any] = load_splits(script, arguments.data, arguments.args)
    wanted = {"train": script.dataset_train_split, "test": script.dataset_test_split}
    if ours.splits != "both":
        wanted = {ours.splits: wanted[ours.splits]}
    asked = {"train", ours.splits} | ({"test"} if wanted.get("test") != type(script)().dataset_test_split else set())
    missing = [name for name, split in wanted.items() if split not in splits and name in asked]
    if missing:
        raise InputError(
            *(
                f"The dataset has no split {wanted[name]!r}; it has {', '.join(splits)}. Set --dataset_{name}_split or "
                "--splits."
                for name in missing
            )
        )
    return {name: _first_rows(splits[split], ours.max_rows, name) for name, split in wanted.items() if split in splits}


def _first_rows(dataset: Any, most: int | None, name: str) -> Dataset:
    if isinstance(dataset, IterableDataset):
        if most is None:
            raise InputError(f"The {name} split is streamed and has no end that is known. Set --max_rows.")
        return Dataset.from_list([*itertools.islice(dataset, most)])
    return dataset if most is None else dataset.select(range(min(most, len(dataset))))


def _rows(ours: argparse.Namespace, result: Inspection) -> list[dict[str, Any]] | None:
    """The rows that the flags ask for; None for the examples."""
    if ours.row:
        split = "train" if "train" in result.data["splits"] else "test"
        return result.rows(ours.row, split) if split in result.tables else None
    return result.rows_with(ours.problem, ours.examples) if ours.problem else None


def _status(ours: argparse.Namespace, result: Inspection) -> int:
    worst = result.worst()
    if len(result.tables) < len(result.data["splits"]):
        return 2  # a split that `train` would refuse
    if ours.strict is None or worst is None:
        return 0
    return int(LEVELS.index(worst) >= LEVELS.index(ours.strict))
