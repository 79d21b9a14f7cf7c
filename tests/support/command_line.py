"""Arguments, recipe files and data files for tests of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.support import tiny
from trl_dpo_ext.cli.arguments import Arguments, TrainParser

BASE = ["--output_dir", "out", "--use_cpu", "--bf16", "false", "--report_to", "none"]


def parse(*argv: str) -> Arguments:
    return TrainParser().parse([*BASE, *argv])


def config_file(folder: Path, **keys: Any) -> str:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(keys))
    return str(file)


def write_data(folder: Path, suffix: str) -> str:
    data, file = tiny.preferences(8), folder / f"pairs{suffix}"
    writer = {".json": data.to_json, ".jsonl": data.to_json, ".csv": data.to_csv, ".parquet": data.to_parquet}[suffix]
    writer(str(file))
    return str(file)
