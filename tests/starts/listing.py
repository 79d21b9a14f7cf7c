"""The list of starts that the tests beside this file try; the table in docs/what_stops_a_run.md is generated from it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., Any])


@dataclass
class Kind:
    """Starts that go wrong for one reason.

    Use it as the decorator of a test, `@nothing_trains("a frozen policy", "error: ...")`, or for one case of a
    parametrized test, `nothing_trains.case("a frozen policy", "error: ...", value, ...)`.
    """

    title: str
    starts: list[tuple[str, str]] = field(default_factory=list)
    """What a user does, and what happens."""

    def __post_init__(self) -> None:
        KINDS.append(self)

    def __call__(self, given: str, outcome: str) -> Callable[[Test], Test]:
        """List a start; returns a decorator that changes nothing."""
        self.starts.append((given, outcome))
        return lambda test: test

    def case(self, given: str, outcome: str, *values: Any) -> Any:
        """List a start; returns pytest's parameters for it."""
        self.starts.append((given, outcome))
        return pytest.param(*values, id=given)


KINDS: list[Kind] = []


def as_markdown() -> str:
    """One table for each kind, in the order of the test files."""
    package = importlib.import_module(__package__)
    for module in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        if module.startswith("test_"):
            importlib.import_module(f"{__package__}.{module}")
    return "\n\n".join(
        "\n".join([f"## {kind.title}", "", "| what you do | what happens |", "|---|---|", *map(_row, kind.starts)])
        for kind in KINDS
    )


def _row(start: tuple[str, str]) -> str:
    return "| {} | {} |".format(*(text.replace("|", "\\|") for text in start))
