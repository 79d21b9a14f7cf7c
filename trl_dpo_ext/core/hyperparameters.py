"""Hyperparameters of loss variants, declared in the signature of the function that uses them.

A *shared* hyperparameter is a field of TRL's `DPOConfig` and has no default here. An *owned* one belongs to a variant
(or to a family of variants), is named after it, has its published default, and becomes a flag.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal


@dataclass(frozen=True, slots=True)
class Hyper:
    """Meaning and allowed values of a hyperparameter."""

    help: str
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    excludes: str | None = None
    """Name of another hyperparameter of the variant that is mutually exclusive with this one."""
    required: bool = False
    """Must be set by the user, because no default fits, as for a temperature in units of the scores; its default is
    None."""

    @property
    def meaning(self) -> str:
        """The help within a sentence: without its period, and with a small letter unless it begins with an acronym."""
        text = self.help.rstrip(".")
        return text if text[1:2].isupper() else text[0].lower() + text[1:]

    @property
    def bounds(self) -> list[str]:
        """Readable bounds, such as `["> 0", "< 0.5"]`."""
        signs = {">": self.gt, ">=": self.ge, "<": self.lt, "<=": self.le}
        return [f"{sign} {bound:g}" for sign, bound in signs.items() if bound is not None]

    def broken_bound(self, value: float) -> str | None:
        """Return the first bound that `value` breaks, or None."""
        if not math.isfinite(value):
            return "finite"
        checks = ((">", self.gt), (">=", self.ge), ("<", self.lt), ("<=", self.le))
        holds = {">": value.__gt__, ">=": value.__ge__, "<": value.__lt__, "<=": value.__le__}
        for sign, bound in checks:
            if bound is not None and not holds[sign](bound):
                return f"{sign} {bound:g}"
        return None


Beta = Annotated[
    float, Hyper("Strength of the KL constraint; higher values keep the policy closer to the reference.", gt=0)
]
LabelSmoothing = Annotated[float, Hyper("Probability that a preference label is flipped.", ge=0, lt=0.5)]

SHARED = ("beta", "label_smoothing", "discopop_tau")
"""Fields of TRL's DPOConfig that a variant may take by name."""

NO_DEFAULT = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class DeclaredHyper:
    """A hyperparameter as a variant declares it."""

    name: str
    type: type
    default: Any
    hyper: Hyper
    choices: tuple[str, ...] = ()

    @property
    def shared(self) -> bool:
        """Return True if the value comes from a field of TRL's DPOConfig."""
        return self.default is NO_DEFAULT

    @property
    def required(self) -> bool:
        """Return True if the loss has no value for it."""
        return self.shared or self.hyper.required

    @property
    def summary(self) -> str:
        """Help text with default and bounds, for flags and tables."""
        notes = [] if self.shared else ["required" if self.required else f"default: {self.default}"]
        notes += [f"one of {', '.join(self.choices)}"] if self.choices else self.hyper.bounds
        return f"{self.hyper.help} ({'; '.join(notes)})" if notes else self.hyper.help

    def problem(self, value: Any, variant: str) -> str | None:
        """Return why `value` is not allowed, or None."""
        allowed = None
        if value is None:
            allowed = None if self.default is None and not self.required else "set"
        elif self.choices:
            allowed = None if value in self.choices else f"one of {', '.join(self.choices)}"
        elif self.type is bool:
            allowed = None if isinstance(value, bool) else "true or false"
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            allowed = "a number"
        elif self.type is int and math.isfinite(value) and value != int(value):
            allowed = "an integer"
        else:
            allowed = self.hyper.broken_bound(float(value))
        if allowed is None:
            return None
        return f"{self.name} must be {allowed} for loss_type {variant!r}; got {value!r} ({self.hyper.meaning})."


def read_hyperparameters(function: Callable[..., Any], prefix: str) -> tuple[DeclaredHyper, ...]:
    """Return the hyperparameters that `function` declares as annotated keyword-only parameters.

    Raises:
        TypeError: a declaration does not have the expected form; the message names it and shows the form.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    found = []
    for parameter in list(inspect.signature(function).parameters.values()):
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        found.append(_read_one(parameter.name, hints.get(parameter.name), parameter.default, prefix))
    return tuple(found)


def _read_one(name: str, hint: Any, default: Any, prefix: str) -> DeclaredHyper:
    metadata = [entry for entry in getattr(hint, "__metadata__", ()) if isinstance(entry, Hyper)]
    if len(metadata) != 1:
        raise TypeError(f"{name} must be annotated as Annotated[type, Hyper(...)].")
    if default is NO_DEFAULT and name not in SHARED:
        raise TypeError(
            f"{name} needs a default: only {', '.join(SHARED)} are shared with DPOConfig and have "
            "none. Give it its published default."
        )
    if default is not NO_DEFAULT and not name.startswith(f"{prefix}_"):
        raise TypeError(f"{name} must be named {prefix}_<word>: a variant owns those that have a default.")
    if metadata[0].required and default is not None:
        raise TypeError(f"{name} is required, so its default must be None; got {default!r}.")
    plain = hint.__origin__
    arms = [arm for arm in typing.get_args(plain) if arm is not type(None)]
    if typing.get_origin(plain) is Literal:
        return DeclaredHyper(name, str, default, metadata[0], choices=typing.get_args(plain))
    return DeclaredHyper(name, arms[0] if arms else plain, default, metadata[0])
