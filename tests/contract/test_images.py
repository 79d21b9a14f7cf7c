"""Seams of rows with images: TRL's collator, its constructor and its pass, and what processors and datasets tell."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import DPOTrainer
from trl.trainer import dpo_trainer
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from tests.features import vision
from tests.support import runs, vision_families
from tests.support.pictures import on_disk, picture, pictured
from tests.support.seams import moved
from trl_dpo_ext import _trl


def seam(fact: str) -> str:
    return moved("TRL", fact, "_trl/images.py")


def test_the_collator_gives_the_processor_three_lists_of_texts() -> None:
    calls: list[dict[str, Any]] = []

    class Watching(type(vision.processor())):  # type: ignore[misc]
        def __call__(self, **given: Any) -> Any:
            calls.append(given)
            return super().__call__(**given)

    processor = vision.processor()
    processor.__class__ = Watching
    rows = [pictured(2)[place] for place in range(2)]
    collator = DataCollatorForVisionPreference(processor)
    texts = _trl.texts_beside_images(collator, rows)
    assert not calls, seam("DataCollatorForVisionPreference calls its `processor` alone")
    assert isinstance(rows[0]["prompt"][0]["content"], str), "the rows were changed"
    collator(rows)
    expected = [texts.prompts * 2, texts.chosen, texts.rejected]
    assert [call["text"] for call in calls] == expected, seam("prompts twice, chosen and rejected answers once")
    assert [call["add_special_tokens"] for call in calls] == [False] * 3, seam("texts without special tokens")
    assert len(calls[0]["images"]) == 4, seam("images once for each side")
    assert {field.name for field in dataclasses.fields(collator)} >= {"processor", "max_length"}, seam("two fields")


def test_token_ids_of_the_texts_are_those_that_are_fed_but_for_the_images() -> None:
    rows = [pictured(2)[place] for place in range(2)]
    collator = DataCollatorForVisionPreference(vision.processor())
    texts, tokenizer = _trl.texts_beside_images(collator, rows), vision.processor().tokenizer
    batch, image = collator(rows), len(tokenizer) - 1
    for place, text in enumerate([*texts.chosen, *texts.rejected]):
        fed = batch["input_ids"][place][batch["attention_mask"][place].bool()].tolist()
        scored = batch["input_ids"][place][batch["completion_mask"][place].bool()].tolist()
        prompt = tokenizer(texts.prompts[place % 2], add_special_tokens=False)["input_ids"]
        assert scored == tokenizer(text, add_special_tokens=False)["input_ids"], seam("answers are tokenized as texts")
        assert [token for token in fed if token != image] == [t for t in [*prompt, *scored] if t != image]


def test_the_collator_reads_no_other_column(tmp_path) -> None:
    run = runs.trainer(
        tmp_path, DPOTrainer, vision.saved_model(str(tmp_path / "model")), train_dataset=pictured(2),
        processing_class=vision.processor(), max_length=None,
    )  # fmt: skip
    run._set_signature_columns_if_needed()
    assert set(run._signature_columns) == {*_trl.IMAGE_ROW_COLUMNS}, seam("`_set_signature_columns_if_needed`")
    assert run._is_vision_dataset is True, seam("`_is_vision_dataset`")
    assert _trl.Host(run).has_images
    assert _trl.collates_images(run.data_collator), seam("images are collated by DataCollatorForVisionPreference")
    assert not _trl.collates_images(dpo_trainer.DataCollatorForPreference(pad_token_id=0))


def test_the_constructor_refuses_images_where_it_would_run_its_pass(tmp_path) -> None:
    given = {
        "train_dataset": pictured(2),
        "processing_class": vision.processor(),
        "max_length": None,
        "precompute_ref_log_probs": True,
    }
    with pytest.raises(ValueError, match="not supported for vision datasets"):
        runs.trainer(tmp_path, DPOTrainer, vision.saved_model(str(tmp_path / "model")), **given)


def test_the_option_is_read_for_the_pass_alone() -> None:
    source = inspect.getsource(DPOTrainer)
    read = [line.strip() for line in source.splitlines() if "args.precompute_ref_log_probs" in line]
    assert read == [
        "if self._is_vision_dataset and args.precompute_ref_log_probs:",
        "self.precompute_ref_logps = args.precompute_ref_log_probs",
        "if is_peft_model(self.model) or (args.precompute_ref_log_probs and not self.is_fsdp_enabled):",
        "hash_module(self.ref_model or self.model) if args.precompute_ref_log_probs else None",
        "if args.precompute_ref_log_probs:",
        "if args.precompute_ref_log_probs:",
    ], moved("TRL", "the constructor reads precompute_ref_log_probs in these lines", "_trl/constructor.py")
    assert list(inspect.signature(DPOTrainer._precompute_ref_logps).parameters) == [
        "self", "dataset", "name", "batch_size",
    ], moved("TRL", "_precompute_ref_logps(dataset, name, batch_size)", "_trl/reference.py")  # fmt: skip


@pytest.mark.parametrize(("images", "fits"), [(1, True), (2, False), (0, False)])
def test_messages_are_checked_against_the_number_of_images(images: int, fits: bool) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "say"}]
    problem = _trl.placeholder_problem([{"role": "user", "content": parts}], images)
    assert (problem is None) is fits, seam("prepare_multimodal_messages raises where the numbers differ")
    assert _trl.placeholder_problem([{"role": "user", "content": "say"}], images) is None


def test_a_processor_tells_its_placeholder_and_the_tokens_of_an_image() -> None:
    processor = vision.processor()
    tell = moved("transformers", "`image_token` and `_get_num_multimodal_tokens`", "_trl/images.py")
    assert _trl.image_placeholder(processor) == "<image>", tell
    assert _trl.image_tokens(processor, [(8, 8), (30, 20)]) == [4, 4], tell
    assert _trl.image_tokens(object(), [(8, 8)]) is None


def test_strings_are_loaded_as_image_processors_load_them(tmp_path, monkeypatch) -> None:
    picture(0).save(tmp_path / "a.png")
    loaded = vision.processor().image_processor.fetch_images(str(tmp_path / "a.png"))
    assert loaded == _trl.load_image(str(tmp_path / "a.png")), moved("transformers", "fetch_images", "_trl/images.py")


def test_datasets_tell_contents_apart_and_keep_what_is_computed_of_them(tmp_path) -> None:
    data = on_disk(pictured(2), tmp_path)
    tell = moved("datasets", "`_fingerprint` and `_get_cache_file_path`", "_trl/images.py")
    assert _trl.fingerprint(data) == _trl.fingerprint(on_disk(data, tmp_path)), tell
    assert _trl.fingerprint(data) != _trl.fingerprint(data.select([1, 0])), tell
    file = _trl.cache_file(data, "f00d")
    assert file.parent == Path(data.cache_files[0]["filename"]).parent, tell
    assert "f00d" in file.name, tell
    assert "f00d" not in _trl.cache_file(Dataset.from_dict({"a": [1]}), "f00d").name, tell


def test_values_are_hashed_alike_in_every_process() -> None:
    assert _trl.hashed(("a", 1, None)) == _trl.hashed(("a", 1, None)), moved("datasets", "Hasher", "_trl/images.py")
    assert _trl.hashed(("a", 1, None)) != _trl.hashed(("a", 2, None))
    assert _trl.is_picture(picture(0))
    assert not _trl.is_picture("a.png")


def test_a_template_with_todays_date_is_known() -> None:
    collator = DataCollatorForVisionPreference(vision.processor())
    row = pictured(1)[0]
    assert not _trl.date_beside_images(collator, row)
    collator.processor.chat_template = "{{ strftime_now('%d') }}" + collator.processor.chat_template
    assert _trl.date_beside_images(collator, row), moved("transformers", "strftime_now", "_trl/images.py")
    given = "{{ date_string or strftime_now('%d') }}" + vision.processor().chat_template
    collator.processor.chat_template = given
    assert not _trl.date_beside_images(collator, {**row, "chat_template_kwargs": {"date_string": "1 May"}})


@pytest.mark.parametrize("family", vision_families.FAMILIES)
def test_the_tokens_of_images_are_told_in_a_sequence(family: str) -> None:
    processor = vision_families.FAMILIES[family].processor()
    row = vision_families.preferences(1)[0]
    ids = DataCollatorForVisionPreference(processor)([row])["input_ids"][0].tolist()
    without = [token for token in ids if token != processor.image_token_id]
    assert len(without) < len(ids), moved("transformers", "a processor has image_token_id", "_trl/images.py")
    assert _trl.has_image_tokens(processor, ids)
    assert not _trl.has_image_tokens(processor, without)


def test_a_transform_is_a_format_of_its_own_type() -> None:
    rows = pictured(1)
    assert _trl.is_transformed(rows.with_transform(dict)), moved("datasets", "its type is custom", "_trl/batch.py")
    for other in (rows, rows.with_format("numpy"), rows.to_iterable_dataset()):
        assert not _trl.is_transformed(other)
