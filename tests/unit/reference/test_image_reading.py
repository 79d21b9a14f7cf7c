"""Reading the images of a dataset: every problem with its rows, and nothing read twice."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from tests.features import vision
from tests.support.pictures import on_disk, picture, pictured
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.precompute import image_reading
from trl_dpo_ext.reference.precompute.image_content import ImageContent
from trl_dpo_ext.reference.precompute.image_reading import read_keys


def collator(**settings: Any) -> DataCollatorForVisionPreference:
    return DataCollatorForVisionPreference(vision.processor(), **settings)


def damaged(rows: int, bad: list[int]) -> Dataset:
    """Pictures some of which are cut in the middle."""
    data = pictured(rows)
    stored = data.with_format("arrow")[:].column("images").to_pylist()
    for row in bad:
        stored[row][0]["bytes"] = stored[row][0]["bytes"][:40]
    return data.remove_columns("images").add_column("images", stored, feature=data.features["images"])


def problems_of(data: Any, **options: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_keys(data, collator(), "train_dataset", disable_tqdm=True, **options)
    return caught.value.problems


def test_images_that_cannot_be_decoded_are_counted_with_their_rows() -> None:
    data = damaged(100, bad=[3, 70, 71, 72, 73, 74, 99])
    (problem,) = problems_of(data)
    assert problem.startswith("train_dataset: an image cannot be decoded (")
    assert "in 7 of 100 rows (3, 70, 71, 72, 73 ...)" in problem
    (problem,) = problems_of(data, numbers=range(1000, 1100))
    assert "(1003, 1070, " in problem


def test_all_problems_are_told_at_once() -> None:
    data = damaged(6, bad=[1])
    few = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "say"}]}]
    parts = [
        [{"type": "text", "text": message["content"]} for message in row["prompt"]]
        for row in data.select_columns("prompt")
    ]
    prompts: list[Any] = [[{"role": "user", "content": [{"type": "image", "text": None}, *part]}] for part in parts]
    prompts[4] = [{**few[0], "content": [{"text": None, **part} for part in few[0]["content"]]}]
    data = data.remove_columns("prompt").add_column("prompt", prompts)
    problems = problems_of(data)
    assert len(problems) == 2
    assert "cannot be decoded" in problems[0]
    assert "does not match number of image placeholders (2)" in problems[1]
    assert "in 1 of 6 rows (4)" in problems[1]


@pytest.mark.parametrize(("text", "found"), [("<image> <image> say", "1 images and 2"), ("say", "1 images and 0")])
def test_placeholders_in_texts_are_counted(text: str, found: str) -> None:
    rows = [{"prompt": "<image> say", "chosen": " the cat", "rejected": " a dog", "images": [picture(0)]}]
    rows.append({**rows[0], "prompt": text})
    (problem,) = problems_of(Dataset.from_list(rows))
    assert f"a row has {found} placeholders" in problem
    assert "(1)" in problem


def test_a_placeholder_in_an_answer_is_a_problem() -> None:
    row = {"prompt": "<image> say", "chosen": " the <image> cat", "rejected": " a dog", "images": [picture(0)]}
    (problem,) = problems_of(Dataset.from_list([row]))
    assert "1 images and 2 placeholders" in problem


def test_a_second_run_decodes_nothing_and_other_settings_read_again(tmp_path, monkeypatch) -> None:
    data = on_disk(pictured(5), tmp_path)
    decoded: list[Any] = []
    monkeypatch.setattr(
        image_reading,
        "image_content",
        lambda image, read=image_reading.image_content: (decoded.append(1), read(image))[1],
    )
    first = read_keys(data, collator(), "data", disable_tqdm=True)
    assert len(decoded) == 5
    again = read_keys(on_disk(data, tmp_path), collator(), "data", disable_tqdm=True)
    assert len(decoded) == 5
    np.testing.assert_array_equal(first.keys, again.keys)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    shorter = read_keys(data, collator(max_length=20), "data", disable_tqdm=True)
    assert len(decoded) == 10
    assert (shorter.keys != first.keys).any(axis=-1).all()
    other = collator()
    other.processor.chat_template = other.processor.chat_template.replace("'<eos> '", "''")
    assert (read_keys(data, other, "data", disable_tqdm=True).keys != first.keys).any(axis=-1).all()
    assert len(decoded) == 15
    read_keys(data.select([2, 0]), collator(), "data", disable_tqdm=True)
    assert len(decoded) == 17


def test_a_damaged_cache_is_read_again(tmp_path) -> None:
    data = on_disk(pictured(3), tmp_path)
    first = read_keys(data, collator(), "data", disable_tqdm=True)
    (file,) = tmp_path.rglob("*.images.npz")
    file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_array_equal(read_keys(data, collator(), "data", disable_tqdm=True).keys, first.keys)
    np.testing.assert_array_equal(read_keys(data, collator(), "data", disable_tqdm=True).keys, first.keys)


def test_images_are_read_as_the_dataset_decodes_them() -> None:
    """A column that converts its images is not one that leaves them as they are."""
    data = pictured(2)
    stored = data.with_format("arrow")[:].column("images").to_pylist()
    plain = data.remove_columns("images").add_column("image", [row[0] for row in stored], feature=ImageFeature())
    gray = plain.cast_column("image", ImageFeature(mode="L"))
    keys = [read_keys(each, collator(), "data", disable_tqdm=True).keys for each in (data, plain, gray)]
    np.testing.assert_array_equal(keys[0], keys[1])
    assert (keys[2] != keys[1]).any(axis=-1).all()


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("keeps_time", [True, False])
def test_a_replaced_image_file_is_read_again(tmp_path, nested: bool, keeps_time: bool) -> None:
    """The fingerprint of a dataset of paths does not tell of it."""
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        picture(number).save(file)
    stored = on_disk(pictured(3).remove_columns("images"), tmp_path)
    paths: list[Any] = [[str(file)] if nested else str(file) for file in files]
    column = "images" if nested else "image"
    feature = [ImageFeature()] if nested else ImageFeature()
    data = on_disk(stored.add_column(column, paths).cast_column(column, feature), tmp_path / "paths")
    first = read_keys(data, collator(), "data", disable_tqdm=True)
    np.testing.assert_array_equal(read_keys(data, collator(), "data", disable_tqdm=True).keys, first.keys)
    assert len([*tmp_path.rglob("*.images.npz")]) == 1
    before = files[1].stat()
    picture(7).save(files[1])
    if keeps_time:
        os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    again = read_keys(data, collator(), "data", disable_tqdm=True)
    assert (again.keys != first.keys).any(axis=(1, 2)).tolist() == [False, True, False]


def test_keys_of_images_that_are_no_local_files_are_not_kept(tmp_path, monkeypatch) -> None:
    data = on_disk(pictured(2).remove_columns("images").add_column("image", ["a", "b"]), tmp_path)
    monkeypatch.setattr(image_reading, "image_content", lambda image: ImageContent(image.encode() * 16, (8, 8)))
    read_keys(data, collator(), "data", disable_tqdm=True)
    assert not [*tmp_path.rglob("*.images.npz")]
