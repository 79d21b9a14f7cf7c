"""Defines the grades of verification, which every loss variant must state."""

from __future__ import annotations

from typing import Literal, get_args

Verification = Literal["authors", "framework", "paper", "third_party", "unverified"]

GRADES: dict[Verification, str] = {
    "authors": "equal to the authors' code as executed",
    "framework": "equal to a framework's code as executed",
    "paper": "read in the paper or in code, not executed",
    "third_party": "from third-party sources only",
    "unverified": "not verified",
}
"""What each grade means, strongest first."""

REPRODUCES_CODE: tuple[Verification, ...] = ("authors", "framework")
"""The grades of variants whose values were compared with published code that ran."""

EXPERIMENTAL: tuple[Verification, ...] = ("third_party", "unverified")
"""The grades of variants whose paper and authors' code were not seen; choosing one of them is warned of."""


def unknown_grade(grade: object) -> str | None:
    """Return how `grade` is wrong, listing the grades there are, or None if it is one of them."""
    if grade in get_args(Verification):
        return None
    listed = ", ".join(f"{name!r} ({meaning})" for name, meaning in GRADES.items())
    got = "is missing" if grade is None else f"{grade!r} is unknown"
    return f"verification {got}; state how the formula was verified: {listed}."
