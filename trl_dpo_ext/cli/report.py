"""The `report` command: summarize and compare runs, plot them, and write a page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ..errors import InputError
from ..reports.page import page
from ..reports.plot import plot_run
from ..reports.result import report_of
from ..reports.run_data import read_runs
from ..reports.summary import compare_runs, summarize_folder
from ..version import __version__
from .output import file_problems, write_json, write_output


def run(argv: Sequence[str], prog: str) -> int:
    """Print the summary of runs, and write what is asked for; folders without a run are named on standard error."""
    parsed = _parser(prog).parse_args(argv)
    if parsed.plot and len(parsed.output_dir) > 1:
        raise InputError("--plot draws one run. Pass one folder, or --html, which compares several.")
    wrong = file_problems({name: getattr(parsed, name) for name in ("json", "html", "plot")})
    if wrong:
        raise InputError(*wrong)
    runs = read_runs(parsed.output_dir)
    problems = [run.problem for run in runs if run.problem]
    if len(problems) == len(runs):
        raise InputError(*problems)
    result = report_of(runs, __version__)
    if parsed.json:
        write_json(parsed.json, json.dumps(result, ensure_ascii=False, allow_nan=False, indent=1))
    if parsed.html:
        write_output(parsed.html, page(result))
    if parsed.plot:
        plot_run(parsed.output_dir[0], parsed.plot)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if parsed.json != "-":
        shown = [summarize_folder(run.folder) for run in runs if not run.problem]
        print("\n\n".join(filter(None, [*shown, compare_runs(result)])))
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog,
        description="Show the first and last value of each metric of a run, and compare several runs. Works on runs "
        "that are going on or were killed, on checkpoints, and on runs of TRL's own trainer.",
    )
    parser.add_argument("output_dir", nargs="+", help="the output folder of a run, or one of its checkpoints")
    parser.add_argument("--html", metavar="FILE", help="write a page that works without network")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON; - for standard output")
    parser.add_argument("--plot", metavar="PNG", help="write a plot of one run to this file (needs the extra `plot`)")
    return parser
