"""Measures how long the checks of a preference dataset take, column by column and row by row. Needs no GPU.

Every text has about 200 characters. Prints a Markdown table with seconds for all rows; rows are checked one by one only
on the first --sample rows, and their time is scaled up.

Run: python benchmarks/check_preferences.py --rows 1000000
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import datasets
from datasets import Dataset

from trl_dpo_ext.core.hyperparameters import Hyper
from trl_dpo_ext.data import columnar
from trl_dpo_ext.data.validation import check_preferences

COLUMNS = {"margin": Hyper("By how much the chosen side is better.", ge=0)}


def text(source: random.Random, letters: str) -> str:
    start = source.randrange(len(letters) - 250)
    return letters[start : start + source.randint(150, 250)]


def rows_of(count: int, conversational: bool) -> Dataset:
    source = random.Random(0)
    letters = "".join(source.choices("abcdefghijklmnopqrstuvwxyz     ", k=100_000))

    def batch(indices: list[int]) -> dict[str, list[Any]]:
        prompts, chosen, rejected = ([text(source, letters) for _ in indices] for _ in range(3))
        margin = [source.random() for _ in indices]
        if not conversational:
            return {"prompt": prompts, "chosen": chosen, "rejected": rejected, "margin": margin}

        def messages(answers: list[str]) -> list[list[dict[str, str]]]:
            pairs = zip(prompts, answers, strict=True)
            return [[{"role": "user", "content": p}, {"role": "assistant", "content": a}] for p, a in pairs]

        return {"chosen": messages(chosen), "rejected": messages(rejected), "margin": margin}

    numbers = Dataset.from_dict({"index": range(count)})
    return numbers.map(lambda rows: batch(rows["index"]), batched=True, batch_size=10_000, remove_columns=["index"])


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    report = call()
    assert not report.problems, report.problems
    return time.perf_counter() - start


def unknown(*_: Any) -> Any:
    raise columnar.UnknownLayoutError


def row_by_row(data: Dataset) -> Any:
    names = ("empty_completions", "equal_rows", "all_allowed")
    with mock.patch.multiple(columnar, **dict.fromkeys(names, unknown)):
        return check_preferences(data, "train_dataset", COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=50_000, help="Rows to check one by one.")
    arguments = parser.parse_args()
    print("| dataset | rows | by column (s) | row by row (s, scaled) | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = folder
        for conversational in (False, True):
            data = rows_of(arguments.rows, conversational)
            cases = {"texts": data, "texts, shuffled": data.shuffle(seed=0)}
            for name, case in cases.items():
                name = name.replace("texts", "conversations") if conversational else name
                sample = case.select(range(min(arguments.sample, len(case))))
                by_column = seconds(lambda case=case: check_preferences(case, "train_dataset", COLUMNS))
                by_row = seconds(lambda sample=sample: row_by_row(sample)) * len(case) / len(sample)
                print(
                    f"| {name} | {len(case):,} | {by_column:.1f} | {by_row:.1f} | {by_row / by_column:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
