"""State replaced for the length of a `with` block: attributes, which is how this package patches TRL, and modes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

_ABSENT = object()


@contextlib.contextmanager
def temporarily(target: Any, **values: Any) -> Iterator[None]:
    """Set attributes of a module, class or instance inside the block, and restore them afterwards.

    An attribute that the target did not hold itself (it came from its class) is deleted again.

    Example:
        >>> from types import SimpleNamespace
        >>> args = SimpleNamespace(beta=0.1)
        >>> with temporarily(args, beta=0.5):
        ...     print(args.beta)
        0.5
        >>> args.beta
        0.1
    """
    saved = {name: _held(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is _ABSENT:
                delattr(target, name)
            else:
                setattr(target, name, value)


def _held(target: Any, name: str) -> Any:
    """The value that a target holds itself, or through a property of its class."""
    if isinstance(getattr(type(target), name, None), property):
        return getattr(target, name)
    return vars(target).get(name, _ABSENT)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without dropout, inside the block; restore each module's mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
