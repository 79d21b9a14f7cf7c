"""Which alarms fire while every loss variant trains as in `compare_losses.py`, watched at every fifth step.

One row per variant: the alarms with the step at which each fired first, and the values that alarms read at the end.

Run: python benchmarks/alarms.py [--losses sigmoid dpop] [--learning_rate 1e-3] [--results alarms.jsonl]

With `--results`, an interrupted run goes on with the first variant that the file lacks.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from compare_losses import add_losses, rows, start, train, words_of

from trl_dpo_ext import list_losses
from trl_dpo_ext.run_files import ALARMS_FILE, METRICS_FILE, read_lines

READ = {
    "accuracy": ("accuracy", "{:.2f}"),
    "chosen": ("watch/chosen_logp_per_token", "{:+.2f}"),
    "rejected": ("watch/rejected_logp_per_token", "{:+.2f}"),
    "KL": ("watch/kl_per_token", "{:.3f}"),
    "length": ("watch/length", "{:.1f}"),
    "ended": ("watch/eos_rate", "{:.2f}"),
    "repeated": ("watch/repetition", "{:.2f}"),
}
"""Columns: what the alarms read, per token where it is a log-prob, and per answer of 16 prompts."""
CHANGES = ("chosen", "rejected", "length", "ended", "repeated")
"""Columns that show the change since the start."""


Line = dict[str, Any]


def row(result: Line) -> str:
    """A line of the table."""
    told = ", ".join(f"{alarm} ({step})" for alarm, step in result["alarms"].items())
    cells = []
    for column, (key, form) in READ.items():
        before, now = result["start"].get(key), result["end"].get(key)
        if now is None:
            cells.append("")
        else:
            cells.append(form.format(now - before if column in CHANGES else now))
    return f"| `{result['variant']}` | {told} | {' | '.join(cells)} |"


def result_of(name: str, folder: str) -> Line:
    """What a watched run left in its folder: first steps of alarms, and what they read at the start and the end."""
    alarms, metrics = (read_lines(Path(folder) / file) for file in (ALARMS_FILE, METRICS_FILE))
    first: dict[str, int] = {}
    for line in alarms:
        first.setdefault(line["name"], line["step"])
    read = [key for key, _ in READ.values()]
    start, end = ({key: line[key] for key in read if key in line} for line in (metrics[0], metrics[-1]))
    return {"variant": name, "alarms": first, "start": start, "end": end}


def finished(file: Path | None) -> dict[str, Line]:
    """The results of variants that a file has."""
    if file is None or not file.is_file():
        return {}
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {line["variant"]: line for line in lines}


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_losses(parser)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="steps between two times of watching")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--new_tokens", type=int, default=24, help="largest number of tokens of a sampled answer")
    parser.add_argument("--results", type=Path, help="a file of JSON lines, to which each variant adds one")
    return parser.parse_args(arguments)


def main() -> None:
    """Train the variants and print the table."""
    options = parsed()
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)  # the table is the output
    data, held_out = rows("train"), rows("test")
    tokenizer = words_of([text for line in data + held_out for text in line.values()])
    begin = start(tokenizer, data + held_out, steps=100)
    done = finished(options.results)
    print(f"| variant | alarms (first step) | {' | '.join(READ)} |")
    print("|---" * (len(READ) + 2) + "|", flush=True)
    for variant in list_losses(reads="pairs"):
        if variant.name not in options.losses:
            continue
        result = done.get(variant.name)
        if result is None:
            with tempfile.TemporaryDirectory() as folder:
                watching = {
                    "watch": True,
                    "watch_max_new_tokens": options.new_tokens,
                    "eval_strategy": "steps",
                    "eval_steps": options.every,
                }
                train(
                    variant, begin, tokenizer, data, options.steps, options.learning_rate, held_out,
                    output_dir=folder, per_device_eval_batch_size=65, **watching,
                )  # fmt: skip
                result = result_of(variant.name, folder)
            if options.results:
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
        print(row(result), flush=True)


if __name__ == "__main__":
    main()
