"""The file that `score` writes: input columns as they were, what was found beside them, and training takes it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, List, load_dataset
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image

from tests.support import runs, tiny
from tests.support.scored import random_scored, scored
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.scoring import output
from trl_dpo_ext.scoring.dry_run import dry_run
from trl_dpo_ext.scoring.measures import measure, sigmoid
from trl_dpo_ext.scoring.output import METADATA_KEY, Written, output_problems, write_scored
from trl_dpo_ext.scoring.pair_scores import PairScores
from trl_dpo_ext.scoring.partners import alone, partners
from trl_dpo_ext.scoring.selection import Selection
from trl_dpo_ext.scoring.written_columns import TYPES

ENDINGS = ("parquet", "jsonl")


def write(file: Path, scores: PairScores, recorded: Any = None, overwrite: bool = False, **given: Any) -> Written:
    return write_scored(file, scores, measure(scores), Selection(**given), recorded or {}, overwrite)


def read(file: Path) -> Dataset:
    return load_dataset("json" if file.suffix == ".jsonl" else "parquet", data_files=str(file))["train"]


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def nested(number: int = 6) -> Dataset:
    """Messages, tools of various kinds, structs and nulls."""
    parameters: list[dict[str, Any]] = [{"x": 1}, {"y": "a", "z": [True]}]
    rows = [
        {
            "topic": f"t{at}",
            "prompt": [{"role": "user", "content": f"مرحبا </script> {at} 👩‍👩‍👧\u2028"}],
            "chosen": message(f"c{at}"),
            "rejected": message(f"r{at}") if at != 2 else None,
            "score_chosen": at if at != 4 else None,
            "score_rejected": at + 0.5,
            "ref_chosen_logps": -float(at),
            "ref_rejected_logps": -10.0,
            "meta": {"a_chosen": at, "a_rejected": -at, "nothing": None} if at != 1 else None,
            "margin": float(at) if at != 3 else None,
            "p_chosen": 0.25,
            "chosen_model": "m",
            "tools": [{"function": {"name": "f", "parameters": parameters[at % 2]}}],
            "nothing": None,
        }
        for at in range(number)
    ]
    return Dataset.from_list(rows, on_mixed_types="use_json")


def six(columns: Dataset | None = None, **more: Any) -> PairScores:
    status = ["ok", "identical", "dropped", "cut", "ok", "ok"]
    nan = math.nan
    return scored(
        [1, 2, nan, 4, -5, 6],
        [2, 2, nan, 2, 2, 2],
        status=status,
        columns=nested() if columns is None else columns,
        **more,
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_input_columns_come_back_as_they_were_in_their_order(tmp_path: Path, ending: str) -> None:
    given_rows, file = nested(), tmp_path / f"scored.{ending}"
    made = write(file, six(given_rows))
    back = read(file)
    assert back.column_names == [*given_rows.column_names, *TYPES]
    assert back.select_columns(given_rows.column_names).to_list() == given_rows.to_list()
    assert made.columns == [*TYPES]
    assert (made.rows, made.replaced, made.notes) == (6, [], [])
    if ending == "parquet":
        assert {name: back.features[name] for name in given_rows.column_names} == dict(given_rows.features)
        assert {name: back.features[name] for name in TYPES} == dict(TYPES)


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_was_found_stands_beside_each_row(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"scored.{ending}"
    write(file, six())
    back = read(file)
    assert back["dpo_status"][:] == ["ok", "identical", "dropped", "cut", "ok", "ok"]
    assert back["dpo_margin"][:] == [
        pytest.approx(-0.1),
        0,
        None,
        pytest.approx(0.2),
        pytest.approx(-0.7),
        pytest.approx(0.4),
    ]
    assert back["dpo_correct"][:] == [0, 0.5, None, 1, 0, 1]
    assert back["dpo_chosen_tokens"][:] == [4, 4, None, 4, 4, 4]
    row = back[3]
    assert row["dpo_policy_chosen_logps"] == 0.0
    assert row["dpo_ref_chosen_logps"] == -4.0
    assert row["dpo_reward_chosen"] == pytest.approx(0.4)
    assert row["dpo_p_chosen"] == pytest.approx(float(sigmoid(0.2)))
    assert row["dpo_margin_per_token"] == pytest.approx(0.4 / 4 - 0.2 / 5)
    assert all(back[2][name] is None for name in TYPES if name != "dpo_status")


def test_a_file_says_what_it_was_made_of(tmp_path: Path) -> None:
    write(tmp_path / "s.parquet", six(), {"policy": "out", "reference": None, "beta": 0.1, "loss": math.nan})
    metadata = pq.read_metadata(tmp_path / "s.parquet").metadata
    assert json.loads(metadata[METADATA_KEY]) == {"policy": "out", "reference": None, "beta": 0.1, "loss": None}
    assert b"huggingface" in metadata


@pytest.mark.parametrize("ending", ENDINGS)
def test_exchanging_sides_takes_everything_with_them(tmp_path: Path, ending: str) -> None:
    before, file = nested(), tmp_path / f"s.{ending}"
    made = write(file, six(before), relabel="dpo_margin < 0", keep='dpo_margin != 0 or status == "dropped"')
    back = read(file)
    assert back["topic"][:] == ["t0", "t2", "t3", "t4", "t5"]
    assert back["relabeled"][:] == [True, False, False, True, False]
    assert made.counts == {"rows": 6, "relabeled": 2, "kept": 5, "kept_relabeled": 2}
    old, new = before[4], back[3]
    assert (new["chosen"], new["rejected"]) == (old["rejected"], old["chosen"])
    assert (new["score_chosen"], new["score_rejected"]) == (4.5, None)
    assert (new["ref_chosen_logps"], new["ref_rejected_logps"]) == (-10.0, -4.0)
    assert new["meta"] == {"a_chosen": -4, "a_rejected": 4, "nothing": None}
    assert (new["margin"], new["p_chosen"]) == (-4.0, 0.75)
    assert (new["dpo_policy_chosen_logps"], new["dpo_ref_rejected_logps"]) == (-3.0, -4.0)
    assert new["dpo_margin"] == pytest.approx(0.7)
    assert new["dpo_p_chosen"] == pytest.approx(float(sigmoid(0.7)))
    assert (new["dpo_correct"], new["dpo_chosen_tokens"], new["dpo_rejected_tokens"]) == (1, 5, 4)
    assert new["prompt"] == old["prompt"]
    unchanged = [name for name in before.column_names if name != "score_chosen"]
    assert {name: back[4][name] for name in unchanged} == {name: before[5][name] for name in unchanged}
    assert made.notes == ["'chosen_model' has no partner for the other side; relabeled rows keep its value."]


def test_rows_are_kept_and_weighed_as_they_are_after_relabeling(tmp_path: Path) -> None:
    made = write(
        tmp_path / "s.parquet",
        six(),
        relabel="dpo_margin < -0.5",
        keep="dpo_margin > 0.5 or score_chosen == 5 or relabeled == False and reward_chosen < 0.25",
        weigh="abs(dpo_margin) + 1",
        weight_column="trust",
    )
    back = read(tmp_path / "s.parquet")
    assert back["topic"][:] == ["t0", "t1", "t4", "t5"]
    assert back["trust"][:] == pytest.approx([1.1, 1.0, 1.7, 1.4])
    assert made.columns == [*TYPES, "relabeled", "trust"]


def test_dropped_rows_weigh_nothing_and_others_need_a_weight(tmp_path: Path) -> None:
    write(tmp_path / "s.parquet", six(), weigh="dpo_margin ** 2")
    assert read(tmp_path / "s.parquet")["weight"][2] == 0.0
    for text, found in (
        ("dpo_margin", "row 0 has -0.1 (2 rows in all)"),
        ("1 / dpo_margin ** 2", "row 1 has inf"),
        ("log(-1)", "none"),
    ):
        with pytest.raises(InputError, match="weights must be 0 or more and finite") as error:
            write(tmp_path / "other.parquet", six(), weigh=text)
        assert found in str(error.value)
    write(tmp_path / "kept.parquet", six(), weigh="dpo_margin", keep="dpo_margin >= 0")
    assert not (tmp_path / "other.parquet").exists()


def test_relabeling_twice_says_what_was_exchanged_in_the_end(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", six(), relabel='topic == "t4" or topic == "t5"')
    again = read(tmp_path / "a.parquet")
    given_flags = {"relabel": 'topic == "t5" or topic == "t0"'}
    write(tmp_path / "kept.parquet", six(again), keep="relabeled", **given_flags)
    assert read(tmp_path / "kept.parquet")["topic"][:] == ["t0", "t4"]
    made = write(tmp_path / "b.parquet", six(again), **given_flags)
    back = read(tmp_path / "b.parquet")
    assert back["relabeled"][:] == [True, False, False, False, True, False]
    assert back.column_names == again.column_names
    assert back["chosen"][5] == message("c5")
    assert made.replaced == [*TYPES, "relabeled"]
    wrong = six(again.remove_columns("relabeled").add_column("relabeled", ["x"] * 6))
    with pytest.raises(InputError, match="--relabel writes the column 'relabeled', which the dataset has with other"):
        write(tmp_path / "c.parquet", wrong, relabel="dpo_margin < 0")


def test_images_come_back(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 3), "red").save(buffer, "png")
    column = {"images": [[{"bytes": buffer.getvalue(), "path": None}]] * 6}
    images = Dataset.from_dict(column, features=Features({"images": List(datasets.Image())}))
    rows = datasets.concatenate_datasets([nested(), images], axis=1)
    write(tmp_path / "s.parquet", six(rows), relabel="dpo_margin < 0")
    assert read(tmp_path / "s.parquet")[0]["images"][0].size == (2, 3)
    with pytest.raises(InputError, match="JSON cannot hold the columns images"):
        write(tmp_path / "s.jsonl", six(rows))


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_rows_are_a_file_with_all_columns(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"s.{ending}"
    made = write(file, scored([], [], columns=nested().select([])), relabel="dpo_margin < 0", weigh="dpo_margin")
    assert made.rows == 0
    assert "0 rows" in made.notes[0]
    if ending == "parquet":
        assert pq.read_schema(file).names == [*nested().column_names, *TYPES, "relabeled", "weight"]
    else:
        assert file.read_text() == ""


@pytest.mark.parametrize("ending", ENDINGS)
def test_more_rows_than_a_batch_and_rows_in_another_order(tmp_path: Path, ending: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(output, "_BATCH", 3)
    order = [5, 0, 3, 1, 4, 2, 0]
    rows = nested().select(order)
    scores = scored([float(at) for at in range(7)], [3.0] * 7, columns=rows)
    write(tmp_path / f"s.{ending}", scores, relabel="dpo_margin < 0", keep="topic != 't1'")
    back = read(tmp_path / f"s.{ending}")
    assert back["topic"][:] == ["t5", "t0", "t3", "t4", "t2", "t0"]
    assert back["dpo_margin"][:] == pytest.approx([0.3, 0.2, 0.1, 0.1, 0.2, 0.3])
    assert back["chosen"][:3] == [message("r5"), message("r0"), message("r3")]


def test_a_batch_is_smaller_where_rows_are_large(tmp_path: Path, monkeypatch: Any) -> None:
    sizes, exchange = [], output.exchange_sides

    def counted(table: Any, *more: Any) -> Any:
        sizes.append(len(table))
        return exchange(table, *more)

    monkeypatch.setattr(output, "exchange_sides", counted)
    monkeypatch.setattr(output, "_BATCH_BYTES", 2 * nested().data.nbytes // 6 + 1)
    write(tmp_path / "s.parquet", six(), relabel="dpo_margin < 0")
    assert sizes == [2, 2, 2]


def test_a_dataset_with_a_format_is_written_whole(tmp_path: Path) -> None:
    rows = nested().with_format("numpy", columns=["margin"])
    write(tmp_path / "s.jsonl", six(rows))
    assert json.loads((tmp_path / "s.jsonl").read_text().splitlines()[0])["prompt"] == nested()[0]["prompt"]


@pytest.mark.parametrize(
    ("name", "given_flags", "match"),
    [
        ("s.csv", {}, "s.csv: a file of scored rows must end in .parquet or .jsonl"),
        ("there.parquet", {}, "the file exists. Choose another name, or set --overwrite"),
        ("folder.parquet", {}, "this is a folder; name a file"),
        ("s.parquet", {"keep": "margin > 0"}, "'margin' is a column of the dataset, and short for dpo_margin"),
        ("s.parquet", {"keep": "best > 0"}, "no column is called 'best'; there are topic"),
        ("s.parquet", {"keep": "relabeled"}, "no column is called 'relabeled'"),
        ("s.parquet", {"relabel": "relabeled"}, "no column is called 'relabeled'"),
        ("s.parquet", {"weigh": "1", "weight_column": "topic"}, "--weight_column topic: the dataset has this column"),
        (
            "s.parquet",
            {"weigh": "1", "weight_column": "dpo_margin"},
            "--weight_column dpo_margin: `score` writes this column",
        ),
        (
            "s.parquet",
            {"weigh": "1", "weight_column": "relabeled"},
            "--weight_column relabeled: `score` writes this column",
        ),
        ("s.parquet", {"signed_columns": ["gap"]}, "--signed_columns: no column is called gap"),
        ("s.parquet", {"relabel": "dpo_margin < 0", "signed_columns": ["topic"]}, "'topic' holds string; numbers"),
    ],
)
def test_what_cannot_be_written_is_said_and_nothing_is_touched(
    tmp_path: Path, name: str, given_flags: Any, match: str
) -> None:
    (tmp_path / "there.parquet").write_text("mine")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(InputError, match=match):
        write(tmp_path / name, six(), **given_flags)
    assert (tmp_path / "there.parquet").read_text() == "mine"
    assert len([*tmp_path.iterdir()]) == 2


def test_all_problems_are_listed_before_anything_is_computed(tmp_path: Path) -> None:
    rows = nested().add_column("z_chosen", [[1]] * 6).add_column("z_rejected", ["x"] * 6)
    selection = Selection(relabel="a > 0", keep="b > 0", weigh="c", weight_column="topic")
    problems = output_problems(tmp_path / "s.txt", rows, selection)
    assert len(problems) == 6
    assert "'z_chosen' and 'z_rejected', but the one holds list" in problems[-1]


@pytest.mark.parametrize(
    ("given_flags", "match"),
    [
        ({"keep": "topic > 3"}, "topic and 3 cannot be compared"),
        ({"keep": "dpo_margin"}, "a condition is needed"),
        ({"keep": "prompt == 'x'"}, "Column 'prompt' holds list"),
        ({"keep": "number > 3"}, "integers beyond 2"),
        ({"relabel": "status > 3"}, "status and 3 cannot be compared"),
        ({"weigh": "topic"}, "a number is needed"),
        ({"relabel": "dpo_margin < 0", "signed_columns": ["topic"]}, "'topic' holds string; numbers are needed"),
        ({"relabel": "dpo_margin < 0", "signed_columns": ["small"]}, "'small' holds uint8, which has no negative"),
    ],
)
def test_types_are_checked_before_a_model_is_loaded(tmp_path: Path, given_flags: Any, match: str) -> None:
    more = {"number": [2**60] * 6, "small": np.ones(6, np.uint8)}
    rows = datasets.concatenate_datasets([nested(), Dataset.from_dict(more)], axis=1)
    (problem,) = output_problems(tmp_path / "s.parquet", rows, Selection(**given_flags))
    assert match in problem


def test_values_that_a_model_has_still_to_find_are_no_problem(tmp_path: Path) -> None:
    selection = Selection(
        relabel="margin < -1 and status == 'ok'",
        keep="relabeled or p_chosen > quantile(p_chosen, 0.5) and chosen_tokens < 2000",
        weigh="-margin",
    )
    rows = nested().remove_columns(["margin", "p_chosen"])
    assert output_problems(tmp_path / "s.parquet", rows, selection) == []
    assert output_problems(tmp_path / "s.parquet", rows.select([]), selection) == []


def test_a_file_is_replaced_when_it_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "s.parquet"
    file.write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(output.pq.ParquetWriter, "write_table", full)
        with pytest.raises(InputError, match="No space left on device"):
            write(file, six(), overwrite=True)
    with monkeypatch.context() as context:
        context.setattr(output.os, "replace", full)
        with pytest.raises(InputError, match="No space left on device"):
            write(file, six(), overwrite=True)
    assert file.read_text() == "old"
    assert [*tmp_path.iterdir()] == [file]
    write(file, six(), overwrite=True)
    assert len(read(file)) == 6


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "given_flags",
    [
        {"relabel": "dpo_margin < 0", "keep": "dpo_margin > 0.15 and score_chosen > 3"},
        {"relabel": "p_chosen < 0.6 and topic != 't0'", "keep": "relabeled"},
        {"keep": "dpo_margin > quantile(dpo_margin, 0.4)"},
    ],
)
def test_a_dry_run_counts_what_writing_would_do(tmp_path: Path, ending: str, given_flags: Any) -> None:
    rows = nested().remove_columns("p_chosen")
    write(tmp_path / f"all.{ending}", six(rows))
    expected = write(tmp_path / f"some.{ending}", six(rows), **given_flags).counts
    assert dry_run(tmp_path / f"all.{ending}", Selection(**given_flags)).counts() == expected
    assert 0 < expected["kept"] < 6


def test_a_dry_run_needs_a_file_of_score(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.parquet does not exist"):
        dry_run(tmp_path / "no.parquet", Selection())
    nested().to_parquet(str(tmp_path / "data.parquet"))
    with pytest.raises(InputError, match="no column 'dpo_policy_chosen_logps'; `score` has not written it"):
        dry_run(tmp_path / "data.parquet", Selection())
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        dry_run(tmp_path / "broken.jsonl", Selection())
    (tmp_path / "broken.parquet").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        dry_run(tmp_path / "broken.parquet", Selection())


@given(
    some.lists(some.sampled_from(["chosen", "rejected", "a_chosen", "rejected-b", "chosen_tokens", "chosenness", "x"]))
)
def test_partners_are_each_others_and_never_alone(names: list[str]) -> None:
    found = partners(names)
    assert all(found[other] == name for name, other in found.items())
    assert not set(alone(names)) & found.keys()
    assert "chosenness" not in alone(names)


@pytest.mark.parametrize("ending", ENDINGS)
def test_training_takes_the_file_as_it_is(tmp_path: Path, ending: str) -> None:
    words = tiny.SENTENCE.split()
    columns = {
        "prompt": [f"{words[at]} say " for at in range(12)],
        "chosen": ["yes it is"] * 12,
        "rejected": ["no sky"] * 12,
        "score_chosen": [2.0] * 12,
        "score_rejected": [1.0] * 12,
    }
    scores = random_scored(12, columns=Dataset.from_dict(columns))
    file = tmp_path / f"s.{ending}"
    write(file, scores, relabel="margin < -0.5", keep="status != 'dropped'", weigh="p_chosen")
    trainer = runs.trainer(tmp_path / "run", train_dataset=read(file), max_steps=1, weight_column="weight")
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss"])
