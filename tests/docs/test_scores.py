"""docs/guides/score.md names the columns, expressions and functions that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.scored import random_scored
from trl_dpo_ext.scoring.expressions import FUNCTIONS
from trl_dpo_ext.scoring.measures import measure
from trl_dpo_ext.scoring.output import write_scored
from trl_dpo_ext.scoring.selection import Selection
from trl_dpo_ext.scoring.summary import summarize
from trl_dpo_ext.scoring.written_columns import TYPES

TEXT = (Path(__file__).parents[2] / "docs" / "guides" / "score.md").read_text(encoding="utf-8")
EXPRESSIONS = re.findall(r'^--(keep|relabel|weigh) "(.+)"$', TEXT, flags=re.MULTILINE)


def rows_of(heading: str) -> list[str]:
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return re.findall(r"`([\w/]+)`", " ".join(cells))


def test_every_written_column_is_described_in_its_order() -> None:
    assert rows_of("Columns of the output") == [*TYPES, "relabeled", "weight"]


def test_every_named_statistic_is_in_the_json_object() -> None:
    data = summarize(random_scored(50)) | {"compare": None}
    names = {*data, *data["accuracy"], *data["length"], *data["calibration"]}
    assert {*rows_of("Statistics")} <= names


def test_every_function_is_named() -> None:
    listed = TEXT.split("and the functions")[1].split(". `min`")[0]
    assert {*re.findall(r"`(\w+)", listed)} == {*FUNCTIONS}


@pytest.mark.parametrize(("flag", "expression"), EXPRESSIONS)
def test_the_examples_run(flag: str, expression: str, tmp_path: Path) -> None:
    scores = random_scored(50)
    made = write_scored(tmp_path / "s.parquet", scores, measure(scores), Selection(**{flag: expression}), {})
    assert made.rows > 0


def test_there_are_examples_of_every_flag() -> None:
    assert {flag for flag, _ in EXPRESSIONS} == {"keep", "relabel", "weigh"}
