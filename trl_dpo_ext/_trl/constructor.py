"""Patches for the time in which TRL's constructor runs. Each names the seam that it rests on."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer import dpo_trainer

from .patching import temporarily
from .placement import replicate, shard_by_layer


def trainer_arguments() -> list[str]:
    """The arguments of TRL's constructor, except the configuration."""
    given = inspect.signature(dpo_trainer.DPOTrainer.__init__).parameters
    return [name for name in given if name not in ("self", "args")]


def without_devices(args: Any) -> AbstractContextManager[None]:
    """Let transformers check a configuration without setting up devices, which resets those of a trainer in use.

    Seam: `device` is `_setup_devices`, computed once for each instance, which also sets `distributed_state`.
    """
    return temporarily(args, _setup_devices=torch.device("cpu"), distributed_state=None)


def without_losses(args: Any, names: Sequence[str], weights: Sequence[float]) -> AbstractContextManager[None]:
    """Show TRL's constructor only the losses that TRL computes itself, usually none.

    Seam: an empty `loss_types` is legal and adds no loss; the constructor copies the names and is done with `args`.
    TRL's constructor warns about `padding_free`, which TRL dropped and this package supports, so it does not see it.
    """
    return temporarily(args, loss_type=list(names), loss_weights=list(weights) or None, padding_free=False)


def no_reference_model(policy_by_name: bool) -> AbstractContextManager[None]:
    """Keep TRL's constructor from loading a reference model: its `ref_model` stays None.

    Seam: both models are loaded through `create_model_from_path` as found in the trainer's module, the policy (if it is
    given by name) before the reference, and a reference of None is skipped everywhere.
    """
    load = dpo_trainer.create_model_from_path
    calls = 0

    def load_policy_only(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return load(*args, **kwargs) if policy_by_name and calls == 1 else None

    return temporarily(dpo_trainer, create_model_from_path=load_policy_only)


def stub_policy() -> AbstractContextManager[None]:
    """Give TRL's constructor a policy of a few kilobytes under the requested name, for a run that never calls it.

    Seam: a policy given by name is loaded through `create_model_from_path(name, ...)` as found in the trainer's module,
    and its tokenizer by the name in its configuration.
    """
    return temporarily(dpo_trainer, create_model_from_path=create_stub)


def create_stub(name: str, *_: Any, **__: Any) -> Any:
    """A model of a few kilobytes that is named like the requested one."""
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model: Any = LlamaForCausalLM(config)
    model.config._name_or_path = model.name_or_path = name
    return model


def reference_entropy() -> AbstractContextManager[None]:
    """Let TRL's constructor give the reference a head that computes entropies beside log-probs.

    Seam: heads are added through `add_fused_lm_head` as found in the trainer's module, and the reference's is asked for
    by default outputs, which are the log-probs alone. A policy that is its own reference has entropies already.
    """
    add = dpo_trainer.add_fused_lm_head

    def add_with_entropy(model: Any, *args: Any, **kwargs: Any) -> None:
        add(model, *args, **{"outputs": ("log_probs", "entropy"), **kwargs})

    return temporarily(dpo_trainer, add_fused_lm_head=add_with_entropy)


def images_precomputed_later(args: Any) -> AbstractContextManager[None]:
    """Let TRL's constructor take images with `precompute_ref_log_probs`; `precompute_images` has to follow it.

    Seam: the constructor raises where both are given, and reads the option for nothing else than to run its pass and to
    load no reference model.
    """
    return temporarily(args, precompute_ref_log_probs=False)


def no_model_hash() -> AbstractContextManager[None]:
    """Keep TRL's constructor from reading all weights to name its own cache, which is not used.

    Seam: the hash is made by `hash_module` as found in the trainer's module, and only `_precompute_ref_logps` reads it.
    """
    return temporarily(dpo_trainer, hash_module=lambda module: "")


@contextlib.contextmanager
def placed_reference(replicated: Any) -> Iterator[None]:
    """Keep the reference `replicated` unsharded, and let FSDP2 shard any other reference layer by layer.

    Seam: the reference goes through `prepare_fsdp` or `prepare_deepspeed` as found in the trainer's module, called with
    it and the accelerator, and nothing else goes through `prepare_fsdp`.
    """
    with_fsdp, with_deepspeed = dpo_trainer.prepare_fsdp, dpo_trainer.prepare_deepspeed

    def prepare_fsdp(model: Any, accelerator: Any) -> Any:
        if model is replicated:
            return replicate(model, accelerator)
        shard_by_layer(model, accelerator)
        return with_fsdp(model, accelerator)

    def prepare_deepspeed(model: Any, accelerator: Any) -> Any:
        return replicate(model, accelerator) if model is replicated else with_deepspeed(model, accelerator)

    with temporarily(dpo_trainer, prepare_fsdp=prepare_fsdp, prepare_deepspeed=prepare_deepspeed):
        yield
