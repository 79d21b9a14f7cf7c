"""Let a sharded forward that fails on one process run to its end there, so that no other process waits for it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from .. import _trl


@dataclass(eq=False)
class _Unit:
    """A module whose weights are gathered right before its forward and released after it."""

    module: Any
    """What is called."""
    inside: nn.Module
    """Whose forward runs with the weights; the same, but for FSDP1."""
    parts: list[_Unit] = field(default_factory=list)
    """Units inside, in the order of their last forwards."""
    done: list[_Unit] = field(default_factory=list)
    """Those that have run in the forward that is running."""


class Shield:
    """Calls a model whose weights FSDP or ZeRO-3 gathers from all processes, layer by layer.

    If a layer fails on this process, most likely because memory runs out, the layers behind it only gather and release
    their weights, with which the other processes get theirs. Then the exception is raised.

    Args:
        model: as the engine has wrapped it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._failure: Exception | None = None
        self._units = _units(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a forward.

        Raises:
            Exception: the one that a layer has raised, once all layers have gathered their weights.
        """
        output, self._failure = None, None
        try:
            output = self.model(*args, **kwargs)
        except Exception as error:  # of what stands around the model
            self._failure = self._failure or error
        if self._failure is not None:
            raise self._failure
        return output

    @contextlib.contextmanager
    def put_on(self) -> Iterator[Shield]:
        """Inside, an exception of a layer waits for the end of the forward."""
        with contextlib.ExitStack() as stack:
            for unit, parent in self._units:
                stack.enter_context(_trl.temporarily(unit.inside, forward=self._guarded(unit, parent)))
            yield self

    def _guarded(self, unit: _Unit, parent: _Unit | None) -> Callable[..., Any]:
        forward = unit.inside.forward

        @functools.wraps(forward)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            output = None
            unit.done = []
            if self._failure is None:
                try:
                    output = forward(*args, **kwargs)
                except Exception as error:
                    self._failure = self._failure or error  # what follows the first one, may be another
            if self._failure is not None:
                for part in [each for each in unit.parts if each not in unit.done]:
                    part.module()
            elif len(unit.done) == len(unit.parts):
                unit.parts = unit.done
            if parent is not None:
                parent.done.append(unit)
            return output

        return guarded


def _units(model: nn.Module) -> list[tuple[_Unit, _Unit | None]]:
    """The units of a model, each with the one around it."""
    found: list[tuple[_Unit, _Unit | None]] = []

    def visit(module: nn.Module, parent: _Unit | None) -> None:
        inside = module.module if isinstance(module, FullyShardedDataParallel) else module
        if parent is None or _gathers(module):
            unit = _Unit(module, inside)
            found.append((unit, parent))
            if parent is not None:
                parent.parts.append(unit)
            parent = unit
        for child in inside.children():
            visit(child, parent)

    visit(model, None)
    return found


def _gathers(module: nn.Module) -> bool:
    """Whether weights are gathered for this module: by FSDP for it, or by ZeRO-3 for its own parameters."""
    if isinstance(module, (FSDPModule, FullyShardedDataParallel)):
        return True
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters(recurse=False))
