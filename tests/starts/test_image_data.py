"""Image data that cannot be trained on: every problem at once, with its rows, before a model is loaded."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from datasets import Dataset, List
from datasets import Image as ImageFeature
from transformers import LlavaForConditionalGeneration
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from tests.features import vision
from tests.support import pictures, runs, tiny
from tests.support.pictures import picture, pictured
from trl_dpo_ext import score_preferences
from trl_dpo_ext.data.images import read_images
from trl_dpo_ext.errors import InputError


def with_images(data: Dataset, column: str, values: list[Any], feature: Any = None) -> Dataset:
    plain = data.remove_columns("images")
    return plain.add_column(column, values, feature=feature)


def as_stored(data: Dataset) -> list[Any]:
    return data.with_format("arrow")[:].column("images").to_pylist()


def without_some(data: Dataset, rows: list[int]) -> Dataset:
    """One image of some rows is None."""
    values = as_stored(data)
    for row in rows:
        values[row][-1] = None
    return with_images(data, "images", values, data.features["images"])


@pytest.mark.parametrize("stored", [False, True])
def test_missing_images_are_counted_in_every_dataset(refused_images, stored: bool) -> None:
    data, held_out = without_some(pictured(8, each=[1, 2] * 4), [1, 6, 7]), without_some(pictured(3), [0])
    problems = refused_images(train_dataset=data, eval_dataset=held_out, precompute_ref_log_probs=stored)
    assert len(problems) == 2
    assert "train_dataset: an image is None; in 3 of 8 rows (1, 6, 7)." in problems[0]
    assert "eval_dataset: an image is None; in 1 of 3 rows (0)." in problems[1]


def test_rows_keep_their_numbers_when_others_are_left_out(refused_images) -> None:
    data = without_some(pictured(6), [1, 4]).select([5, 4, 3, 2, 1, 0])
    (problem,) = refused_images(train_dataset=data)
    assert "in 2 of 6 rows (1, 4)" in problem
    whole = [*as_stored(pictured(3))]
    (problem,) = refused_images(
        train_dataset=with_images(pictured(3), "images", [whole[0], None, whole[2]], List(ImageFeature()))
    )
    assert "in 1 of 3 rows (1)" in problem


def parts(*kinds: str) -> list[dict[str, Any]]:
    texts = {"image": None, "text": "say"}
    return [{"role": "user", "content": [{"type": kind, "text": texts[kind]} for kind in kinds]}]


def test_numbers_of_images_and_placeholders_are_compared(refused_images) -> None:
    data = pictured(4, each=[1, 1, 2, 0])
    prompts = [parts("image", "text"), parts("image", "image", "text"), parts("image", "text"), parts("text")]
    problems = refused_images(train_dataset=data.remove_columns("prompt").add_column("prompt", prompts))
    assert len(problems) == 2
    assert (
        "number of images provided (1) does not match number of image placeholders (2); in 1 of 4 rows (1)"
        in problems[0]
    )
    assert (
        "number of images provided (2) does not match number of image placeholders (1); in 1 of 4 rows (2)"
        in problems[1]
    )


@pytest.mark.parametrize(
    ("column", "values", "feature", "words"),
    [
        ("images", as_stored(pictured(2)), List(ImageFeature(decode=False)), "is not decoded"),
        ("images", [[b"\x89PNG"]] * 2, None, "holds files as bytes"),
        ("images", [[{"bytes": b"\x89PNG", "path": "a.png"}]] * 2, None, "dictionaries of bytes, path"),
        ("image", as_stored(pictured(2)), List(ImageFeature()), "the column 'image' holds lists"),
        ("images", [row[0] for row in as_stored(pictured(2))], ImageFeature(), "holds one image per row"),
    ],
)
def test_columns_that_are_no_images_are_named(refused_images, column, values, feature, words) -> None:
    (problem,) = refused_images(train_dataset=with_images(pictured(2), column, values, feature))
    assert words in problem
    assert "dataset." in problem


def damaged(rows: int, bad: list[int]) -> Dataset:
    values = as_stored(pictured(rows))
    for row in bad:
        values[row][0]["bytes"] = values[row][0]["bytes"][:40]
    return with_images(pictured(rows), "images", values, List(ImageFeature()))


def test_images_that_cannot_be_decoded_are_found_before_the_pass(refused_images) -> None:
    problems = refused_images(
        train_dataset=damaged(5, [2, 4]), eval_dataset=damaged(2, [0]), precompute_ref_log_probs=True
    )
    assert len(problems) == 2
    assert "train_dataset: an image cannot be decoded" in problems[0]
    assert "in 2 of 5 rows (2, 4)" in problems[0]
    assert "eval_dataset: an image cannot be decoded" in problems[1]


def test_what_a_store_cannot_serve_is_refused_together(refused_images, tmp_path) -> None:
    class Own(DataCollatorForVisionPreference):
        pass

    streamed = pictured(2).to_iterable_dataset()
    problems = refused_images(
        train_dataset=streamed, precompute_ref_log_probs=True, max_steps=1, data_collator=Own(vision.processor())
    )
    assert len(problems) == 2
    assert "without streaming" in problems[0]
    assert "data_collator is of type Own" in problems[1]
    columns = {name: [0.0, 0.0] for name in ("ref_chosen_logps", "ref_rejected_logps")}
    known = Dataset.from_dict(
        {**tiny.preferences(2, conversational=True).to_dict(), **columns, "images": [[picture(0)]] * 2}
    )
    (problem,) = refused_images(train_dataset=known, precompute_ref_log_probs=True)
    assert "Remove those columns" in problem


@pytest.mark.parametrize("first", [True, False])
def test_datasets_with_and_without_images_do_not_mix(refused_images, first: bool) -> None:
    data = {True: pictured(2), False: tiny.preferences(2, conversational=True)}
    (problem,) = refused_images(train_dataset=data[first], eval_dataset=data[not first])
    name = "eval_dataset" if first else "train_dataset"
    assert f"{name} has no column of images" in problem


def test_a_template_with_todays_date_is_refused_where_log_probs_are_stored(refused_images) -> None:
    processor = vision.processor()
    processor.chat_template = "{{ strftime_now('%d %b') + ' ' }}" + processor.chat_template
    (problem,) = refused_images(processing_class=processor, precompute_ref_log_probs=True)
    assert "prints today's date" in problem


def test_a_trainer_with_images_and_one_without_evaluate_their_own_kind(tmp_path, vision_model) -> None:
    texts = tiny.preferences(2, conversational=True)
    with pytest.raises(InputError, match="has no column of images"):
        pictures.trainer(tmp_path / "images", vision_model).evaluate(texts)
    with pytest.raises(InputError, match="the trainer was created without"):
        pictures.trainer(tmp_path / "texts", vision_model, train_dataset=texts).evaluate(pictured(2))


def test_scores_are_of_texts(vision_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(LlavaForConditionalGeneration, "from_pretrained", None)
    with pytest.raises(InputError, match="score reads texts alone"):
        score_preferences(vision_model, pictured(2), work_dir=tmp_path / "work")


def test_rows_of_which_max_length_leaves_nothing_are_named(refused_images, vision_model) -> None:
    """As of texts, whose rows TRL drops; with images, they would teach nothing."""
    stored = {"precompute_ref_log_probs": True, "max_length": 9}
    (problem,) = refused_images(train_dataset=pictured(4), **stored)
    assert "train_dataset: the prompt alone fills max_length=9 in all 4 rows, image tokens included" in problem
    sets = {"eval_dataset": {"near": pictured(3), "far": pictured(2, each=0)}}
    (problem,) = refused_images(train_dataset=pictured(4, each=0), **sets, **stored)
    assert "eval_dataset['near']: the prompt alone" in problem


@pytest.mark.parametrize(("limit", "filled", "cut"), [(7, 3, 1), (11, 2, 2), (15, 1, 3), (100, 0, 0)])
def test_what_max_length_cuts_is_told_before_a_model_is_loaded(limit, filled, cut) -> None:
    args = runs.config("out", max_length=limit)
    data = {"eval_dataset": pictured(4, each=[0, 2, 0, 1])}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_images(data, {}, vision.processor(), args)
    found = [str(each.message) for each in caught]
    assert len(found) == bool(filled) + bool(cut), found
    assert not filled or f"the prompt alone fills max_length={limit} in {filled} of 4 rows, of which" in found[0]
    assert not cut or f"max_length={limit} cuts the answers of {cut} of 4 rows (" in found[1]
