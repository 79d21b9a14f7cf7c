"""Whether anything trains: the policy's parameters, the optimizer, and the weights of the losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .. import _trl
from ..errors import InputError


def policy_problems(policy: Any, peft_config: Any) -> list[str]:
    """Return why a policy that the trainer is given would not train, before anything is computed.

    Args:
        policy: a model, or the name of one.
        peft_config: of a new adapter, or None.
    """
    if getattr(peft_config, "inference_mode", False):
        return [
            "Nothing would train: the peft_config has inference_mode=True, as saved ones do, and freezes the adapter. "
            "Set inference_mode=False."
        ]
    if isinstance(policy, str) or peft_config is not None:
        return []
    merged = _trl.merged_adapters(policy)
    if merged:
        return [
            f"Nothing would train: an adapter is merged into the policy (first in {merged[0]}), so its weights are not "
            "used. Call model.unmerge_adapter(), or model.merge_and_unload() and pass a new peft_config."
        ]
    active = getattr(policy, "active_adapters", []) if _trl.is_peft_model(policy) else []
    if len(active) > 1:
        return [
            f"The policy has {len(active)} active adapters ({', '.join(active)}), of which TRL would train one. Call "
            "model.set_adapter(name), or merge the others into the base (model.merge_and_unload(adapter_names=[...]))."
        ]
    return [] if next(_trained(policy), None) is not None else [_frozen(policy)]


def _trained(policy: Any) -> Iterator[torch.nn.Parameter]:
    """Parameters that an optimizer of the policy would change; those of adapters that are not active are not used."""
    unused: set[str] = set()
    if _trl.is_peft_model(policy):
        unused = {*policy.peft_config} - {*policy.active_adapters}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and unused.isdisjoint(name.split(".")):
            yield parameter


def _frozen(policy: Any) -> str:
    problem = "Nothing would train: no parameter of the policy requires a gradient."
    if _trl.is_peft_model(policy):
        return (
            f"{problem} Pass is_trainable=True to PeftModel.from_pretrained (or load_adapter), or call "
            f"model.set_adapter({policy.active_adapter!r}) before the trainer is created."
        )
    return f"{problem} Call model.requires_grad_(True), or pass a peft_config to train an adapter."


def check_trains(policy: Any, optimizer: Any) -> None:
    """Check that the constructed policy trains, and that the user's optimizer trains it.

    Args:
        policy: the model, without what distributed training wraps around it.
        optimizer: the one that the trainer was given; None if the trainer makes it.

    Raises:
        InputError: no parameter requires a gradient, or the optimizer has none of those that do.
    """
    trained = {id(parameter) for parameter in _trained(policy)}
    if not trained:
        raise InputError(_frozen(policy))
    if optimizer is not None and trained.isdisjoint(map(id, _parameters(optimizer))):
        raise InputError(
            "Nothing would train: the given optimizer has none of the policy's parameters that require gradients. Make "
            "it of the model that is passed to the trainer (of the PeftModel where a peft_config would be passed), or "
            "leave it out."
        )


def check_begins(policy: Any, optimizer: Any) -> None:
    """Check once more, at the first batch, what the user may have changed since the trainer was created.

    Args:
        policy: the model, without what distributed training wraps around it.
        optimizer: the one that training begins with; None where an engine keeps its parameters elsewhere.

    Raises:
        InputError: no parameter requires a gradient, or the optimizer was made when none did.
    """
    check_trains(policy, None)
    if hasattr(optimizer, "param_groups") and not list(_parameters(optimizer)):
        raise InputError(
            "Nothing would train: the optimizer has no parameters. Call train() after requires_grad_(True), without "
            "creating the optimizer before."
        )


def _parameters(optimizer: Any) -> Iterable[Any]:
    return (parameter for group in getattr(optimizer, "param_groups", ()) for parameter in group["params"])
