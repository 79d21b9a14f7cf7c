"""Datasets by hub id, folder and file; errors name what is missing."""

from __future__ import annotations

import pytest

from tests.support import tiny
from tests.support.command_line import parse, write_data
from trl_dpo_ext.data.loading import load_preferences
from trl_dpo_ext.errors import InputError


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_a_dataset_may_be_one_file(tmp_path, suffix: str) -> None:
    arguments = parse("--dataset_name", write_data(tmp_path, suffix))
    train, held_out = load_preferences(arguments.script, arguments.data, arguments.args)
    assert train[0] == tiny.preferences(8)[0]
    assert held_out is None


def test_a_dataset_may_be_a_folder_of_split_files(tmp_path) -> None:
    tiny.preferences(8).to_json(str(tmp_path / "train.jsonl"))
    tiny.preferences(4).to_json(str(tmp_path / "test.jsonl"))
    arguments = parse("--dataset_name", str(tmp_path), "--eval_strategy", "epoch")
    train, held_out = load_preferences(arguments.script, arguments.data, arguments.args)
    assert (len(train), len(held_out)) == (8, 4)


def test_a_dataset_may_be_a_folder_that_datasets_saved(tmp_path) -> None:
    tiny.preferences(8).train_test_split(test_size=2).save_to_disk(str(tmp_path / "saved"))
    arguments = parse("--dataset_name", str(tmp_path / "saved"), "--eval_strategy", "epoch")
    train, held_out = load_preferences(arguments.script, arguments.data, arguments.args)
    assert (len(train), len(held_out)) == (6, 2)


def test_rows_are_held_out_on_request(tmp_path) -> None:
    argv = ["--dataset_name", write_data(tmp_path, ".jsonl"), "--eval_strategy", "epoch", "--test_split_size", "0.25"]
    arguments = parse(*argv)
    assert [len(split) for split in load_preferences(arguments.script, arguments.data, arguments.args)] == [6, 2]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "No dataset: set --dataset_name"),
        (["--dataset_name", "./nowhere.jsonl"], "--dataset_name ./nowhere.jsonl: no such file or folder."),
        (["--dataset_name", "FILE", "--dataset_train_split", "training"], "no split 'training'; it has train."),
        (
            ["--dataset_name", "FILE", "--eval_strategy", "epoch"],
            "no split 'test'; it has train. Set --dataset_test_split, or --test_split_size",
        ),
        (
            ["--dataset_name", "FILE", "--dataset_train_split", "training", "--test_split_size", "0.5"],
            "no split 'training'; it has train.",
        ),
        (["--dataset_name", "TEXT"], "a dataset file must end in .json, .jsonl, .csv, .parquet."),
        (["--dataset_name", "EMPTY"], "empty.jsonl: the file is empty."),
        (["--dataset_name", "BROKEN"], "broken.jsonl could not be loaded: "),
        (["--dataset_name", "nobody/nothing"], "Dataset nobody/nothing could not be loaded: "),
    ],
)
def test_a_dataset_that_is_not_there_is_named(tmp_path, argv: list[str], expected: str) -> None:
    (tmp_path / "pairs.txt").write_text("a")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"chosen": "a"\n')
    files = {"TEXT": "pairs.txt", "EMPTY": "empty.jsonl", "BROKEN": "broken.jsonl"}
    places = {"FILE": write_data(tmp_path, ".jsonl")} | {word: str(tmp_path / file) for word, file in files.items()}
    arguments = parse(*(places.get(word, word) for word in argv))
    with pytest.raises(InputError) as caught:
        load_preferences(arguments.script, arguments.data, arguments.args)
    assert expected in str(caught.value)
