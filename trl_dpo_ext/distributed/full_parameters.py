"""Read and write whole parameters of a model that FSDP or ZeRO-3 may have split over processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn

_WRAPPERS = ("_fsdp_wrapped_module", "_orig_mod", "module")
"""Seam: attributes in which FSDP1, a compiled module, and DDP or DeepSpeed hold the module that they wrap."""

Visit = Callable[[str, torch.Tensor], torch.Tensor | None]


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's whole parameters by name, without what distributed training has wrapped around its modules.

    Every process has to call this.
    """
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in _parameters(model)}


@torch.no_grad()
def visit_parameters(model: nn.Module, visit: Visit, names: Collection[str] | None = None) -> None:
    """Show every whole parameter to `visit(name, value)`, one layer at a time, and store what it returns.

    Every process has to call this, and is shown the same values.

    Args:
        model: with whatever distributed training has wrapped around it.
        visit: returns the parameter's new value, or None to leave it as it is.
        names: of the parameters to show, without wrappers; None for all.

    Seam: `summon_full_params(unit, recurse=False)` gives the parameters of one unit of FSDP1 and writes changes back;
    `GatheredParameters` does so for ZeRO-3, with the first process's values; DTensor has `full_tensor`.
    """
    for name, parameter in _parameters(model):
        if names is not None and name not in names:
            continue
        if hasattr(parameter, "ds_id"):
            _visit_gathered(name, parameter, visit)
        elif hasattr(parameter, "full_tensor"):
            _visit_dtensor(name, parameter, visit)
        else:
            new = visit(name, parameter.data)
            if new is not None:
                parameter.data.copy_(new)


def _parameters(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters with their plain names; those of FSDP1 are whole until the next one is asked for."""
    units = _units(model)
    if not units:
        yield from ((_plain(model, name), parameter) for name, parameter in model.named_parameters())
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    for unit_name, unit in units.items():
        inner = tuple(f"{name}." for name in units if name != unit_name and name.startswith(_prefix(unit_name)))
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False):
            for name, parameter in unit.named_parameters():
                name = _prefix(unit_name) + _plain(unit, name)
                if not name.startswith(inner):  # those of inner units are still split
                    yield name, parameter


def _units(model: nn.Module) -> dict[str, Any]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return {_plain(model, n): m for n, m in model.named_modules() if isinstance(m, FullyShardedDataParallel)}


def _prefix(unit_name: str) -> str:
    return f"{unit_name}." if unit_name else ""


def _visit_gathered(name: str, parameter: Any, visit: Visit) -> None:
    import deepspeed  # pyright: ignore[reportMissingImports]  (an extra)

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        new = visit(name, parameter.data)
        if new is not None:
            parameter.data.copy_(new)


def _visit_dtensor(name: str, parameter: Any, visit: Visit) -> None:
    from torch.distributed.tensor import distribute_tensor

    whole = parameter.full_tensor()
    new = visit(name, whole)
    if new is not None:
        new = new.to(whole)  # device and dtype
        parameter.copy_(distribute_tensor(new, parameter.device_mesh, parameter.placements))


def _plain(model: nn.Module, name: str) -> str:
    """A name without wrappers; a model may have modules that are called like one, but not as its only content."""
    parts, module, kept = name.split("."), model, []
    for part in parts:
        wrapper = part in _WRAPPERS and len(list(module.children())) == 1
        if part and not wrapper:
            kept.append(part)
        module = getattr(module, part, module) if part else module
    return ".".join(kept)


def forget_gathered(model: nn.Module) -> None:
    """Let the next forward of FSDP1 gather all weights anew, because the shards have changed since the last one.

    Every process has to call this; it does nothing for other engines.

    Seam: FSDP1 keeps the weights of the outermost unit gathered after a forward without gradient, and goes on with
    them; the handle of a unit is `_handle`, and `reshard(True)` frees what it has gathered.
    """
    for unit in _units(model).values():
        handle = unit._handle
        if handle is not None:
            handle.reshard(True)


@torch.no_grad()
def mix_partitions(policy: nn.Module, reference: nn.Module, alpha: float) -> None:
    """Move each process's part of a reference toward the policy's, under ZeRO-3. Nothing is gathered.

    TRL gathers both models on every process at once. Every process has to call this.

    Seam: ZeRO-3 keeps a process's part of a parameter in `ds_tensor`; `partition()` drops a gathered copy of it.
    """
    for target, source in zip(reference.parameters(), policy.parameters(), strict=True):
        part: Any = target.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]  (of DeepSpeed)
        part.data.mul_(1.0 - alpha).add_(source.ds_tensor.data.to(part.device), alpha=alpha)  # pyright: ignore[reportAttributeAccessIssue]
        if target.data.numel():  # small ones stay gathered
            target.partition()  # pyright: ignore[reportAttributeAccessIssue]
