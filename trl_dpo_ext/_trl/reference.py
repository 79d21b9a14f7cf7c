"""The reference: loading it or not, placing it, running it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer import dpo_trainer

from ..errors import InputError
from .batch import COMPLETION_MASK
from .loss import Recorder, scored_tokens
from .models import causal_model, is_adapted
from .placement import replicate, shard_by_layer


@contextlib.contextmanager
def no_reference_model(policy_by_name: bool) -> Iterator[None]:
    """Inside, TRL's constructor loads no reference model: its `ref_model` stays None.

    Seam: both models are loaded through `create_model_from_path` as found in the trainer's module, the policy (if it is
    given by name) before the reference, and a reference of None is skipped everywhere.
    """
    load = dpo_trainer.create_model_from_path
    calls = 0

    def load_policy_only(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return load(*args, **kwargs) if policy_by_name and calls == 1 else None

    dpo_trainer.create_model_from_path = load_policy_only
    try:
        yield
    finally:
        dpo_trainer.create_model_from_path = load


@contextlib.contextmanager
def stub_policy() -> Iterator[None]:
    """Inside, TRL's constructor gets a policy of a few kilobytes under the name that it asks for: nobody will run it.

    Seam: a policy given by name is loaded through `create_model_from_path(name, ...)` as found in the trainer's module,
    and its tokenizer by the name in its configuration.
    """
    load = dpo_trainer.create_model_from_path

    def stand_in(name: str, *_: Any, **__: Any) -> Any:
        config = LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
        model: Any = LlamaForCausalLM(config)
        model.config._name_or_path = model.name_or_path = name
        return model

    dpo_trainer.create_model_from_path = stand_in
    try:
        yield
    finally:
        dpo_trainer.create_model_from_path = load


@contextlib.contextmanager
def reference_entropy() -> Iterator[None]:
    """Inside, TRL's constructor gives the reference a head that computes entropies beside log-probs.

    Seam: heads are added through `add_fused_lm_head` as found in the trainer's module, and the reference's is asked for
    by default outputs, which are the log-probs alone. A policy that is its own reference has entropies already.
    """
    add = dpo_trainer.add_fused_lm_head

    def add_with_entropy(model: Any, *args: Any, **kwargs: Any) -> None:
        add(model, *args, **{"outputs": ("log_probs", "entropy"), **kwargs})

    dpo_trainer.add_fused_lm_head = add_with_entropy
    try:
        yield
    finally:
        dpo_trainer.add_fused_lm_head = add


@contextlib.contextmanager
def placed_reference(whole: Any) -> Iterator[None]:
    """Inside, TRL's constructor leaves the reference `whole` whole, and FSDP2 spreads any other layer by layer.

    Seam: the reference goes through `prepare_fsdp` or `prepare_deepspeed` as found in the trainer's module, called with
    it and the accelerator, and nothing else goes through `prepare_fsdp`.
    """
    saved = dpo_trainer.prepare_fsdp, dpo_trainer.prepare_deepspeed

    def prepare_fsdp(model: Any, accelerator: Any) -> Any:
        if model is whole:
            return replicate(model, accelerator)
        shard_by_layer(model, accelerator)
        return saved[0](model, accelerator)

    def prepare_deepspeed(model: Any, accelerator: Any) -> Any:
        return replicate(model, accelerator) if model is whole else saved[1](model, accelerator)

    dpo_trainer.prepare_fsdp, dpo_trainer.prepare_deepspeed = prepare_fsdp, prepare_deepspeed
    try:
        yield
    finally:
        dpo_trainer.prepare_fsdp, dpo_trainer.prepare_deepspeed = saved


def placed(trainer: Any, reference: Any, whole: bool) -> Any:
    """A loaded reference where TRL's constructor would have placed it, or `whole` on its device."""
    with placed_reference(reference if whole else None):
        if trainer.is_deepspeed_enabled:
            return dpo_trainer.prepare_deepspeed(reference, trainer.accelerator)
        if trainer.is_fsdp_enabled:
            return dpo_trainer.prepare_fsdp(reference, trainer.accelerator)
    return reference.to(trainer.accelerator.device)


@contextlib.contextmanager
def no_precompute(trainer: Any) -> Iterator[None]:
    """Inside, TRL's `evaluate` neither runs its own reference pass nor refuses data that it could not run one on.

    Seam: both depend on `precompute_ref_logps`, read when `evaluate` is given a dataset.
    """
    saved = trainer.precompute_ref_logps
    trainer.precompute_ref_logps = False
    try:
        yield
    finally:
        trainer.precompute_ref_logps = saved


def run_reference(
    trainer: Any, inputs: Mapping[str, Any], forward: Callable[[Any], Callable[..., Any]]
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Summed reference log-probs of both sides, each (pairs,), and the reference's recorded output.

    `forward` gives what is called in the model's place.

    Seam: `compute_ref_log_probs(model, inputs)` calls the model it is given, and switches adapters where that model is
    the policy itself.
    """
    recorder = Recorder(forward(trainer.model if trainer.ref_model is None else trainer.ref_model))
    chosen, rejected = trainer.compute_ref_log_probs(recorder, inputs)
    return chosen, rejected, recorder.output


def token_logps(trainer: Any, model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Token log-probs of a model with a fused head, (rows, tokens), without gradient.

    Seam: as `run_reference`; a model that is not the policy's own reference is run as it is.
    """
    recorder = Recorder(model)
    trainer.compute_ref_log_probs(recorder, inputs)
    return scored_tokens(recorder.output, inputs[COMPLETION_MASK].size(1) - 1)


@contextlib.contextmanager
def no_model_hash() -> Iterator[None]:
    """Inside, TRL's constructor does not read through all weights to name its own cache, which we do not use.

    Seam: the hash is made by `hash_module` as found in the trainer's module, and only `_precompute_ref_logps` reads it.
    """
    hash_module = dpo_trainer.hash_module
    dpo_trainer.hash_module = lambda module: ""
    try:
        yield
    finally:
        dpo_trainer.hash_module = hash_module


def release_reference(trainer: Any) -> None:
    """Drop the trainer's reference model, so that its memory is free if nobody else holds it.

    Seam: the trainer holds it as `ref_model`, and the accelerator that prepared it in `_models`.
    """
    reference = trainer.ref_model
    trainer.ref_model = None
    if reference is not None:
        trainer.accelerator._models = [model for model in trainer.accelerator._models if model is not reference]


def as_reference(trainer: Any, forward: Callable[[], Any]) -> Any:
    """What `forward` returns when it runs as TRL runs the reference: no gradient, adapter off, under autocast.

    Seam: `compute_ref_log_probs(model, inputs)` calls the model it is given once, in that state, and takes `log_probs`
    of its output.
    """
    returned: list[Any] = []
    nothing = torch.zeros(2, 2, dtype=torch.long, device=trainer.accelerator.device)

    def stand_in(**_: Any) -> Any:
        returned.append(forward())
        return SimpleNamespace(log_probs=nothing[:, 1:].float())

    trainer.compute_ref_log_probs(stand_in, {"input_ids": nothing, "completion_mask": nothing})
    return returned[0]


@contextlib.contextmanager
def reference_for_pass(trainer: Any, load: Callable[[], Any] | None = None) -> Iterator[tuple[Any, Any]]:
    """The reference to call and the causal model in it, in evaluation mode.

    It is a model of its own, what `load` gives, or the policy.

    Seam: before training the policy is whole on its device, unless DeepSpeed is to place it, and under FSDP it is not
    wrapped; `prepare_deepspeed` and `prepare_fsdp`, as found in the trainer's module, do that for models that only run.
    """
    ours = trainer.ref_model is None and load is None  # the policy is the reference
    if ours and not is_adapted(trainer) and trainer.state.global_step > 0:
        raise InputError(_GONE)
    model, engine = trainer.ref_model, None
    if load is not None:
        model = engine = load()
    elif ours and trainer.is_deepspeed_enabled and trainer.deepspeed is None:
        model = engine = dpo_trainer.prepare_deepspeed(trainer.model, trainer.accelerator)
    elif ours and trainer.is_fsdp_enabled and trainer.model_wrapped is trainer.model and not trainer.state.global_step:
        model = dpo_trainer.prepare_fsdp(_reference_of_policy(trainer), trainer.accelerator)
    elif ours:
        model = trainer.model_wrapped
    causal = causal_model(trainer, model)
    training = [module for module in causal.modules() if module.training]
    causal.eval()
    try:
        yield model, causal
    finally:
        for module in training:
            module.training = True
        # Left alone, a second engine of DeepSpeed's on one model would take part in every forward of training.
        destroy: Any = getattr(engine, "destroy", None)
        if destroy is not None:
            destroy()


def _reference_of_policy(trainer: Any) -> Any:
    """A model of its own that is what the policy is as its reference, for FSDP to split; their weights are shared.

    TRL switches the adapters of the policy, so here the trained one is taken out for good.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model)
    # FSDP puts parts of its own in the places of these, and leaves the tensors as they are. Quantized ones are more
    # than a tensor, and copied.
    plain = (p for p in policy.parameters() if type(p) is torch.nn.Parameter)
    shared = {id(p): torch.nn.Parameter(p.data, requires_grad=p.requires_grad) for p in plain}
    model = copy.deepcopy(policy, shared)
    if not is_adapted(trainer):
        return model
    adapter = reference_adapter(trainer)
    if adapter is None:
        return model.get_base_model() if model.active_peft_config.is_prompt_learning else model.unload()
    model.set_adapter(adapter)
    for other in set(model.peft_config) - {adapter}:
        model.delete_adapter(other)
    return model


_GONE = (
    "Reference log-probs are missing in the store, and the reference is no longer there to compute them: it was the "
    "policy's start, and the policy has been trained. Give the dataset as eval_dataset when the trainer is made, or "
    "run `trl-dpo-ext precompute` with it."
)


def casts_parameters(trainer: Any) -> bool:
    """Whether the engine keeps or gathers the parameters in the precision of the forward, as FSDP and DeepSpeed do."""
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def compute_dtype(trainer: Any, causal: Any) -> str:
    """The dtype of the reference's forward by name, such as "bfloat16": that of autocast, or of the parameters."""
    parameters = str(causal.dtype).removeprefix("torch.")
    return autocast_dtype(trainer) or parameters


def autocast_dtype(trainer: Any) -> str | None:
    """The dtype of mixed precision by name; None without."""
    return {"bf16": "bfloat16", "fp16": "float16"}.get(trainer.accelerator.mixed_precision)


def precision(trainer: Any, causal: Any) -> tuple[torch.dtype, bool]:
    """The lowest precision of parameters and forward, and whether weights are quantized."""
    dtypes = [causal.dtype, getattr(torch, compute_dtype(trainer, causal))]
    quantized = getattr(causal.config, "quantization_config", None) is not None
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps), quantized


def reference_module(trainer: Any) -> Any:
    """The reference without what training has wrapped around it; a PEFT model where it is the policy."""
    return trainer.accelerator.unwrap_model(trainer.model if trainer.ref_model is None else trainer.ref_model)


def reference_adapter(trainer: Any) -> str | None:
    """The frozen adapter that is the reference, where the policy is an adapter that is trained on.

    Seam: TRL keeps a copy of that adapter under the name "ref".
    """
    if trainer.ref_model is not None or not is_adapted(trainer):
        return None
    return "ref" if "ref" in trainer.accelerator.unwrap_model(trainer.model).peft_config else None
