"""Datasets whose rows a transform makes when they are read: of images trained as by TRL, else refused with the reason."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOTrainer

from tests.features import vision
from tests.support import pictures, runs, tiny
from tests.support.pictures import counts, live_sums, picture, pictured, stored, sums
from tests.support.tolerances import rounding
from trl_dpo_ext.errors import InputError

KEEPS = {"remove_unused_columns": False}


def turned(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {**batch, "images": [[image.rotate(90) for image in images] for images in batch["images"]]}


def flipped_at_random(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {**batch, "images": [[picture(random.randrange(10**6)) for _ in images] for images in batch["images"]]}


def loaded(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {**batch, "images": [[picture(seed)] for seed in batch["seed"]]}


def named(rows: int = 6) -> Dataset:
    """Rows that say which image is theirs."""
    return pictured(rows).remove_columns("images").add_column("seed", [*range(rows)])


TRANSFORMED: dict[str, Any] = {
    "turned": lambda: ({"train_dataset": pictured(6).with_transform(turned)}),
    "at random": lambda: ({"train_dataset": pictured(6).with_transform(flipped_at_random)}),
    "loaded": lambda: ({"train_dataset": named().with_transform(loaded), **KEEPS}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMED)
def test_rows_with_images_are_trained_as_by_trl(tmp_path, vision_model, name: str) -> None:
    settings = {"processing_class": vision.processor(), "max_length": None, "eval_dataset": pictured(2), "max_steps": 2}
    theirs = runs.trained(tmp_path / "trl", DPOTrainer, model=vision_model, **settings, **TRANSFORMED[name]())
    ours = runs.trained(tmp_path / "ours", model=vision_model, **settings, **TRANSFORMED[name]())
    expected = runs.weights(theirs)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in runs.weights(ours).items())
    assert name == "loaded" or ours.train_dataset[0]["images"][0] != pictured(1)[0]["images"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["turned", "loaded"])
def test_rows_that_a_transform_makes_alike_are_stored(tmp_path, vision_model, name: str) -> None:
    live = pictures.trainer(tmp_path / "live", vision_model, **TRANSFORMED[name]())
    expected = live_sums(live)
    run = stored(tmp_path / "out", vision_model, **TRANSFORMED[name](), eval_dataset=pictured(2).with_transform(turned))
    assert (torch.tensor(sums(run)) - torch.tensor(expected)).abs().max() < rounding(max(map(abs, expected)))
    run.train()
    again = stored(tmp_path / "again", vision_model, **TRANSFORMED[name]())
    assert counts(again) == (12, 0)


def test_rows_that_differ_at_each_reading_are_not_stored(tmp_path, vision_model) -> None:
    with pytest.raises(InputError, match=r"has changed since its images were read.* random by dataset\.map"):
        stored(tmp_path / "out", vision_model, train_dataset=pictured(2).with_transform(flipped_at_random))


def test_what_a_transform_reads_is_not_removed(refused_images) -> None:
    (problem,) = refused_images(train_dataset=named(2).with_transform(loaded))
    assert "train_dataset: remove_unused_columns=True removes seed before the transform is applied" in problem


def without_prompt(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: values for name, values in batch.items() if name != "prompt"}


def failing(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {**batch, "images": batch["pictures"]}


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (without_prompt, "prompt"),
        (failing, "its transform fails on row 0 (KeyError"),
        (lambda batch: {**batch, "images": [[None]] * len(batch["images"])}, "an image is None; in 2 of 2 rows (0, 1)"),
        (lambda batch: {**batch, "chosen": [[]] * len(batch["images"])}, "train_dataset"),
        (lambda batch: {**batch, "prompt": ["what"] * len(batch["images"])}, "train_dataset"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named(refused_images, transform, words: str) -> None:
    problems = refused_images(train_dataset=pictured(2).with_transform(transform))
    assert words in " ".join(problems)


def test_texts_with_a_transform_are_refused(tmp_path) -> None:
    for data in (tiny.preferences(), tiny.preferences(conversational=True)):
        with pytest.raises(InputError, match=r"eval_dataset has a transform.*again to tokenized rows.*dataset\.map"):
            runs.trainer(tmp_path, train_dataset=data, eval_dataset=data.with_transform(lambda batch: batch))
