"""The processor in the identity of a reference: only for data with images, and only what changes what is seen."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from transformers import CLIPImageProcessorPil

from tests.features import vision
from tests.support import vision_families
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.identity.identity import Identity
from trl_dpo_ext.reference.identity.processor import processor_settings
from trl_dpo_ext.reference.store.another_reference import check_processor
from trl_dpo_ext.reference.store.store import Store

TEXT = Identity(weights="f00d", config="{}")


def processor(**images: Any) -> Any:
    changed = vision.processor()
    for name, value in images.items():
        setattr(changed.image_processor, name, value)
    return changed


def of(given: Any) -> Identity:
    return dataclasses.replace(TEXT, processor=processor_settings(given))


def test_data_without_images_keep_the_identity_that_stores_have() -> None:
    assert TEXT.fingerprint == "7f2761084c29884bda2f97c5c72153b5"
    assert "processor" not in TEXT.keyed
    assert Identity.from_json(TEXT.keyed, TEXT.recorded) == TEXT


def test_an_identity_with_a_processor_is_read_as_it_was_written() -> None:
    ours = of(vision.processor())
    again = Identity.from_json(json.loads(json.dumps(ours.keyed)), ours.recorded)
    assert again == ours
    assert again.fingerprint == ours.fingerprint != TEXT.fingerprint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", {"shortest_edge": 16}),
        ("crop_size", {"height": 4, "width": 8}),
        ("image_mean", [0.5, 0.5, 0.5]),
        ("image_std", [0.5, 0.5, 0.5]),
        ("resample", 2),
        ("do_center_crop", False),
        ("do_rescale", False),
        ("rescale_factor", 0.5),
        ("do_normalize", False),
        ("do_convert_rgb", False),
    ],
)
def test_what_changes_the_pixels_is_named(name: str, value: Any) -> None:
    (difference, *_) = of(processor(**{name: value})).differences(of(vision.processor()))
    assert difference.startswith(f"processor.image_processor.{name}")


def test_tokens_of_images_and_classes_are_named() -> None:
    patches, other = vision.processor(), vision.processor()
    patches.patch_size = 8
    assert of(patches).differences(of(vision.processor())) == [
        "processor.patch_size is 4 in the store and 8 in this run"
    ]

    class Another(CLIPImageProcessorPil):
        pass

    other.image_processor.__class__ = Another
    (difference,) = of(other).differences(of(vision.processor()))
    assert difference.startswith(
        f'processor.image_processor.class is "CLIPImageProcessorPil" in the store and "{__name__}.Another"'
    )


@pytest.mark.parametrize(
    ("family", "name"),
    [("gemma3", "full_image_sequence"), ("idefics3", "fake_image_token"), ("idefics3", "global_image_tag")],
)
def test_texts_that_a_processor_puts_around_images_are_named(family: str, name: str) -> None:
    """No file of the processor holds them."""
    plain, changed = (vision_families.FAMILIES[family].processor() for _ in range(2))
    assert name not in changed.to_dict()
    setattr(changed, name, "<another>")
    (difference,) = of(changed).differences(of(plain))
    assert difference.startswith(f"processor.{name}")


def test_what_a_tokenizer_cuts_is_named() -> None:
    cut = vision.processor()
    cut.tokenizer.init_kwargs["max_length"] = 9
    (difference,) = of(cut).differences(of(vision.processor()))
    assert difference == "processor.max_length is not set in the store and 9 in this run"


@pytest.mark.parametrize("name", ["device", "data_format", "return_tensors", "disable_grouping", "_processor_class"])
def test_what_leaves_the_pixels_as_they_are_does_not_count(name: str) -> None:
    assert of(processor(**{name: "cuda"})) == of(vision.processor())
    templated = vision.processor()
    templated.chat_template = "another one, which shows in the token ids"
    assert of(templated) == of(vision.processor())


def test_a_store_of_texts_is_not_one_of_images(tmp_path) -> None:
    ours = of(vision.processor())
    (difference,) = ours.differences(TEXT)
    assert difference.startswith("the store is of data without images and this run reads data with images")
    (difference,) = TEXT.differences(ours)
    assert difference.startswith("the store is of data with images and this run reads data without images")
    Store.open(tmp_path / "refs", TEXT)
    with pytest.raises(InputError, match="data without images"):
        check_processor(tmp_path / "refs", ours.processor)
    check_processor(tmp_path / "absent", ours.processor)
