"""A second, frozen adapter beside the one that trains, which stands for the reference and can be moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from trl import SyncRefModelCallback

from ..errors import InputError
from .adapter_copy import copy_adapter
from .adapters import FROZEN
from .patching import temporarily

_LOW_RANK = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B"}
"""Seam: where peft keeps the first factor of a product -> where it keeps the second."""

__all__ = ["SecondAdapter", "SyncRefModelCallback", "without_sync"]

Factors = tuple[torch.Tensor, torch.Tensor]


def without_sync(args: Any) -> AbstractContextManager[None]:
    """Keep TRL's constructor from refusing `sync_ref_model` with an adapter.

    Seam: the constructor reads the option once, to refuse PEFT models and to add `SyncRefModelCallback`.
    """
    return temporarily(args, sync_ref_model=False)


class SecondAdapter:
    """The frozen copy `ref` of the adapter that a policy trains.

    Args:
        policy: a `PeftModel` before training; the copy is added, or completed where TRL has made one.

    Raises:
        InputError: the policy trains weights that no adapter of its own holds, so that no copy would stay as it is.

    Seam: peft keeps everything that belongs to an adapter in dictionaries with its name as a key: modules (LoRA's
    factors, dropout, modules_to_save) or parameters (IA3's vectors, embeddings).
    """

    def __init__(self, policy: Any) -> None:
        self.source = policy.active_adapter
        self.policy = policy
        with torch.random.fork_rng():
            copy_adapter(policy, self.source, FROZEN, frozen=True)
        self._check_complete()
        for slot in self._slots().values():
            if isinstance(slot[self.source], nn.Dropout):
                slot[FROZEN] = nn.Identity()  # the reference is run without noise
        self.names = {name: _renamed(name, self.source) for name in self._parameters(self.source)}
        """Parameter of the trained adapter -> its counterpart in the copy."""

    def _check_complete(self) -> None:
        mine = {id(parameter) for parameter in self._parameters(self.source).values()}
        others = [n for n, p in self.policy.named_parameters() if p.requires_grad and id(p) not in mine]
        if others:
            raise InputError(
                f"sync_ref_model=True needs a reference that moves only at a sync, but {len(others)} trained weights "
                f"outside the adapter {self.source!r} are shared with it (first: {others[0]}). Freeze them, or list "
                "their modules in modules_to_save."
            )

    def _slots(self) -> dict[str, Any]:
        """The dictionaries, by name, in which the trained adapter has a part."""
        kinds = (nn.ModuleDict, nn.ParameterDict)
        return {n: m for n, m in self.policy.named_modules() if isinstance(m, kinds) and self.source in m}

    def _parameters(self, adapter: str) -> dict[str, nn.Parameter]:
        found = {}
        for name, slot in self._slots().items():
            part = getattr(slot, adapter, None)
            if isinstance(part, nn.Parameter):
                found[f"{name}.{adapter}"] = part
            elif part is not None:
                found |= {f"{name}.{adapter}.{inner}": p for inner, p in part.named_parameters()}
        return found

    def parameters(self) -> dict[str, nn.Parameter]:
        """The copy's parameters by name; for a policy that is not split over processes."""
        return self._parameters(FROZEN)

    def _set(self, name: str, value: torch.Tensor) -> None:
        """Give a parameter of the copy a value, of any shape."""
        where, _, last = name.rpartition(".")
        module: Any = self.policy.get_submodule(where)
        setattr(module, last, nn.Parameter(value, requires_grad=False))

    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take over saved values, by name; their rank may differ."""
        for name, parameter in self.parameters().items():
            self._set(name, values[name].to(device=parameter.device, dtype=parameter.dtype))

    @torch.no_grad()
    def move(self, alpha: float, mix_factors: Callable[[Factors, Factors, float], Factors]) -> None:
        """Move the copy to the policy: weights by their average, low-rank products by `mix_factors`."""
        policy, reference = self._parameters(self.source), self.parameters()
        pairs = {name: _second_factor(name) for name in policy}
        pairs = {first: second for first, second in pairs.items() if second in policy}
        for first, second in pairs.items():
            targets = self.names[first], self.names[second]
            old = reference[targets[0]].data, reference[targets[1]].data
            for target, value in zip(
                targets, mix_factors((policy[first].data, policy[second].data), old, alpha), strict=True
            ):
                self._set(target, value)
        for name, parameter in policy.items():
            if name not in pairs and name not in pairs.values():
                reference[self.names[name]].data.mul_(1.0 - alpha).add_(parameter.data, alpha=alpha)

    def variants(self) -> list[str]:
        """What changes a layer's forward beyond adding a low-rank product, as DoRA does.

        Seam: `lora_variant` of a LoRA layer maps adapters to such changes.
        """
        found = (getattr(module, "lora_variant", {}).get(self.source) for module in self.policy.modules())
        return sorted({type(variant).__name__ for variant in found if variant is not None})


def _renamed(name: str, adapter: str) -> str:
    """The counterpart's name: the last part of it that is the adapter's name is exchanged."""
    parts = name.split(".")
    at = len(parts) - 1 - parts[::-1].index(adapter)
    return ".".join([*parts[:at], FROZEN, *parts[at + 1 :]])


def _second_factor(name: str) -> str | None:
    """The parameter that a first factor is multiplied with; None for other parameters."""
    parts = name.split(".")
    at = next((at for at, part in enumerate(parts) if part in _LOW_RANK), None)
    return None if at is None else ".".join([*parts[:at], _LOW_RANK[parts[at]], *parts[at + 1 :]])
