"""Data with images: texts alone are counted, unless every image is processed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List
from PIL import Image as Pictures

from tests.support import runs, tiny, vision_language
from trl_dpo_ext import inspect_preferences
from trl_dpo_ext.inspection.terminal import as_text

CUTTING = {"answer_cut", "eos_cut", "dropped", "identical_after_truncation"}


def pictured(column: str = "images", each: tuple[int, ...] = (1, 2, 0, 1), written: bool = True) -> Dataset:
    """Rows of messages with so many images each; `written`, the prompts have their places."""
    texts = tiny.preferences(len(each), conversational=True)
    if not written:
        return _beside(texts, column, each)
    named = [
        {**row, "prompt": [{"role": "user", "content": f"{f'{vision_language.IMAGE} ' * count}say"}]}
        for row, count in zip(texts, each, strict=True)
    ]
    return _beside(Dataset.from_list(named), column, each)


def _beside(texts: Dataset, column: str, each: tuple[int, ...]) -> Dataset:
    pictures: list[Any] = [[Pictures.new("RGB", (8, 8), (at, at, at))] * count for at, count in enumerate(each)]
    kind: Any = List(Image())
    if column == "image":
        pictures, kind = [some[0] for some in pictures], Image()
    features = Features({**texts.features, column: kind})
    return Dataset.from_dict({**texts[:], column: pictures}, features=features)


def test_texts_beside_images_are_counted_and_truncation_is_left_open(tmp_path: Any) -> None:
    data = pictured(each=(1, 1, 1, 1), written=False)
    texts = data.remove_columns("images")
    args = runs.config(tmp_path, max_length=6)
    result = inspect_preferences(data, vision_language.processor(), args)
    plain = inspect_preferences(texts, tiny.tokenizer(), runs.config(tmp_path, max_length=None))
    split = result.data["splits"]["train"]
    assert split["images"] == "text tokens only; image tokens are not counted"
    assert split["lengths"] == plain.data["splits"]["train"]["lengths"]
    assert (split["max_length"], split["truncation"]) == (None, None)
    assert split["columns"]["unused"] == {}
    assert "images: text tokens only" in as_text(result.data)
    assert not CUTTING & {found["name"] for found in result.data["findings"]}


@pytest.mark.parametrize("limit", [None, 6, 8, 9, 12])
@pytest.mark.parametrize("column", ["images", "image"])
def test_images_are_counted_as_a_run_feeds_them(tmp_path: Any, limit: int | None, column: str) -> None:
    data = pictured(column, (1, 2, 0, 1) if column == "images" else (1, 1, 1))
    processor = vision_language.processor()
    settings: dict[str, Any] = {"max_length": limit, "per_device_train_batch_size": 2}
    result = inspect_preferences(data, processor, runs.config(tmp_path, **settings), images=True)
    trainer = runs.trainer(
        tmp_path,
        model=vision_language.model(),
        processing_class=processor,
        train_dataset=data,
        loss_type="simpo",
        **settings,
    )
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    fed, scored = (batch[name].numpy().astype(bool) for name in ("attention_mask", "completion_mask"))
    split, half = result.data["splits"]["train"], len(data)
    assert split["images"] == "image tokens are counted"
    assert split["rows"]["dropped"] == 0
    assert split["tokens"]["fed"]["plain"] == fed.sum()
    for at, row in enumerate(result.rows(range(half))):
        for line, side in ((at, "chosen"), (at + half, "rejected")):
            (start, end), (first, last) = row["kept"][f"prompt_{side}"], row["kept"][side]
            ids = batch["input_ids"][line].numpy()
            assert ids[fed[line] & ~scored[line]].tolist() == row["prompt_ids"][start:end]
            assert ids[fed[line] & scored[line]].tolist() == row[f"{side}_ids"][first:last]
    lost = ~scored[:half].any(axis=1) | ~scored[half:].any(axis=1)
    cut = [row["row"] for row in result.rows(range(half)) if row["cut_chosen"] or row["cut_rejected"]]
    found = {each["name"]: each["rows"] for each in result.data["findings"]}
    assert found.get("answer_cut", []) == cut
    assert {*np.flatnonzero(lost).tolist()} <= {*found.get("empty_answer", [])}
    assert limit is None or cut


@pytest.mark.parametrize("in_parts", [False, True])
def test_prompts_that_name_their_images_are_counted_without_them(tmp_path: Any, in_parts: bool) -> None:
    """A processor refuses the text of an image without the image."""
    data, processor = pictured(each=(1, 1)), vision_language.processor()
    if in_parts:
        parts = [{"type": "image", "text": f"{vision_language.IMAGE} "}, {"type": "text", "text": "say"}]
        rows = [{**row, "prompt": [{"role": "user", "content": parts}]} for row in data.remove_columns("images")]
        data = _beside(Dataset.from_list(rows), "images", (1, 1))
    result = inspect_preferences(data, processor, runs.config(tmp_path))
    assert result.data["splits"]["train"]["lengths"]["prompt"]["before"]["max"] == 4
    assert processor.tokenizer.chat_template == vision_language.CHAT_TEMPLATE


def test_the_images_of_all_rows_are_processed_once(tmp_path: Any) -> None:
    data = pictured(each=(1,) * 20)
    result = inspect_preferences(data, vision_language.processor(), runs.config(tmp_path), images=True)
    assert result.data["splits"]["train"]["rows"]["kept"] == 20
    assert "images: image tokens are counted" in as_text(result.data)
    assert not {"prompt_not_prefix", "layout"} & {found["name"] for found in result.data["findings"]}
