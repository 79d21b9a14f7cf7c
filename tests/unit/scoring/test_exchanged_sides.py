"""`--relabel` exchanges the sides wherever they stand: in columns of any name, and inside of structs and lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from tests.unit.scoring.test_output import ENDINGS, nested, read, six, write
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.scoring.partners import exchange_sides
from trl_dpo_ext.scoring.selection import Selection

TURNS = [[{"chosen": "a", "rejected": "b", "n": 1}, {"chosen": "c", "rejected": None, "n": 2}], None, [], None]
SWAPPED = [[{"chosen": "b", "rejected": "a", "n": 1}, {"chosen": None, "rejected": "c", "n": 2}], None, [], None]
_SIDED = pa.struct({"s_chosen": pa.float64(), "s_rejected": pa.float64()})


def _sided(chosen: float, rejected: float) -> dict[str, float]:
    return {"s_chosen": chosen, "s_rejected": rejected}


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        (None, TURNS, SWAPPED),
        (None, [{"x": [turns]} for turns in TURNS], [{"x": [turns]} for turns in SWAPPED]),
        (pa.list_(_SIDED, 2), [[_sided(1, 2)] * 2, None] * 2, [[_sided(2, 1)] * 2, None] * 2),
        (pa.large_list(pa.list_(_SIDED)), [[[_sided(1, 2)], []]] * 4, [[[_sided(2, 1)], []]] * 4),
        (None, [[{"p_chosen": 0.25, "model_chosen": "m"}]] * 4, [[{"p_chosen": 0.75, "model_chosen": "m"}]] * 4),
        (None, [[{"role": "user", "content": "chosen"}]] * 4, [[{"role": "user", "content": "chosen"}]] * 4),
    ],
    ids=["ragged", "nested", "fixed size", "large", "probability", "messages"],
)
def test_sides_are_exchanged_inside_of_lists(kind: Any, before: list[Any], after: list[Any]) -> None:
    table = pa.table({"column": pa.array([None, *before], kind), "x": list(range(5))}).slice(1)
    found = exchange_sides(table, pa.array([True] * 4))
    assert found["column"].to_pylist() == after
    assert found["column"].type == table["column"].type
    kept = exchange_sides(table, pa.array([False] * 4))
    assert kept["column"].to_pylist() == before


@pytest.mark.parametrize("ending", ENDINGS)
def test_sides_of_two_types_inside_of_lists_are_written_as_one(tmp_path: Path, ending: str) -> None:
    rows = nested().add_column("turns", [[{"s_chosen": 1, "s_rejected": 2.5}]] * 6)
    write(tmp_path / f"s.{ending}", six(rows), relabel="dpo_margin < 0")
    assert read(tmp_path / f"s.{ending}")["turns"][4] == [{"s_chosen": 2.5, "s_rejected": 1.0}]
    torn = nested().add_column("turns", [[{"s_chosen": "text", "s_rejected": [1]}]] * 6)
    with pytest.raises(InputError, match=r"exchanges 'turns\.s_chosen' and 'turns\.s_rejected', but the one"):
        write(tmp_path / f"t.{ending}", six(torn), relabel="dpo_margin < 0")


def test_sides_under_other_names_are_exchanged(tmp_path: Path) -> None:
    names = {"chosen": "good", "rejected": "bad", "score_chosen": "good_stars", "score_rejected": "bad_stars"}
    rows = nested().rename_columns(names)
    write(tmp_path / "s.parquet", six(rows), relabel="dpo_margin < 0", dataset_columns=names)
    old, new = rows[4], read(tmp_path / "s.parquet")[4]
    assert (new["good"], new["bad"], new["good_stars"]) == (old["bad"], old["good"], old["bad_stars"])


@pytest.mark.parametrize(
    ("names", "mapping", "found"),
    [
        (["x", "y", "better"], {"a": "x", "b": "y", "winner": "better", "winner_is_b": "y"}, "column 'better' that"),
        (["prompt", "answers"], {"chosen": "answers.0", "rejected": "answers.1"}, "'answers.0' and no column 'answ"),
        (["messages", "rejected_response"], None, "no column 'chosen' and no column 'rejected'"),
        (["prompt", "chosen", "bad"], {"prompt": "prompt"}, "no column 'rejected'"),
    ],
)
def test_sides_that_are_no_columns_cannot_be_exchanged(names: list[str], mapping: Any, found: str) -> None:
    rows = Dataset.from_dict({name: ["a"] for name in names})
    problems = Selection(relabel="margin < 0", dataset_columns=mapping).problems(rows)
    assert [found in problem for problem in problems] == [True]
    assert not Selection(keep="margin > 0", dataset_columns=mapping).problems(rows)
