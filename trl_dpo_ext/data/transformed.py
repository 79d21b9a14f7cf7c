"""Check datasets whose rows a user's function makes when they are read (`set_transform`), by their first rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset

from .. import _trl
from ..errors import InputError
from ..reference.precompute.image_content import image_content
from ..reference.precompute.image_keys import images_of
from ..reference.precompute.image_reading import row_problems

_ROWS = 8
_MAP = "Apply it with dataset.map, and pass the result."


def check_transformed(
    dataset: Dataset, name: str, args: Any, columns: Sequence[str], checked: Callable[[Dataset, str], Dataset]
) -> None:
    """Check a dataset that TRL's collator gets from its transform row by row, which needs images.

    Args:
        dataset: with a transform.
        name: what messages call it.
        args: the run's configuration.
        columns: extra columns that the losses read.
        checked: checks the texts of the first rows, without images, and returns them in a layout that TRL takes.

    Raises:
        InputError: listing what is wrong with the first rows, or why rows with a transform cannot be trained on.
    """
    rows = first_rows(dataset, name, _ROWS)
    if not rows:
        raise InputError(f"{name} is empty.")
    if not _trl.image_columns(rows[0]):
        raise InputError(
            f"{name} has a transform (set_transform or with_transform), which TRL would apply to texts when it "
            f"tokenizes them, and again to tokenized rows. {_MAP}"
        )
    problems = _image_problems(rows, name)
    problems += _removal_problems(dataset, name, args, [*_trl.IMAGE_ROW_COLUMNS, *columns])
    kept = [each for each in rows[0] if each in {*_trl.IMAGE_ROW_COLUMNS, *columns} - {*_trl.IMAGE_COLUMNS}]
    texts = Dataset.from_list([{each: row.get(each) for each in kept} for row in rows])
    try:
        result = checked(texts, f"the first {len(rows)} rows of {name}")
    except InputError as error:
        raise InputError(*problems, *error.problems) from error
    if result.column_names != texts.column_names or list(result) != list(texts):
        problems.append(
            f"{name} has a transform, and its rows are not as TRL takes them: columns prompt, chosen and rejected, all "
            "three texts or all lists of messages. Let the transform return these, or apply it with dataset.map."
        )
    if problems:
        raise InputError(*problems)


def first_rows(dataset: Dataset, name: str, most: int) -> list[dict[str, Any]]:
    """Return the first rows of a dataset as its transform makes them.

    Args:
        dataset: with a transform.
        name: what messages call it.
        most: number of rows at most.

    Raises:
        InputError: the transform fails.
    """
    rows = []
    for place in range(min(len(dataset), most)):
        try:
            rows.append(dict(dataset[place]))
        except Exception as error:  # of the user's function
            raise InputError(
                f"{name}: its transform fails on row {place} ({type(error).__name__}: {error}). Fix it, or the row."
            ) from error
    return rows


def _image_problems(rows: Sequence[dict[str, Any]], name: str) -> list[str]:
    problems: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        try:
            images = images_of(row)
            for image in images:
                image_content(image)
        except InputError as error:
            problems.setdefault(error.problems[0], []).append(place)
            continue
        prompt = row.get("prompt")
        problem = _trl.placeholder_problem(prompt, len(images)) if isinstance(prompt, list) else None
        if problem is not None:
            problems.setdefault(f"{problem}. Give as many images as placeholders.", []).append(place)
    return row_problems(problems, f"{name}, as its transform gives it", len(rows))


def _removal_problems(dataset: Dataset, name: str, args: Any, read: Sequence[str]) -> list[str]:
    """Return why the transform does not work without columns that the trainer removes before it is applied."""
    kept = [column for column in dataset.column_names if column in read]
    if not args.remove_unused_columns or len(kept) == len(dataset.column_names):
        return []
    try:
        left = bool(kept) and {*dataset.select_columns(kept)[0]} & {*read} == {*dataset[0]} & {*read}
    except Exception:  # of the user's function
        left = False
    gone = ", ".join(column for column in dataset.column_names if column not in kept)
    problem = (
        f"{name}: remove_unused_columns=True removes {gone} before the transform is applied, which reads it. Set "
        "remove_unused_columns=False."
    )
    return [] if left else [problem]
