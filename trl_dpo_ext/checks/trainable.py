"""Whether anything trains: the policy's parameters, the optimizer, and the weights of the losses."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .. import _trl
from ..errors import InputError

_WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
"""Schedules of transformers that leave `warmup_steps` out."""


def policy_problems(policy: Any, peft_config: Any, quantization: Any = None) -> list[str]:
    """Return why a policy that the trainer is given would not train, before anything is computed.

    Args:
        policy: a model, or the name of one.
        peft_config: of a new adapter, or None.
        quantization: the configuration to load the policy with, or None.
    """
    if getattr(peft_config, "inference_mode", False):
        return [
            "Nothing would train: the peft_config has inference_mode=True, as saved ones do, and freezes the adapter. "
            "Set inference_mode=False."
        ]
    if peft_config is None and not _trl.is_peft_model(policy) and _is_quantized(policy, quantization):
        return [
            "Quantized weights cannot be trained. Pass a peft_config (--use_peft) to train an adapter on them, or load "
            "the policy without quantization."
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


def no_step_warnings(args: Any, dataset: Any) -> list[str]:
    """Return why a run would take no step, or none that changes a weight.

    Args:
        args: training arguments.
        dataset: training data in rows that can be counted, or a stream.

    Seam: transformers trains by epochs unless `max_steps` is positive; with 0 it takes one step, at the rate 0.
    """
    if args.max_steps == 0:
        return ["Nothing will train: max_steps is 0. Set --max_steps above 0, or to -1 to train for num_train_epochs."]
    if args.max_steps < 0 and args.num_train_epochs <= 0:
        return [
            f"Nothing will train: num_train_epochs is {args.num_train_epochs:g}. Set --num_train_epochs above 0, or "
            "--max_steps."
        ]
    rows = len(dataset) if hasattr(dataset, "__len__") else None
    in_step = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows is not None and rows < in_step:
        return [
            f"Nothing will train: dataloader_drop_last drops incomplete batches, and {rows} rows do not fill one of "
            f"{in_step}. Set --per_device_train_batch_size lower, or remove --dataloader_drop_last."
        ]
    if args.max_steps == 1 and args.get_warmup_steps(1) and args.lr_scheduler_type not in _WITHOUT_WARMUP:
        return [
            f"Nothing will train: warmup_steps is {args.warmup_steps:g}, so that the only step has the learning rate "
            "0. Set --warmup_steps 0."
        ]
    return []


def _is_quantized(policy: Any, quantization: Any) -> bool:
    quantizer = getattr(policy, "hf_quantizer", None)
    if quantizer is not None and getattr(policy, "is_quantized", True):
        return not getattr(quantizer, "is_qat_trainable", False) and not _trl.has_adapter_inside(policy)
    return isinstance(policy, str) and quantization is not None


def _trained(policy: Any) -> Iterator[torch.nn.Parameter]:
    """Parameters that an optimizer of the policy would change; those of adapters that are not active are not used."""
    unused: set[str] = set()
    if _trl.is_peft_model(policy):
        unused = {*policy.peft_config} - {*policy.active_adapters}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and unused.isdisjoint(name.split(".")):
            yield parameter


def _frozen(policy: Any) -> str:
    problem = (
        "Nothing would train: no parameter of the policy requires a gradient. Unfreeze some, or pass a peft_config."
    )
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
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise InputError("Nothing would train: gradients are off. Call train() outside of torch.no_grad().")
    check_trains(policy, None)
    if hasattr(optimizer, "param_groups") and not list(_parameters(optimizer)):
        raise InputError(
            "Nothing would train: the optimizer has no parameters. Call train() after requires_grad_(True), without "
            "creating the optimizer before."
        )
    rates = [group.get("initial_lr", group["lr"]) for group in getattr(optimizer, "param_groups", ())]
    if rates and not any(rates):
        warnings.warn("Nothing trains: the learning rate is 0. Set --learning_rate above 0.", stacklevel=5)


def check_reached(policy: Any) -> None:
    """Check after the first backward pass that weights that train are a part of what was computed.

    Args:
        policy: the model, without what distributed training wraps around it.

    Raises:
        InputError: none of them has a gradient.
    """
    trained = list(_trained(policy))
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    if trained and not gradients:
        raise InputError(
            f"Nothing would train: none of the {len(trained)} weights that require gradients is a part of the forward "
            "pass. Call model.requires_grad_(True), or train an adapter on modules that the model runs."
        )
    if gradients and not any(gradient.any() for gradient in gradients):
        warnings.warn(
            "The first step changes no weight: its gradient is exactly 0. The pairs of the batch may be identical, "
            "have the weight 0, or not hold the tokens that turn an adapter on. Look at them with "
            "`trl-dpo-ext inspect`.",
            stacklevel=5,
        )


def _parameters(optimizer: Any) -> Iterable[Any]:
    return (parameter for group in getattr(optimizer, "param_groups", ()) for parameter in group["params"])
