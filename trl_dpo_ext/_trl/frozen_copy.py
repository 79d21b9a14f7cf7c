"""Adapters of a policy that is its own reference: the frozen copy of its start, and the state in which it runs."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from trl.trainer import dpo_trainer

from .adapter_copy import copy_adapter, gradients_kept
from .adapters import FROZEN, TRAINED, rename_frozen_name
from .models import gather_object, is_peft_model
from .patching import evaluation_mode, temporarily

_copied: weakref.WeakSet[Any] = weakref.WeakSet()
"""Policies whose frozen copy was made here, which a second trainer makes anew."""


@contextlib.contextmanager
def as_quiet_reference(policy: nn.Module) -> Iterator[None]:
    """Run a policy as its own reference: without dropout and noise, and without a trace in `requires_grad`.

    Seam: TRL switches adapters with PEFT's `set_adapter` and `disable_adapter`, in the mode the policy is in.
    """
    with gradients_kept(policy), evaluation_mode(policy):
        yield


@contextlib.contextmanager
def start_kept(wanted: bool, base_state: Callable[[nn.Module], Any]) -> Iterator[None]:
    """Let TRL's constructor keep a frozen copy of a new adapter whose initialization has moved the base.

    After PiSSA, OLoRA, LoftQ and others, the base alone is another model than the policy's start.

    Args:
        wanted: whether the policy is to be its own reference; otherwise no copy is made.
        base_state: gives something equal for equal base weights.

    Seam: the constructor wraps a policy with `get_peft_model` as found in the trainer's module.
    """
    make = dpo_trainer.get_peft_model

    def get_peft_model(model: Any, *args: Any, **kwargs: Any) -> Any:
        before = base_state(model)
        adapted = make(model, *args, **kwargs)
        if any(gather_object(base_state(adapted) != before)):
            keep_start(adapted)
        return adapted

    with temporarily(dpo_trainer, get_peft_model=get_peft_model if wanted else make):
        yield


@contextlib.contextmanager
def copied_by_us(policy: Any, wanted: bool) -> Iterator[None]:
    """Replace the copy of a `PeftModel` that TRL's constructor makes: it lacks what has no `.default.` in its name.

    Args:
        policy: the model that the constructor is given, or loads.
        wanted: whether the policy is to be its own reference; otherwise no copy is made.

    Seam: for a `PeftModel` without `ref_model`, the constructor reads `peft_config["default"]`, calls
    `add_adapter("ref", config)`, and copies parameters that it finds with `named_parameters()`.
    """
    if not is_peft_model(policy):
        yield
        return
    rename_frozen_name(policy)
    configs = policy.peft_config
    named = TRAINED not in configs
    if named:  # TRL looks for this name alone
        configs[TRAINED] = configs[policy.active_adapter]

    def add_adapter(*_: Any, **__: Any) -> None:
        nonlocal named
        if named:
            del configs[TRAINED]
            named = False
        vars(policy).pop("add_adapter", None)
        if wanted:
            keep_start(policy)
        policy.named_parameters = nothing_to_copy

    def nothing_to_copy(*_: Any, **__: Any) -> Iterator[Any]:
        vars(policy).pop("named_parameters", None)
        return iter(())

    try:
        policy.add_adapter = add_adapter
        yield
    finally:
        for patched in ("add_adapter", "named_parameters"):
            vars(policy).pop(patched, None)
        if named:
            configs.pop(TRAINED, None)


def is_copied(policy: Any) -> bool:
    """Whether the frozen copy in a policy was made here, so that another trainer makes it anew."""
    return is_peft_model(policy) and policy in _copied


def keep_start(policy: Any) -> None:
    """Add a frozen copy of a policy's active adapter, with every parameter and buffer of it.

    Raises:
        InputError: the copy would lack a parameter.
    """
    if FROZEN in policy.peft_config:
        if not is_copied(policy):  # the user's, and equal: `Policy.of` has compared it
            return
        policy.delete_adapter(FROZEN)
    _copied.add(policy)
    copy_adapter(policy, policy.active_adapter, FROZEN, frozen=True)


@contextlib.contextmanager
def without_frozen_copy(policy: Any) -> Iterator[None]:
    """Let a policy be its own reference with its adapters off, although it has a frozen copy of one.

    Seam: TRL looks for the frozen copy in `peft_config`, and turns adapters off where it is not there.
    """
    configs = policy.peft_config
    hidden = configs.pop(FROZEN, None)
    try:
        yield
    finally:
        if hidden is not None:
            configs[FROZEN] = hidden
