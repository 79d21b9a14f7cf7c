"""One text per option: what a docstring has under `Args` is what `--help` prints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from trl_dpo_ext.option_docs import document_options, format_args, read_args


@document_options
@dataclass(kw_only=True)
class Parent:
    """Options of a parent.

    Args:
        > First group

        size: Size in
            tokens: 50 % of them, a > b.

        > Second group

        name: Its name.

    Raises:
        ValueError: never.
    """

    size: int = 1
    name: str = ""


@document_options
@dataclass
class Child(Parent):
    """Options of a child.

    Args:
        color: Its color.
        name: Its other name.

    Example:
        >>> 1
        1
    """

    color: str = "red"


def help_of(cls: type) -> dict[str, str]:
    return {field.name: field.metadata.get("help", "") for field in dataclasses.fields(cls)}


def test_entries_are_read_in_one_line_without_headings_and_other_sections() -> None:
    assert read_args(Parent) == {"size": "Size in tokens: 50 % of them, a > b.", "name": "Its name."}


def test_help_is_the_entry_with_percent_signs_for_argparse() -> None:
    assert help_of(Parent) == {"size": "Size in tokens: 50 %% of them, a > b.", "name": "Its name."}


def test_a_childs_docstring_lists_its_parents_options_in_its_own_section() -> None:
    assert read_args(Child, inherited=True).keys() == {"color", "name", "size"}
    assert read_args(Child).keys() == {"color", "name"}
    docstring = Child.__doc__ or ""
    assert docstring.index("size: Size in") < docstring.index("Example:")


def test_a_child_leaves_the_help_of_its_parents_fields_alone() -> None:
    assert help_of(Child) == {**help_of(Parent), "color": "Its color."}


def test_a_class_without_a_docstring_has_no_help() -> None:
    bare = document_options(dataclasses.make_dataclass("Bare", [("size", int, 1)], namespace={"__doc__": None}))
    bare.__doc__ = None
    assert help_of(document_options(bare)) == {"size": ""}


def test_what_is_formatted_is_what_is_read() -> None:
    groups = {"One": {"a": "word " * 60 + "(default: 1; >= 0)", "b": "Short."}, "Two": {"c": "A `code` word."}}
    text = format_args(groups)
    assert max(len(line) for line in text.splitlines()) <= 116
    cls = type("Any", (), {"__doc__": f"Any.\n\nArgs:\n{text}\n"})
    assert read_args(cls) == {name: entry for entries in groups.values() for name, entry in entries.items()}
