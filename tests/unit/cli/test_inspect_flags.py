"""Flags of `inspect` that are wrong, or ask for what is not there: each is answered, and nothing is computed for naught."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from tests.support import tiny
from trl_dpo_ext.cli import main as cli

ROWS = [
    {"prompt": "say ", "chosen": "yes it is", "rejected": "no no please", "source": "web"},
    {"prompt": "say that ", "chosen": "no sky", "rejected": "let me think", "source": "book"},
    {"prompt": "say yes no four five ", "chosen": "yes it", "rejected": "no sky", "source": "web"},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    write("pairs.jsonl", ROWS)
    return tmp_path


def write(file: str, rows: list[dict]) -> None:
    Path(file).parent.mkdir(exist_ok=True)
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def inspect(*flags: str, data: str = "pairs.jsonl") -> int:
    return cli.main(["inspect", "--model_name_or_path", "model", "--dataset_name", data, *flags])


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_files_that_cannot_be_written_are_named_before_anything_is_tokenized(
    folder: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("trl_dpo_ext.cli.inspect.inspect_preferences", lambda *_, **__: pytest.fail("inspected"))
    (folder / "there").mkdir()
    flags = ["--json", "none/a.json", "--html", "there", "--write_rows", "none/rows.csv", "--subset_column", "sorce"]
    assert inspect(*flags, "--problem", "length") == 2
    said = capsys.readouterr().err
    for expected in (
        "--json none/a.json: the folder none does not exist.",
        "--html there: this is a folder; name a file.",
        "--write_rows none/rows.csv: the folder none does not exist.",
        "must end in .jsonl or .parquet",
        "--subset_column sorce: the train split has no such column; it has prompt, chosen, rejected, source.",
        "--problem: unknown length; one of ",
    ):
        assert expected in said
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--examples", "x"], "argument --examples: must be a whole number, 0 or more; got x"),
        (["--examples", "-1"], "--examples"),
        (["--max_rows", "0"], "argument --max_rows: must be a whole number, 1 or more; got 0"),
        (["--row"], "argument --row: expected at least one argument"),
        (["--splits", "none"], "argument --splits: invalid choice: 'none'"),
        (["--strict", "worst"], "argument --strict: invalid choice: 'worst'"),
        (["--images", "maybe"], "argument --images: invalid choice: 'maybe'"),
    ],
)
def test_wrong_values_are_errors_like_all_others(folder: Path, capsys: Any, flags: list[str], says: str) -> None:
    assert inspect(*flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert says in said
    assert "usage:" not in said


def test_a_split_that_is_asked_for_has_to_be_there(folder: Path, capsys: Any) -> None:
    assert inspect("--dataset_test_split", "held_out") == 2
    assert "no split 'held_out'; it has train. Set --dataset_test_split" in capsys.readouterr().err
    assert inspect("--dataset_train_split", "training") == 2
    assert "no split 'training'; it has train. Set --dataset_train_split" in capsys.readouterr().err
    assert inspect() == 0


def test_a_finding_without_rows_to_show_says_why(folder: Path, capsys: Any) -> None:
    for name, says in (
        ("length_bias", "Nothing has the finding length_bias."),
        ("unused_column", "unused_column is a finding of the dataset, and not of single rows."),
        ("dropped", "dropped is a finding of rows that are not trained, and have no sequences to show: train 2."),
    ):
        assert inspect("--problem", name, "--max_length", "4") == 0
        said = one_line(capsys.readouterr().out)
        assert says in said
        assert "row 0 of train" not in said


def test_rows_that_are_asked_for_are_in_the_json_too(folder: Path, capsys: Any) -> None:
    assert inspect("--row", "1", "--json", "-") == 0
    assert [row["row"] for row in json.loads(capsys.readouterr().out)["examples"]] == [1]
    assert inspect("--problem", "answer_cut", "--max_length", "4", "--json", "-") == 0
    assert [row["row"] for row in json.loads(capsys.readouterr().out)["examples"]] == [0, 1]
    assert inspect("--row", "0", "-1") == 2
    assert "Row -1 of the train split does not exist; there are 3." in capsys.readouterr().err


def test_rows_of_a_split_that_train_refuses_show_why(folder: Path, capsys: Any) -> None:
    several = {"prompt": "say", "chosen": ["yes", "no"], "rejected": "so"}
    write("wrong.jsonl", [{**several, "chosen": ["yes"]}, several])
    for flags in (["--row", "0"], ["--problem", "layout"], []):
        assert inspect(*flags, data="wrong.jsonl") == 2
        assert "chosen is a list of several answers" in one_line(capsys.readouterr().out)


def test_the_first_rows_are_said_to_be_the_first(folder: Path, capsys: Any) -> None:
    for stream in ([], ["--dataset_streaming", "true"]):
        assert inspect("--max_rows", "2", *stream) == 0
        said = one_line(capsys.readouterr().out)
        assert "train the first 2 rows" in said
        assert "are looked for among these rows alone" in said
    assert inspect() == 0
    assert "the first" not in capsys.readouterr().out


@pytest.mark.parametrize("width", ["40", "60", "80", "120"])
def test_sentences_use_the_width_of_a_narrow_terminal(folder: Path, capsys: Any, monkeypatch: Any, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert inspect("--max_length", "4") == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert max(map(len, lines)) <= int(width)
    assert "identical_after_truncation" not in said
    assert "cuts the answers of 2 of 2 rows" in one_line(said)
    first = next(at for at, line in enumerate(lines) if "max_length=4 cuts" in line)
    assert len(lines[first].split()) >= 4


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_every_standard_output_is_printed_to(folder: Path, monkeypatch: Any, encoding: str) -> None:
    write("emoji.jsonl", [{"prompt": "say \N{GRINNING FACE} ", "chosen": "yes ─ it", "rejected": "no", "é": "日"}])
    texts = []
    for flags in ([], ["--json", "-"], ["--row", "0"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        assert inspect(*flags, data="emoji.jsonl") == 0
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    assert "First difference" in texts[0]
    assert [*json.loads(texts[1])["splits"]["train"]["columns"]["unused"].items()] == [("é", "日")]
    assert ("█" in texts[0]) == (encoding == "utf-8")


@pytest.mark.parametrize("value", ["1", "true"])
def test_no_color_is_plain_text_in_a_terminal_too(folder: Path, capsys: Any, monkeypatch: Any, value: str) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert inspect("--max_length", "4") == 0
    plain = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", value)
    assert inspect("--max_length", "4") == 0
    assert capsys.readouterr().out == plain


def test_conversions_are_told(folder: Path, capsys: Any) -> None:
    talk = {"prompt": "say", "chosen": [{"role": "assistant", "content": "yes"}]}
    write("mixed.jsonl", [{**talk, "rejected": [{"role": "assistant", "content": "no"}]}] * 2)
    assert inspect(data="mixed.jsonl") == 0
    assert "converted: prompt: text -> a message of the user (train 2 rows)" in one_line(capsys.readouterr().out)


def test_images_are_counted_on_request(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    from tests.unit.inspection.test_images import pictured, vision_language

    rows = pictured(each=(1, 1))
    rows.to_parquet("pictured.parquet")
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *_, **__: vision_language.processor())
    counts = []
    for flags in ([], ["--images"], ["--images", "true"], ["--images", "false"]):
        assert inspect(*flags, "--json", "-", data="pictured.parquet") == 0
        counts.append(json.loads(capsys.readouterr().out)["splits"]["train"]["lengths"]["prompt"]["before"]["sum"])
    assert counts[0] == counts[3] < counts[1] == counts[2]
