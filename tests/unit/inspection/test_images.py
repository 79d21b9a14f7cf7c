"""Data with images: the tokens of its texts are counted, and what truncation does is left open."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Features, Image, List
from PIL import Image as Pictures

from tests.support import runs, tiny, vision_language
from trl_dpo_ext import inspect_preferences
from trl_dpo_ext.inspection.terminal import as_text


def test_texts_beside_images_are_counted_and_truncation_is_left_open(tmp_path: Any) -> None:
    texts = tiny.preferences(4, conversational=True)
    pictures = [[Pictures.new("RGB", (8, 8), (at, at, at))] for at in range(4)]
    features = Features({**texts.features, "images": List(Image())})
    data = Dataset.from_dict({**texts[:], "images": pictures}, features=features)
    args = runs.config(tmp_path, max_length=6)
    result = inspect_preferences(data, vision_language.processor(), args)
    plain = inspect_preferences(texts, tiny.tokenizer(), runs.config(tmp_path, max_length=None))
    split = result.data["splits"]["train"]
    assert split["images"] == "text tokens only; image tokens are not counted"
    assert split["lengths"] == plain.data["splits"]["train"]["lengths"]
    assert (split["max_length"], split["truncation"]) == (None, None)
    assert split["columns"]["unused"] == {}
    assert "images: text tokens only" in as_text(result.data)
    cutting = {"answer_cut", "eos_cut", "dropped", "identical_after_truncation"}
    assert not cutting & {found["name"] for found in result.data["findings"]}
