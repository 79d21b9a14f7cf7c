"""Errors that users see: wrong input, listed at once before a model is loaded, and a store that cannot be written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Raised when flags, files or data are wrong.

    Args:
        *problems: one sentence or two for each problem: what is wrong, what was found, how to fix it. One that two
            checks have found is listed once.
    """

    def __init__(self, *problems: str) -> None:
        self.problems: list[str] = list(dict.fromkeys(problems))
        several = f"{len(self.problems)} problems:\n" + "\n".join(f"- {problem}" for problem in self.problems)
        super().__init__(several if len(self.problems) > 1 else self.problems[0])


class AlarmStop(InputError):
    """Raised when a run is resumed from a checkpoint at which an alarm has stopped it, and would again."""


@contextlib.contextmanager
def collecting(problems: list[str], *others: type[Exception]) -> Iterator[None]:
    """Add the problems of an `InputError` raised inside to a list, instead of raising it.

    Args:
        problems: the list.
        *others: errors of other libraries whose message is a problem, too.
    """
    try:
        yield
    except InputError as error:
        problems += error.problems
    except others as error:
        problems.append(str(error))


class StoreWriteError(OSError):
    """Raised when a part of a reference store could not be written; the message says what is stored.

    Args:
        message: what failed, and how to continue.
        lost: number of sequences that were given to the writer and are not on the disk. The writer still holds them.
    """

    def __init__(self, message: str, lost: int = 0) -> None:
        super().__init__(message)
        self.lost = lost
