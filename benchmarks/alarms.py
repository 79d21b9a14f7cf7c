"""Which alarms fire while every loss variant trains as in `compare_losses.py`, watched at every fifth step.

One row per variant: the alarms with the step at which each fired first, and the values that alarms read at the end.

Run: python benchmarks/alarms.py [--losses sigmoid dpop] [--learning_rate 1e-3]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import datasets
from compare_losses import rows, start, train, words_of

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


def row(name: str, alarms: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> str:
    """A line of the table."""
    first: dict[str, int] = {}
    for line in alarms:
        first.setdefault(line["name"], line["step"])
    told = ", ".join(f"{alarm} ({step})" for alarm, step in first.items())
    cells = []
    for column, (key, form) in READ.items():
        before, now = metrics[0].get(key), metrics[-1].get(key)
        if now is None:
            cells.append("")
        else:
            cells.append(form.format(now - before if column in CHANGES else now))
    return f"| `{name}` | {told} | {' | '.join(cells)} |"


def main() -> None:
    """Train the variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="*", help="only these")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="steps between two times of watching")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)  # the table is the output
    data, held_out = rows("train"), rows("test")
    tokenizer = words_of([text for line in data + held_out for text in line.values()])
    begin = start(tokenizer, data + held_out, steps=100)
    print(f"| variant | alarms (first step) | {' | '.join(READ)} |")
    print("|---" * (len(READ) + 2) + "|", flush=True)
    for variant in list_losses(reads="pairs"):
        if options.losses and variant.name not in options.losses:
            continue
        with tempfile.TemporaryDirectory() as folder:
            watching = {
                "watch": True,
                "watch_max_new_tokens": 24,
                "eval_strategy": "steps",
                "eval_steps": options.every,
            }
            train(
                variant, begin, tokenizer, data, options.steps, options.learning_rate, held_out,
                output_dir=folder, per_device_eval_batch_size=65, **watching,
            )  # fmt: skip
            lines = (read_lines(Path(folder) / name) for name in (ALARMS_FILE, METRICS_FILE))
            print(row(variant.name, *lines), flush=True)


if __name__ == "__main__":
    main()
