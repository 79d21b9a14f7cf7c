"""Check the images of datasets before a model is loaded: their columns at once, and every image where all are read."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Image

from .. import _trl
from ..errors import InputError, collecting
from ..reference.precompute.image_content import described_type
from ..reference.precompute.image_keys import ImageKeys
from ..reference.precompute.image_reading import raw_rows, read_keys, row_problems, unreadable_rows
from .batches import on_main_process
from .findings import EVERY_ROW, Finding, told
from .transformed import first_rows
from .truncation import Cut

_ROWS_AT_ONCE = 1000
_CAST = "Convert it with dataset.cast_column({!r}, datasets.{})."


_ALONE = (
    "{} has no column of images (image or images), and {}. Add a column images with an empty list in each row, or "
    "remove the images."
)


def image_problems(
    datasets: Mapping[str, Any], numbers: Mapping[str, Sequence[int]], expected: bool | None = None
) -> list[str]:
    """Return what is wrong with the images of datasets, as far as that can be told without decoding them.

    The main process reads the rows, and all processes return its result. Every process has to call this.

    Args:
        datasets: train and evaluation data, by the names that messages call them.
        numbers: the number that messages give each row of a dataset.
        expected: whether the trainer that reads them was created with images; None if there is no trainer yet.
    """
    pictured = [name for name, data in datasets.items() if _trl.image_columns(_trl.column_names(data))]
    others = [name for name in datasets if name not in pictured]
    problems = [_ALONE.format(name, "the trainer was created with images") for name in others if expected]
    if expected is None and pictured:
        problems += [_ALONE.format(name, f"{pictured[0]} has one") for name in others]
    if expected is False:
        problems += [
            f"{name} has a column of images, and the trainer was created without. Remove the column, or create a "
            "trainer with a training dataset that has it."
            for name in pictured
        ]
    if not pictured or problems:
        return problems

    def found() -> list[str]:
        whole = {name: data for name, data in datasets.items() if name in pictured and _is_stored(data)}
        return [each for name, data in whole.items() for each in _problems(data, name, numbers.get(name, EVERY_ROW))]

    return on_main_process(found)


def _is_stored(data: Any) -> bool:
    """Whether the rows of a dataset are those that it holds, which can be read without a transform."""
    return isinstance(data, Dataset) and not _trl.is_transformed(data)


def refuse_unreadable_start(datasets: Mapping[str, Any]) -> None:
    """Refuse datasets if the first image of one cannot be decoded, or the first row not be made, and no more be told.

    Args:
        datasets: as given, by the names that messages call them.

    Raises:
        InputError: listing all rows whose images cannot be decoded, or saying why a transform fails.
    """
    for name, data in datasets.items():
        if _trl.is_transformed(data):
            first_rows(data, name, 1)
    pictured = {
        name: data
        for name, data in datasets.items()
        if _is_stored(data) and len(data) and _trl.image_columns(data.column_names)
    }
    if not any(_fails(data) for data in pictured.values()):
        return
    problems: list[str] = []
    for name, data in pictured.items():
        problems += row_problems(on_main_process(functools.partial(unreadable_rows, data)), name, len(data))
    raise InputError(*problems)


def _fails(dataset: Dataset) -> bool:
    try:
        dataset.select_columns(_trl.image_columns(dataset.column_names))[0]
    except Exception:  # of any decoder
        return True
    return False


def read_images(
    datasets: Mapping[str, Any], numbers: Mapping[str, Sequence[int]], processing_class: Any, args: Any
) -> list[tuple[Dataset, ImageKeys]]:
    """Read every image of datasets once, warn of what `max_length` cuts, and return what rows are found by.

    The main process alone reads, and has what is returned.

    Args:
        datasets: by the names that messages call them.
        numbers: the number that messages give each row of a dataset.
        processing_class: the processor.
        args: the run's configuration.

    Raises:
        InputError: on every process, listing what is wrong with the images of all datasets.
    """
    collator = _trl.pair_collator(processing_class, args, images=True)
    known: list[tuple[Dataset, ImageKeys]] = []

    def found() -> tuple[list[str], list[str]]:
        problems: list[str] = []
        lines: list[str] = []
        for name, data in datasets.items():
            with collecting(problems):
                _refuse_date(data, name, collator)
                keys = read_keys(data, collator, name, numbers.get(name), args.disable_tqdm)
                known.append((data, keys))
                lines += told(_cuts(keys, name, args.max_length), name, args)
        return problems, lines

    problems, lines = on_main_process(found)
    if problems:
        raise InputError(*problems)
    for line in lines:
        warnings.warn(line, stacklevel=4)
    return known


def _cuts(keys: ImageKeys, name: str, limit: int | None) -> list[Finding]:
    """What `max_length` cuts of a dataset's rows, which TRL drops none of.

    Raises:
        InputError: nothing is left to score of any row.
    """
    rows = len(keys.keys)
    if limit is None or not rows:
        return []
    cut = Cut(limit, keeps_end=False)
    cut.add_left(keys.answers, keys.scored, keys.alike)
    if cut.filled == rows:
        raise InputError(
            f"{name}: the prompt alone fills max_length={limit} in all {rows} rows, image tokens included, so that "
            "nothing is scored. Set max_length=None, or a larger one."
        )
    return cut.findings(rows, f"{rows} rows")


def _refuse_date(dataset: Dataset, name: str, collator: Any) -> None:
    """Refuse texts that are other ones tomorrow: the log-probs would not be found again."""
    (first,) = raw_rows(dataset, 0, 1)
    if _trl.date_beside_images(collator, first):
        raise InputError(
            f"{name}: the chat template prints today's date, so that stored log-probs would be found today alone. Set "
            "the date in a column chat_template_kwargs, as the template calls it, or use a template without a date."
        )


def _problems(dataset: Dataset, name: str, numbers: Sequence[int]) -> list[str]:
    column = _trl.image_columns(dataset.column_names)[0]
    problem = _feature_problem(dataset.features[column], column)
    if problem is not None:
        return [f"{name}: {problem}"]
    problems: dict[str, list[int]] = {}
    for row in _rows_with_nulls(dataset, column):
        problems.setdefault(described_type(None), []).append(int(numbers[row]))
    if not problems:
        for row, text in _miscounted(dataset, column):
            problems.setdefault(text, []).append(int(numbers[row]))
    return row_problems(problems, name, len(dataset))


def _feature_problem(feature: Any, column: str) -> str | None:
    """Return why the values of a column are not images as TRL's collator takes them."""
    inner = _inner(feature)
    whole = "Image()" if column == "image" else "List(datasets.Image())"
    if column == "image" and inner is not None:
        return "the column 'image' holds lists. Rename it with dataset.rename_column('image', 'images')."
    if column == "images" and inner is None and _is_one_image(feature):
        return "the column 'images' holds one image per row. Rename it with dataset.rename_column('images', 'image')."
    one: Any = feature if inner is None else inner
    if isinstance(one, Image) and not one.decode:
        return f"the column {column!r} is not decoded (datasets.Image(decode=False)). {_CAST.format(column, whole)}"
    kind = getattr(one, "dtype", None)
    if isinstance(one, dict) or kind in ("binary", "large_binary"):
        what = f"dictionaries of {', '.join(one)}" if isinstance(one, dict) else "files as bytes"
        return f"the column {column!r} holds {what}, and not images. {_CAST.format(column, whole)}"
    return None


def _inner(feature: Any) -> Any:
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return getattr(feature, "feature", None)


def _is_one_image(feature: Any) -> bool:
    return isinstance(feature, (Image, dict)) or getattr(feature, "dtype", None) in ("string", "binary")


def _rows_with_nulls(dataset: Dataset, column: str) -> Iterator[int]:
    """The places of rows whose image, or one of whose images, is None; read from the validity bits alone."""
    bad = np.concatenate([np.empty(0, bool), *(_nulls(chunk) for chunk in dataset.data.column(column).chunks)])
    if bad.any():
        yield from np.flatnonzero(bad[_trl.kept_rows(dataset)]).tolist()


def _nulls(chunk: Any) -> np.ndarray:
    bad = np.asarray(chunk.is_null())
    if (pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)) and len(chunk):
        inner = np.asarray(chunk.flatten().is_null())
        if inner.any():
            ends = np.cumsum(np.asarray(chunk.value_lengths().fill_null(0)))
            bad = bad.copy()
            bad[np.searchsorted(ends, np.flatnonzero(inner), side="right")] = True
    return bad


def _miscounted(dataset: Dataset, column: str) -> Iterator[tuple[int, str]]:
    """The places of rows with another number of images than of placeholders in their messages, and the problem."""
    first: Any = next(iter(dataset.select_columns(["chosen"])))
    if not isinstance(first["chosen"], list):
        return
    prompts: Any = dataset.select_columns(["prompt"]).with_format(None)
    counts = np.concatenate([np.empty(0, np.int64), *(_counts(chunk) for chunk in dataset.data.column(column).chunks)])
    counts = counts[_trl.kept_rows(dataset)]
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        for place, prompt in enumerate(prompts[start : start + _ROWS_AT_ONCE]["prompt"], start):
            images = int(counts[place])
            problem = _trl.placeholder_problem(prompt, images)
            if problem is not None:
                yield place, f"{problem}. Give as many images as the messages have parts of the type image."


def _counts(chunk: Any) -> np.ndarray:
    """The number of images of each row."""
    if pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type):
        return np.asarray(chunk.value_lengths().fill_null(0)).astype(np.int64)
    return np.ones(len(chunk), np.int64)
