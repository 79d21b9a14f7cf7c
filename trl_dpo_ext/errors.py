"""What a run says when its input is wrong: all of it at once, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """Something in flags, files or data is wrong; `problems` lists every one."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        several = f"{len(self.problems)} problems:\n" + "\n".join(f"- {problem}" for problem in self.problems)
        super().__init__(several if len(self.problems) > 1 else self.problems[0])
