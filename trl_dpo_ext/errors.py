"""The error raised for wrong input. It lists every problem at once, before a model is loaded."""

from __future__ import annotations


class InputError(ValueError):
    """Raised when flags, files or data are wrong.

    Args:
        *problems: one sentence or two for each problem: what is wrong, what was found, how to fix it.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        several = f"{len(self.problems)} problems:\n" + "\n".join(f"- {problem}" for problem in self.problems)
        super().__init__(several if len(self.problems) > 1 else self.problems[0])
