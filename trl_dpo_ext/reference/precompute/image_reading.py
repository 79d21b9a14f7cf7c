"""Read the keys of a dataset with images once, on several threads, and keep them for the next run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Image
from tqdm import tqdm

from ... import _trl
from ...errors import InputError
from ..identity.hashing import hashing_threads
from ..identity.processor import processor_settings
from ..store.atomic import atomic_write
from .image_content import UNREADABLE, ImageContent, image_content
from .image_keys import ImageKeys, images_of

_ROWS_AT_ONCE = 64
_ROWS_SHOWN = 5
_VERSION = 2  # another meaning of what is kept needs another number here

Found = list[ImageContent] | str
"""The content of a row's images, or what is wrong with them."""


def read_keys(
    dataset: Dataset, collator: Any, name: str, numbers: Sequence[int] | None = None, disable_tqdm: bool = False
) -> ImageKeys:
    """Read the keys of all rows, in their order; from the cache of `datasets` where an earlier run has left them.

    Args:
        dataset: not tokenized, as the collator takes it.
        collator: TRL's for images.
        name: of the dataset, for messages.
        numbers: the number that messages give each row; None for its place.
        disable_tqdm: whether to show no progress bar.

    Raises:
        InputError: listing what is wrong with rows, with their number and the first of them.
    """
    kept_in = _kept_in(dataset, collator)
    known = None if kept_in is None else _kept(kept_in, len(dataset))
    if known is not None:
        return known
    reading = _Reading(dataset, collator, numbers or range(len(dataset)))
    progress = tqdm(total=len(dataset), desc=f"Reading the images of {name}", unit=" rows", disable=disable_tqdm)
    with hashing_threads() as pool, progress:
        found = ImageKeys.joined([part for part in reading.parts(pool) if progress.update(len(part.keys)) or True])
    reading.raise_problems(name)
    if kept_in is not None:
        _keep(kept_in, found)
    return found


def unreadable_rows(dataset: Dataset) -> dict[str, list[int]]:
    """Decode every image, and return the places of the rows with each problem; texts are not read."""
    reading, problems = _Reading(dataset, None, range(len(dataset))), {}
    with hashing_threads() as pool:
        for start in range(0, len(dataset), _ROWS_AT_ONCE):
            for place, (_, found) in enumerate(reading.contents(pool, start), start):
                if isinstance(found, str):
                    problems.setdefault(found, []).append(place)
    return problems


def raw_rows(dataset: Dataset, start: int, stop: int) -> list[dict[str, Any]]:
    """Some rows with what the collator reads of them; images that `datasets` decodes are left as they are stored.

    A transform is applied, since the collator is given what it makes.
    """
    if _trl.is_transformed(dataset):
        made: dict[str, Any] = dataset[start:stop]
        made = {name: made[name] for name in _trl.IMAGE_ROW_COLUMNS if name in made}
        return [dict(zip(made, values, strict=True)) for values in zip(*made.values(), strict=True)]
    column = _trl.image_columns(dataset.column_names)[0]
    names = [name for name in _trl.IMAGE_ROW_COLUMNS if name in dataset.column_names]
    stored = image_feature(dataset.features[column]) is not None
    read = [name for name in names if name not in _trl.IMAGE_COLUMNS or (name == column and not stored)]
    batch: dict[str, Any] = dataset.select_columns(read).with_format(None)[start:stop]
    if stored:
        files: Any = dataset.select_columns([column]).with_format("arrow")
        batch[column] = files[start:stop].column(column).to_pylist()
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def image_feature(feature: Any) -> Image | None:
    """The feature that decodes the images of a column; None if its values are given to the collator as they are."""
    if isinstance(feature, Image):
        return feature if feature.decode else None
    inner = feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, "feature", None)
    return None if inner is None else image_feature(inner)


@dataclass
class _Reading:
    """Reads a dataset from its first row to its last.

    Args:
        dataset: to read.
        collator: TRL's for images.
        numbers: of the rows.
    """

    dataset: Dataset
    collator: Any
    numbers: Sequence[int]
    problems: dict[str, list[int]] = field(default_factory=dict)
    """The rows with each problem."""
    _lenient: bool = False
    """Whether the processor was seen to take another number of images than of placeholders."""

    def parts(self, pool: ThreadPoolExecutor) -> Iterator[ImageKeys]:
        """Yield the keys of some rows after the others; those of rows with problems are zeros."""
        for start in range(0, len(self.dataset), _ROWS_AT_ONCE):
            rows, found = zip(*self.contents(pool, start), strict=True)
            yield self._keys(list(rows), found, start)

    def contents(self, pool: ThreadPoolExecutor, start: int) -> list[tuple[dict[str, Any], Found]]:
        """Some rows from `start` on, each with the content of its images."""
        rows = raw_rows(self.dataset, start, min(start + _ROWS_AT_ONCE, len(self.dataset)))
        images = [_images(row) for row in rows]
        values = [image for each in images if not isinstance(each, str) for image in each]
        contents = pool.map(self._content, values)
        found = [each if isinstance(each, str) else [next(contents) for _ in each] for each in images]
        return [(row, _first_problem(each)) for row, each in zip(rows, found, strict=True)]

    def raise_problems(self, name: str) -> None:
        """Raise one `InputError` for all problems, if there are any."""
        lines = row_problems(self.problems, name, len(self.dataset))
        if lines:
            raise InputError(*lines)

    def _content(self, value: Any) -> ImageContent | str:
        try:
            return image_content(self._decoded(value))
        except InputError as error:
            return error.problems[0]

    def _decoded(self, value: Any) -> Any:
        if value is None or _trl.is_transformed(self.dataset):
            return value
        column = _trl.image_columns(self.dataset.column_names)[0]
        feature = image_feature(self.dataset.features[column])
        if feature is None:
            return value
        try:
            return feature.decode_example(value)
        except Exception as error:  # decoders raise errors of many kinds
            raise InputError(UNREADABLE.format(type(error).__name__)) from error

    def _keys(self, rows: list[dict[str, Any]], found: Sequence[Found], start: int) -> ImageKeys:
        """The keys of rows; where together they have none, each for itself."""
        good = [place for place, each in enumerate(found) if not isinstance(each, str)]
        problems = {place: each for place, each in enumerate(found) if isinstance(each, str)}
        keys = ImageKeys.zeros(len(rows))
        try:
            keys.put(good, self._of([rows[place] for place in good], [found[place] for place in good]))
        except Exception:
            for place in good:
                try:
                    keys.put([place], self._of([rows[place]], [found[place]]))
                except Exception as error:
                    problems[place] = _described(error)
        for place in sorted(problems):
            self.problems.setdefault(problems[place], []).append(int(self.numbers[start + place]))
        return keys

    def _of(self, rows: list[dict[str, Any]], contents: list[Any]) -> ImageKeys:
        keys, counts = ImageKeys.with_placeholders(rows, contents, self.collator)
        for row, images, count in zip(rows, contents, counts, strict=True):
            if count is not None and count != len(images) and not self._lenient:
                self._lenient = self._is_taken(row)
                if not self._lenient:
                    raise InputError(
                        f"a row has {len(images)} images and {count} placeholders for images in its texts. Give as "
                        "many images as the prompt has placeholders; answers have none."
                    )
        return keys

    def _is_taken(self, row: Mapping[str, Any]) -> bool:
        """Whether the processor takes a row whose texts have another number of placeholders than the row has images."""
        images = _images(row)
        decoded = [self._decoded(image) for image in images]
        column = _trl.image_columns(row)[0]
        try:
            batch = self.collator([{**row, column: decoded[0] if column == "image" else decoded}])
        except Exception:
            return False
        if self.collator.max_length is not None or not images:  # it may have cut images
            return True
        return _trl.has_image_tokens(self.collator.processor, batch["input_ids"][0].tolist())


def row_problems(problems: Mapping[str, list[int]], name: str, total: int) -> list[str]:
    """Say what is wrong with rows, in one line for each kind.

    Args:
        problems: the numbers of the rows with each problem, which says behind a full stop how to fix it.
        name: of the dataset.
        total: number of its rows.
    """
    lines = []
    for text, rows in problems.items():
        what, _, remedy = text.partition(". ")
        shown = ", ".join(map(str, rows[:_ROWS_SHOWN])) + (" ..." if len(rows) > _ROWS_SHOWN else "")
        lines.append(f"{name}: {what}; in {len(rows)} of {total} rows ({shown}). {remedy}")
    return lines


def _images(row: Mapping[str, Any]) -> list[Any] | str:
    try:
        return images_of(row)
    except InputError as error:
        return error.problems[0]


def _first_problem(contents: list[ImageContent | str] | str) -> Found:
    """What is wrong with the first unreadable image of a row; otherwise the contents of all."""
    if isinstance(contents, str):
        return contents
    return next((each for each in contents if isinstance(each, str)), contents)  # type: ignore[return-value]


def _described(error: Exception) -> str:
    if isinstance(error, InputError):
        return error.problems[0]
    said = " ".join(str(error).split()).rstrip(".")
    return f"the collator does not take a row ({type(error).__name__}: {said}). Correct the row, or remove it."


def _kept_in(dataset: Dataset, collator: Any) -> Path | None:
    """The file that keeps the keys of a dataset; None where no later run could tell that they are the same.

    A fingerprint stays the same where files are replaced, which their size and times tell.
    """
    tokenizer, template = _trl.tokenizer_of(collator.processor), str(collator.processor.chat_template)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if _trl.is_transformed(dataset) or not dataset.cache_files or backend is None or "strftime_now" in template:
        return None
    files = _files(dataset)
    if files is None:
        return None
    state = {
        name: value for name, value in json.loads(backend.to_str()).items() if name not in ("padding", "truncation")
    }
    facts = (
        _VERSION, version("pillow"), files, _trl.fingerprint(dataset), state, template, tokenizer.chat_template,
        tokenizer.special_tokens_map, collator.max_length, processor_settings(collator.processor),
    )  # fmt: skip
    return _trl.cache_file(dataset, _trl.hashed(facts)).with_suffix(".images.npz")


def _files(dataset: Dataset) -> list[tuple[str, int, int, int]] | None:
    """The files that hold a dataset and its images, each with size and times; None if one is not a local file.

    The time of a change of status is one that copying tools cannot keep.
    """
    column = dataset.data.column(_trl.image_columns(dataset.column_names)[0])
    paths = [file["filename"] for file in dataset.cache_files]
    for chunk in column.chunks:
        paths += _outside(chunk)
    try:
        found = [(path, os.stat(path)) for path in sorted({*paths})]
    except (OSError, ValueError):
        return None
    return [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in found]


def _outside(values: Any) -> list[str]:
    """The files that the images of a column are in, where it does not hold them itself."""
    kinds = pa.types
    while kinds.is_list(values.type) or kinds.is_large_list(values.type) or kinds.is_fixed_size_list(values.type):
        values = values.flatten()
    if kinds.is_struct(values.type):
        fields = dict(zip((each.name for each in values.type), values.flatten(), strict=True))
        if not {"bytes", "path"} <= {*fields}:
            return []
        values = fields["path"].filter(fields["bytes"].is_null())
    is_text = kinds.is_string(values.type) or kinds.is_large_string(values.type)
    return values.drop_null().to_pylist() if is_text else []


def _kept(file: Path, rows: int) -> ImageKeys | None:
    try:
        with np.load(file) as arrays:
            known = ImageKeys(**arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return known if len(known.keys) == rows else None


def _keep(file: Path, keys: ImageKeys) -> None:
    content = io.BytesIO()
    np.savez(content, **vars(keys))
    with contextlib.suppress(OSError):  # the cache is a convenience
        atomic_write(file, content.getbuffer())
