"""What the tests of TRL's seams share."""

from __future__ import annotations

from typing import Any


def seam(name: str) -> str:
    return f"TRL has moved the seam {name!r}: mend it in trl_dpo_ext/_trl"


class Spy:
    """Counts calls and remembers keywords."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(kwargs)
        return self.model(*args, **kwargs)
