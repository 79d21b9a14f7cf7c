"""What rows with images are found by: equal pixels and equal texts alone are the same row."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from tests.features import vision
from tests.support.pictures import picture, pictured
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.precompute.image_content import image_content
from trl_dpo_ext.reference.precompute.image_keys import ImageKeys, keys_of
from trl_dpo_ext.reference.precompute.image_reading import read_keys
from trl_dpo_ext.reference.precompute.image_rows import ImageRows
from trl_dpo_ext.reference.store.keys import image_sequence_key, sequence_key


def collator(**settings: Any) -> DataCollatorForVisionPreference:
    return DataCollatorForVisionPreference(vision.processor(), **settings)


def digest(image: Any) -> bytes:
    return image_content(image).digest


def encoded(image: Image.Image, kind: str) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind)
    return Image.open(file)


def test_equal_pixels_are_the_same_image_whatever_file_held_them() -> None:
    image = picture(0, (9, 7))
    assert digest(image) == digest(picture(0, (9, 7))) == digest(encoded(image, "PNG")) == digest(encoded(image, "BMP"))
    assert image_content(image).size == (7, 9)


def different_images() -> dict[str, Any]:
    image = picture(0, (6, 4))
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    other = palette.copy()
    other.putpalette([255 - value for value in palette.getpalette() or []])
    seen_through = palette.copy()
    seen_through.info["transparency"] = 0
    turned = image.copy()
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    pixels = np.asarray(image)
    one_less = pixels.copy()
    one_less[0, 0, 0] ^= 1
    return {
        "as it is": image,
        "one bit of one pixel": Image.fromarray(one_less),
        "the same bytes in another shape": Image.frombytes("RGB", (4, 6), image.tobytes()),
        "gray": image.convert("L"),
        "with transparency": image.convert("RGBA"),
        "with a palette": palette,
        "with another palette": other,
        "with a transparent color": seen_through,
        "to be turned": turned,
        "an array": pixels,
        "an array of floats": pixels.astype(np.float32),
        "an array of channels first": np.ascontiguousarray(pixels.transpose(2, 0, 1)),
        "a tensor": torch.from_numpy(pixels.copy()),
        "a tensor of bfloat16": torch.from_numpy(pixels.copy()).to(torch.bfloat16),
    }


def test_whatever_a_processor_may_see_otherwise_is_another_image() -> None:
    images = different_images()
    assert len({digest(image) for image in images.values()}) == len(images)
    assert image_content(images["an array of channels first"]).size == image_content(images["an array"]).size == (4, 6)


def test_a_path_is_the_image_that_it_names(tmp_path) -> None:
    picture(3).save(tmp_path / "a.png")
    picture(4).save(tmp_path / "b.png")
    assert digest(str(tmp_path / "a.png")) == digest(picture(3))
    assert digest(str(tmp_path / "b.png")) != digest(picture(3))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "an image is None"),
        ({"bytes": b"", "path": None}, "of type dict"),
        (b"\x89PNG", "of type bytes"),
        ([[1, 2]], "of type list"),
        (np.zeros((2, 2, 2, 2)), "4 dimensions"),
        ("/nowhere/a.png", "cannot be decoded"),
    ],
)
def test_what_is_no_image_is_named(value: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        image_content(value)


def test_the_key_is_the_same_on_every_machine_and_in_every_version() -> None:
    given: tuple[Any, ...] = ([5, 6], [7], [b"\0" * 16, b"\1" * 16], 512)
    assert image_sequence_key(*given).hex() == "e9f7531b28c6f897a2f6f16d76c37367"
    assert image_sequence_key([5, 6], [7], [], None) != sequence_key([5, 6], [7])


def test_every_part_of_a_key_counts() -> None:
    one, two = b"\1" * 16, b"\2" * 16
    keys = [
        image_sequence_key(*given)
        for given in (
            ([5, 6], [7], [one], 9),
            ([5], [6, 7], [one], 9),
            ([5, 6], [8], [one], 9),
            ([5, 6], [7], [two], 9),
            ([5, 6], [7], [one, two], 9),
            ([5, 6], [7], [two, one], 9),
            ([5, 6], [7], [], 9),
            ([5, 6], [7], [one], 8),
            ([5, 6], [7], [one], None),
        )
    ]
    assert len(set(keys)) == len(keys)


def test_texts_and_images_meet_in_no_other_row() -> None:
    """Two texts with two images each: four rows, eight keys; and an answer is found under either prompt's image alone."""
    data = pictured(2)
    rows = [{**data[text], "images": [picture(image)]} for text in (0, 1) for image in (0, 1)]
    keys = keys_of(rows, collator()).keys.reshape(-1, 2)
    assert len(np.unique(keys, axis=0)) == 8
    again = keys_of([rows[2], rows[0]], collator()).keys.reshape(-1, 2)
    np.testing.assert_array_equal(again, keys.reshape(4, 2, 2)[[2, 0]].reshape(-1, 2))


def test_a_row_is_found_by_one_image_or_a_list_of_it() -> None:
    row = pictured(1)[0]
    (image,) = row.pop("images")
    columns = ({"image": image}, {"images": [image]})
    one, many = (keys_of([{**row, **column}], collator()).keys for column in columns)
    np.testing.assert_array_equal(one, many)


def test_rows_without_images_have_keys_too_and_the_examples_stay_as_they_are() -> None:
    data = pictured(3, each=[1, 0, 2])
    rows = [data[place] for place in range(3)]
    before = [dict(row) for row in rows]
    found = keys_of(rows, collator())
    assert found.images.tolist() == [1, 0, 2]
    assert len(np.unique(found.keys.reshape(-1, 2), axis=0)) == 6
    assert rows == before


def test_max_length_is_part_of_the_key_as_it_cuts_rows_behind_their_images() -> None:
    rows = [pictured(1)[0]]
    assert (keys_of(rows, collator(max_length=20)).keys != keys_of(rows, collator()).keys).any(axis=-1).all()


@pytest.mark.parametrize("each", [1, [2, 0, 1, 1, 3]])
def test_positions_are_those_of_the_collated_rows(each: Any) -> None:
    data = pictured(5, each=each)
    rows = [data[place] for place in range(5)]
    fed = collator()([dict(row) for row in rows])["attention_mask"].sum(dim=1).view(2, 5).max(dim=0).values
    assert keys_of(rows, collator()).tokens.tolist() == fed.tolist()
    assert keys_of(rows, collator(max_length=12)).tokens.max() == 12


def test_a_dataset_is_read_as_its_rows_are_and_no_image_is_processed(monkeypatch) -> None:
    data = pictured(150, each=[place % 3 for place in range(150)])
    expected = keys_of([data[place] for place in range(150)], collator())
    monkeypatch.setattr(type(vision.processor()), "__call__", None)
    found = read_keys(data, collator(), "data", disable_tqdm=True)
    for name in vars(expected):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("max_length", [None, 8, 12, 15])
def test_what_max_length_leaves_to_score_is_counted_with_image_tokens(max_length) -> None:
    data = pictured(12, each=[place % 3 for place in range(12)])
    rows = [data[place] for place in range(12)]
    found = keys_of(rows, collator(max_length=max_length))
    batch = collator(max_length=max_length)([dict(row) for row in rows])
    scored = batch["completion_mask"].sum(dim=1).view(2, 12).T.numpy()
    np.testing.assert_array_equal(found.scored, scored)
    sides = [batch["input_ids"][place][batch["completion_mask"][place].bool()].tolist() for place in range(24)]
    assert found.alike.tolist() == [sides[place] == sides[place + 12] for place in range(12)]
    assert (found.scored < found.answers).any() == (max_length is not None)


def test_each_missing_side_is_computed_by_the_first_row_that_has_it() -> None:
    keys = ImageKeys.zeros(4)
    names = np.array([[1, 2], [1, 3], [4, 2], [1, 2]], np.uint64)
    keys.keys[..., 0] = names
    keys.tokens[:] = [4, 3, 2, 1]
    lacks = np.array([[True, True], [True, False], [True, True], [True, True]])
    rows = ImageRows.of(keys, lacks)
    assert rows.rows.tolist() == [0, 2]
    assert rows.lacking.tolist() == [[True, True], [True, False]]
    assert rows.packed[:, 0].tolist() == [1, 2, 4]
    assert len(rows) == 3
    assert rows.tokens.tolist() == [4, 2]
    keys.scored[2] = [7, 9]
    assert ImageRows.of(keys, lacks).scored.tolist() == [[0, 0], [7, 9]]
