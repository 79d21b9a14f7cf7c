"""Parses the name of one loss in a mixture, with the hyperparameters of that term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError

HOST_PREFIX = "trl:"
"""What starts the name of a loss that is left to TRL's own code."""

_FORMS = "a name, 'name:beta=1.0', or a mapping {name: {beta: 1.0}}"


class LossSpec(str):
    """A loss as `loss_type` names it: `dpop`, `cdpo:beta=1.0,label_smoothing=0.1` or `trl:hinge`.

    It is the string that TRL and JSON see, and keeps the values of a mapping as they were given.

    Example:
        >>> spec = LossSpec.of({"sigmoid": {"beta": 1.0}})
        >>> spec, spec.name, spec.hyper
        ('sigmoid:beta=1.0', 'sigmoid', {'beta': 1.0})
        >>> LossSpec("sigmoid:beta=1.0").hyper
        {'beta': '1.0'}
    """

    name: str
    """The loss's name, without hyperparameters."""
    hyper: dict[str, Any]
    """Its own hyperparameters; text where the spec was text, to be read by the type of the parameter."""
    malformed: list[str]
    """Assignments that are not of the form name=value."""

    def __new__(cls, text: str) -> LossSpec:
        """Read a spec's text."""
        spec = super().__new__(cls, text)
        if isinstance(text, LossSpec):
            spec.name, spec.hyper, spec.malformed = text.name, text.hyper, text.malformed
            return spec
        host = text.startswith(HOST_PREFIX)
        spec.name, _, inline = (text, "", "") if host else text.partition(":")
        parts = [part.partition("=") for part in inline.split(",") if part]
        spec.hyper = {key.strip(): value.strip() for key, equals, value in parts if equals}
        spec.malformed = [key for key, equals, _ in parts if not equals]
        return spec

    @classmethod
    def of(cls, entry: Any) -> LossSpec:
        """Return the spec of an entry of `loss_type`: a string, or `{name: {hyperparameter: value}}`.

        Raises:
            InputError: the entry is neither.
        """
        if isinstance(entry, str):
            return cls(entry)
        if isinstance(entry, Mapping) and len(entry) == 1:
            ((name, hyper),) = entry.items()
            if not hyper:
                return cls(name)
            if isinstance(hyper, Mapping):
                spec = cls(f"{name}:" + ",".join(f"{key}={value}" for key, value in hyper.items()))
                spec.hyper = dict(hyper)
                return spec
        raise InputError(f"loss_type entry {entry!r} must be {_FORMS}.")
