"""Names of models and data: what is a hub id, and what of a path a card may show."""

from __future__ import annotations

import pytest
from datasets import Dataset, load_dataset

from tests.support.command_line import write_data
from trl_dpo_ext.model_card.names import Named, dataset_of, is_hub_id, last_part, named, rows_of, without_paths


@pytest.mark.parametrize("name", ["gpt2", "trl-lib/ultrafeedback_binarized", "Qwen/Qwen2.5-0.5B-Instruct"])
def test_a_hub_id_is_a_link(name: str) -> None:
    assert is_hub_id(name)
    assert named(name, "model").markdown() == f"[{name}](https://huggingface.co/{name})"
    assert named(name, "dataset").markdown() == f"[{name}](https://huggingface.co/datasets/{name})"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/data/secret/pairs.jsonl", "pairs.jsonl"),
        ("data/pairs.jsonl", "pairs.jsonl"),
        ("pairs.jsonl", "pairs.jsonl"),
        ("pairs.json.gz", "pairs.json.gz"),
        ("./pairs", "pairs"),
        ("../pairs/", "pairs"),
        ("~/models/base", "base"),
        ("C:\\models\\base", "base"),
        ("a/b/c", "c"),
        ("s3://bucket/secret/pairs.parquet?token=abc", "pairs.parquet"),
        ("json", "json"),
        ("name--with/dashes", "dashes"),
        ("someone/repository.git", "repository.git"),
        ("/", "a local folder"),
    ],
)
def test_anything_else_is_its_last_part_without_a_link(path: str, shown: str) -> None:
    assert not is_hub_id(path)
    assert named(path, "dataset").markdown() == f"`{shown}`"


def test_a_folder_wins_over_a_hub_id_of_the_same_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert named("someone/model", "model").on_hub
    (tmp_path / "someone/model").mkdir(parents=True)
    assert named("someone/model", "model") == Named("model", "model", on_hub=False)


def test_no_name_is_none() -> None:
    assert named(None, "model") is None
    assert named("", "model") is None


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/cache/hub/models--someone--tiny-base/snapshots/0123abc", "someone/tiny-base"),
        ("/cache/hub/models--gpt2/snapshots/0123abc/", "gpt2"),
        ("/cache/hub/datasets--trl-lib--pairs/snapshots/0123abc", "trl-lib/pairs"),
    ],
)
def test_a_folder_of_the_hubs_cache_is_its_id(folder: str, name: str) -> None:
    found = named(folder, "model")
    assert (found.name, found.on_hub) == (name, True)


def test_a_revision_is_linked_and_details_are_shown() -> None:
    found = named("someone/tiny", "model", "revision `v1`", "v1")
    assert found.markdown() == "[someone/tiny](https://huggingface.co/someone/tiny/tree/v1) (revision `v1`)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("stored log-probs in /home/me/refs (8 sequences)", "stored log-probs in refs (8 sequences)"),
        ("[/home/me/refs]", "[refs]"),
        ("a=~/me/refs,b=../up/one", "a=refs,b=one"),
        ("file:///home/me/x.json", "x.json"),
        ("C:\\Users\\me\\refs", "refs"),
        ("Qwen/Qwen2.5, float32/bfloat16, and/or, 1 / 2", "Qwen/Qwen2.5, float32/bfloat16, and/or, 1 / 2"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
    ],
)
def test_absolute_paths_in_a_text_are_cut_to_their_last_part(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_the_last_part_of_a_path_ignores_a_slash_at_the_end() -> None:
    assert last_part("/a/b//") == "b"


def test_what_a_dataset_tells_of_itself(tmp_path, monkeypatch) -> None:
    file = write_data(tmp_path, ".jsonl")
    assert dataset_of(load_dataset("json", data_files=file, split="train")) is None
    assert dataset_of(Dataset.from_dict({"prompt": ["a"]})) is None
    folder = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset_of(folder.select(range(2))) == Named(tmp_path.name, "dataset", on_hub=False)
    # As the hub's data are cached.
    cached = tmp_path / "someone___pairs/default/0.0.0"
    cached.mkdir(parents=True)
    folder.save_to_disk(str(cached))
    assert dataset_of(Dataset.load_from_disk(str(cached))) == Named("someone/pairs", "dataset", on_hub=True)


def test_rows_are_counted_but_those_of_a_stream() -> None:
    rows = Dataset.from_dict({"prompt": ["a"] * 1200})
    assert rows_of(rows) == "1,200 pairs"
    assert rows_of(rows.to_iterable_dataset()) == "streamed"
