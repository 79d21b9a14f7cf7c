"""The command `migrate`: write a configuration of ours from that of another tool."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..migration.read import read_configuration
from ..migration.tools import TOOLS, migrated
from ..migration.write import as_yaml
from .arguments import option_names, read_for_another_machine
from .output import write_output


def run(argv: Sequence[str], prog: str) -> int:
    """Write the translation; return 1 if a part of it needs a hand before it trains."""
    parser = argparse.ArgumentParser(
        prog,
        description="Translate a preference-training configuration of another tool: every key is carried over, "
        "renamed, replaced by what does the same here, or listed with the reason.",
    )
    parser.add_argument("old", metavar="OLD", help="its file: YAML, JSON, or a shell script with the command")
    parser.add_argument("--from", dest="tool", choices=tuple(TOOLS), help="the tool, if its keys do not tell")
    parser.add_argument(
        "--dataset_info",
        metavar="FILE",
        type=Path,
        help="LLaMA-Factory's dataset_info.json, if it is not beside OLD or in its dataset_dir",
    )
    parser.add_argument("--output", metavar="FILE", help="write the configuration there; printed otherwise")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --output")
    parsed = parser.parse_args(argv)
    old = Path(parsed.old)
    tool, draft = migrated(read_configuration(old), option_names(), parsed.tool, str(old), parsed.dataset_info)
    text = as_yaml(draft, tool, old.name)
    if parsed.output is None:
        print(text, end="")
    else:
        write_output(parsed.output, text, overwrite=parsed.overwrite)
        print(f"Wrote {parsed.output}: {len(draft.keys)} keys, {len(draft.left_out)} left out.", file=sys.stderr)
    problems = _problems(text)
    if "dataset" in draft.left_out:
        problems = (f"dataset: {draft.left_out['dataset']}", *problems)
    for problem in problems:
        print(f"To do: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _problems(text: str) -> tuple[str, ...]:
    """What the strict parser of `train` finds wrong with a configuration."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "migrated.yaml"
        file.write_text(text, encoding="utf-8")
        return read_for_another_machine(["--config", str(file)]).problems
