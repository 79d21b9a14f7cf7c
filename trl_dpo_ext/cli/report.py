"""The `report` command: summarize the metrics of a run, and plot them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..reports.plot import plot_run
from ..reports.run_log import read_run
from ..reports.summary import summarize


def run(argv: Sequence[str], prog: str) -> int:
    """Print the summary of a run, and with `--plot` write its plot."""
    parser = argparse.ArgumentParser(prog, description="Show the first and last value of each metric, and plot them.")
    parser.add_argument("output_dir", help="the run's output folder, or one of its checkpoints")
    parser.add_argument("--plot", metavar="PNG", help="write a plot to this file (needs the extra `plot`)")
    parsed = parser.parse_args(argv)
    print(summarize(read_run(parsed.output_dir)))
    if parsed.plot:
        plot_run(parsed.output_dir, parsed.plot)
    return 0
