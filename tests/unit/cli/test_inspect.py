"""The command `trl-dpo-ext inspect`: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support import tiny
from trl_dpo_ext import __version__
from trl_dpo_ext.cli import main as cli

SOUND = [
    {"prompt": "say ", "chosen": "yes it is", "rejected": "no no please"},
    {"prompt": "say that ", "chosen": "no sky", "rejected": "let me think"},
]
ROWS = [
    *SOUND,
    {"prompt": "name ", "chosen": "yes it is blue", "rejected": "yes it is four"},
    {"prompt": "say yes no four five ", "chosen": "yes it", "rejected": "no sky"},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    write(tmp_path / "pairs.jsonl", ROWS)
    return tmp_path


def write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def inspect(*flags: str, data: str = "pairs.jsonl") -> int:
    return cli.main(["inspect", "--model_name_or_path", "model", "--dataset_name", data, *flags])


def test_it_prints_statistics_findings_and_examples(folder: Path, capsys: Any) -> None:
    assert inspect("--max_length", "4") == 0
    said = capsys.readouterr().out
    for expected in (
        "pairs.jsonl   tokenizer model (chat template)   max_length 4, keep_start",
        "train 4 rows; layout: prompt + answers, texts",
        "chosen, as trained",
        "3 cut (100 %), 4 tokens",
        "First difference",
        "WARNING  dropped                     1 (25 %)",
        "1 of 4 rows dropped: the prompt alone fills max_length=4; rows 3",
        "-> Raise max_length to 64, or filter these rows.",
        "identical_after_truncation",
        "row 0 of train   prompt 1  chosen 3 of 4",
        "[prompt]   say",
        "yes it is[cut: ",
        "--problem NAME shows rows of one",
    ):
        assert " ".join(expected.split()) in " ".join(said.split())
    assert "\x1b" not in said


def test_colors_are_never_needed(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    inspect("--max_length", "4")
    plain = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    inspect("--max_length", "4")
    colored = capsys.readouterr().out
    assert "\x1b[" in colored
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert [line.split() for line in stripped.splitlines()] == [line.split() for line in plain.splitlines()]


def test_json_alone_goes_to_standard_output(folder: Path, capsys: Any) -> None:
    assert inspect("--json", "-", "--max_length", "4") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["format"]) == ("trl_dpo_ext.inspect", 1)
    assert found["arguments"]["dataset"] == "pairs.jsonl"
    assert found["versions"]["trl_dpo_ext"] == __version__
    assert found["splits"]["train"]["rows"] == {"loaded": 4, "dropped": 1, "kept": 3, "kept_share": 0.75}
    assert inspect("--json", "out.json", "--max_length", "4") == 0
    written = json.loads(Path("out.json").read_text())
    assert {**written, "date": None} == {**found, "date": None}


def test_rows_are_shown_with_their_token_ids(folder: Path, capsys: Any) -> None:
    assert inspect("--row", "2", "0") == 0
    said = capsys.readouterr().out
    assert said.index("row 2 of train") < said.index("row 0 of train")
    ids = tiny.tokenizer()("yes it is <eos>")["input_ids"]
    assert " ".join(map(str, ids)) in said
    assert inspect("--row", "7") == 2
    assert "Row 7 of the train split does not exist; there are 4." in capsys.readouterr().err


def test_rows_of_one_finding_are_shown(folder: Path, capsys: Any) -> None:
    assert inspect("--problem", "identical_after_truncation", "--max_length", "4") == 0
    said = capsys.readouterr().out
    assert "row 2 of train" in said
    assert "row 0 of train" not in said
    assert inspect("--problem", "identicle") == 2
    assert "unknown identicle; one of layout, " in capsys.readouterr().err


def test_rows_are_written_for_filtering(folder: Path, capsys: Any) -> None:
    for name in ("rows.jsonl", "rows.parquet"):
        assert inspect("--write_rows", name, "--max_length", "4") == 0
        kind = "json" if name.endswith("l") else "parquet"
        rows = load_dataset(kind, data_files=name, cache_dir=str(folder / "cache"))["train"].to_list()
        assert [row["row"] for row in rows] == [0, 1, 2, 3]
        assert rows[2]["n_chosen"] == 5
        assert "identical_after_truncation" in rows[2]["findings"]
        assert (rows[3]["n_prompt"], rows[3]["findings"]) == (None, ["dropped"])
    assert inspect("--write_rows", "rows.csv") == 2
    assert "must end in .jsonl or .parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        ([], 0),
        (["--strict"], 1),
        (["--strict", "warning"], 1),
        (["--strict", "error"], 0),
        (["--strict", "--ignore", "duplicate_row"], 0),
        (["--strict", "note", "--ignore", "duplicate_row"], 1),
        (["--strict", "note", "--ignore", "duplicate_row", "unused_column"], 0),
        (["--strict", "--ignore_findings", "duplicate_row"], 0),
    ],
)
def test_strict_ends_with_status_one(folder: Path, capsys: Any, flags: list[str], status: int) -> None:
    write(folder / "twice.jsonl", [{**row, "source": "web"} for row in [*SOUND, SOUND[0]]])
    assert inspect(*flags, data="twice.jsonl") == status
    assert ("ignored" in capsys.readouterr().out) == ("duplicate_row" in flags)


def test_wrong_data_is_named_and_ends_with_status_two(folder: Path, capsys: Any) -> None:
    write(folder / "wrong.jsonl", [{"question": "say", "answer": "yes"}])
    assert inspect(data="wrong.jsonl") == 2
    said = capsys.readouterr().out
    assert "ERROR" in said
    assert "train dataset has no column 'chosen', 'rejected'" in said.replace("\n", " ")
    Path("half").mkdir()
    write(folder / "half" / "train.jsonl", SOUND)
    write(folder / "half" / "test.jsonl", [{"prompt": "say " * 5, "chosen": "yes", "rejected": "no"}])
    assert inspect("--max_length", "5", data="half") == 2
    assert "all 1 rows dropped" in capsys.readouterr().out


def test_everything_that_is_wrong_with_the_flags_is_said_at_once(folder: Path, capsys: Any) -> None:
    assert cli.main(["inspect", "--dataset_name", "none.jsonl", "--ignore", "lenght", "--max_lenght", "5"]) == 2
    said = capsys.readouterr().err
    for expected in ("max_lenght", "unknown lenght", "No tokenizer: set --model_name_or_path", "none.jsonl"):
        assert expected in said


def test_the_tokenizer_may_be_named_alone(folder: Path, capsys: Any) -> None:
    flags = ["--tokenizer_name_or_path", "model", "--dataset_name", "pairs.jsonl", "--json", "-"]
    assert cli.main(["inspect", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["arguments"]["model"] == "model"


def test_a_configuration_file_names_the_data_of_the_run(folder: Path, capsys: Any) -> None:
    Path("run.yaml").write_text(
        "model_name_or_path: model\ndataset_name: pairs.jsonl\nmax_length: 4\nloss_type: [dpop]\nlearning_rate: 1.0e-6\n"
    )
    assert cli.main(["inspect", "--config", "run.yaml", "--json", "-"]) == 0
    arguments = json.loads(capsys.readouterr().out)["arguments"]
    assert (arguments["max_length"], arguments["loss_type"]) == (4, ["dpop"])


def test_both_splits_are_inspected_and_compared(folder: Path, capsys: Any) -> None:
    Path("data").mkdir()
    write(folder / "data" / "train.jsonl", ROWS)
    write(folder / "data" / "test.jsonl", [{**SOUND[0], "prompt": "say  "}, {**SOUND[1], "prompt": "Say "}])
    assert inspect("--json", "-", data="data") == 0
    found = json.loads(capsys.readouterr().out)
    assert [*found["splits"]] == ["train", "test"]
    assert found["overlap"]["prompts"] == {"exact": 1, "case_folded": 2}
    assert found["overlap"]["prompt_chosen"]["exact"] == 1
    assert [f["split"] for f in found["findings"] if f["name"] == "train_test_overlap"] == ["test"]
    for split in ("train", "test"):
        assert inspect("--json", "-", "--splits", split, data="data") == 0
        assert [*json.loads(capsys.readouterr().out)["splits"]] == [split]
    assert inspect("--splits", "test") == 2
    assert "The dataset has no split 'test'; it has train." in capsys.readouterr().err


def test_a_stream_needs_a_number_of_rows(folder: Path, capsys: Any) -> None:
    assert inspect("--dataset_streaming", "true") == 2
    assert "Set --max_rows." in capsys.readouterr().err
    assert inspect("--dataset_streaming", "true", "--max_rows", "2", "--json", "-") == 0
    streamed = json.loads(capsys.readouterr().out)
    assert inspect("--max_rows", "2", "--json", "-") == 0
    loaded = json.loads(capsys.readouterr().out)
    assert streamed["splits"]["train"]["rows"]["loaded"] == 2
    assert streamed["splits"] == loaded["splits"]
    assert streamed["findings"] == loaded["findings"]


def test_columns_that_a_loss_reads_are_told_apart(folder: Path, capsys: Any) -> None:
    rows = [{**row, "score_chosen": 2.0 + at, "score_rejected": 1.0, "source": "web"} for at, row in enumerate(SOUND)]
    write(folder / "scored.jsonl", rows)
    assert inspect("--json", "-", data="scored.jsonl") == 0
    columns = json.loads(capsys.readouterr().out)["splits"]["train"]["columns"]
    assert columns["used"] == ["prompt", "chosen", "rejected"]
    assert columns["unused"] == {"score_chosen": 2.0, "score_rejected": 1.0, "source": "web"}
    assert set(columns["readable"]) == {"score_chosen", "score_rejected"}
    assert inspect("--json", "-", "--subset_column", "source", data="scored.jsonl") == 0
    bias = json.loads(capsys.readouterr().out)["splits"]["train"]["length_bias"]
    assert bias["subsets"]["web"]["before"] == bias["before"]
    assert bias["scores"]["n"] == 2


def test_no_model_is_loaded(folder: Path, capsys: Any, monkeypatch: Any) -> None:
    def load(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", load)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    assert not list((folder / "model").glob("*.safetensors"))
    assert inspect() == 0


def test_findings_of_a_run_are_printed_before_a_model_is_loaded(folder: Path, monkeypatch: Any) -> None:
    from trl.trainer import dpo_trainer

    from tests.support import runs

    def load(*_: Any, **__: Any) -> None:
        raise LookupError("the model is loaded now")

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", load)
    tiny.saved_model(str(folder / "model"))
    data = Dataset.from_list(ROWS)
    settings = {"train_dataset": data, "eval_dataset": {"a": data}, "max_length": 4, "loss_type": "simpo"}
    with (
        pytest.warns(UserWarning, match="ignore_findings") as told,
        pytest.raises(LookupError, match="the model is loaded now"),
    ):
        runs.trainer(folder / "out", model=str(folder / "model"), **settings)
    lines = [str(warning.message) for warning in told]
    for name in ("dropped", "identical_after_truncation", "answer_cut", "eos_cut"):
        for dataset in ("train", "a"):
            assert any(
                line.startswith(f"{dataset} dataset: ") and f"ignore_findings: {name})" in line for line in lines
            )
    with pytest.warns(UserWarning, match="ignore_findings") as told, pytest.raises(LookupError):
        runs.trainer(folder / "out", model=str(folder / "model"), ignore_findings=["dropped"], **settings)
    assert not any("ignore_findings: dropped)" in str(warning.message) for warning in told)


def test_a_run_and_inspect_name_the_same_findings(folder: Path, capsys: Any) -> None:
    from tests.support import runs

    rows = [*ROWS, ROWS[0], {"prompt": "say <eos> ", "chosen": "yes <eos> ", "rejected": "yes <eos> "}]
    write(folder / "pairs.jsonl", rows)
    assert inspect("--json", "-", "--max_length", "4") == 0
    shown = [f["name"] for f in json.loads(capsys.readouterr().out)["findings"] if f["level"] == "warning"]
    with pytest.warns(UserWarning, match="ignore_findings") as told:
        runs.trainer(folder / "out", train_dataset=Dataset.from_list(rows), max_length=4, loss_type="simpo")
    lines = [str(warning.message) for warning in told if "ignore_findings: " in str(warning.message)]
    assert sorted(line.split("ignore_findings: ")[1].rstrip(")") for line in lines) == sorted(shown)
