"""Models: which is which under their wrappers, what the fused head does, and how rows of ours go through a backbone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object as gather_objects
from trl.trainer import dpo_trainer

from ..core.token_kl import Projection


def with_head(model: Any) -> Any:
    """A model that gives token log-probs as TRL asks for them.

    Seam: `add_fused_lm_head(model)` changes the model's forward.
    """
    dpo_trainer.add_fused_lm_head(model)
    return model


def gather_object(value: Any) -> list[Any]:
    """One object of each process, in their order, on every process."""
    gathered = gather_objects([value])
    return gathered if isinstance(gathered, list) else [gathered]


def is_sharded(trainer: Any) -> bool:
    """Whether a forward gathers weights from all processes, so that all have to run it together."""
    return trainer.is_fsdp_enabled or getattr(trainer.args.deepspeed_plugin, "zero_stage", 0) == 3


def is_adapted(trainer: Any) -> bool:
    """Whether the policy is a PEFT model, whose base or frozen adapter is its reference."""
    return hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config")


def causal_model(trainer: Any, model: Any) -> Any:
    """The model with an output layer, without what training or an adapter has wrapped around it."""
    inner = trainer.accelerator.unwrap_model(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


@contextlib.contextmanager
def capture_projection(
    trainer: Any, model: Any, mask: torch.Tensor, wanted: bool, selected: bool = False
) -> Iterator[list[Projection]]:
    """The list that the first forward of `model` inside fills, where it is wanted.

    `mask` is true on completion tokens, (rows, tokens); `selected` says that the head is given these alone, by
    `override_attention_mask`.

    Seam: a fused head calls the backbone `base_model` as a module and projects its `last_hidden_state` but the last
    position through the weights of `get_output_embeddings()`, as they are at that time (an adapter may be off).
    """
    caught: list[Projection] = []
    if not wanted:
        yield caught
        return
    causal = causal_model(trainer, model)

    def catch(_module: Any, _inputs: Any, output: Any) -> None:
        head, hidden = causal.get_output_embeddings(), output.last_hidden_state
        if selected:
            hidden = hidden.new_zeros(*mask.shape, hidden.size(-1)).masked_scatter(mask.unsqueeze(-1), hidden)
        else:
            hidden = hidden[:, -mask.size(1) - 1 : -1]
        caught.append(Projection(hidden, head.weight, head.bias))

    handle = causal.base_model.register_forward_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()


# What TRL's fused head does to logits beyond projecting: scale or cap them, where the model's configuration says so.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def projection_problems(trainer: Any) -> list[str]:
    """Why the logits of policy or reference cannot be made from hidden states and weights here."""
    problems = []
    if trainer.is_fsdp_enabled or getattr(trainer.args.deepspeed_plugin, "zero_stage", 0) == 3:
        problems.append("FSDP and ZeRO-3 split the output layer over processes")
    for model in filter(None, (trainer.model, trainer.ref_model)):
        causal = causal_model(trainer, model)
        text = causal.config.get_text_config()
        problems += [
            f"{type(causal).__name__} changes its logits by {name}={getattr(text, name)}"
            for name in _LOGIT_CHANGES
            if getattr(text, name, None) not in (None, 1, 1.0)
        ]
        if not causal.get_output_embeddings().weight.is_floating_point():
            problems.append(f"the output layer of {type(causal).__name__} is quantized")
    return list(dict.fromkeys(problems))


def models_of(trainer: Any) -> dict[str, Any]:
    """Policy and live reference as the losses call them, without what training has wrapped around them.

    Seam: `ref_model` is None where the policy is its own reference, or where there is none.
    """
    models = {"policy": trainer.model, "reference": trainer.ref_model}
    return {name: trainer.accelerator.unwrap_model(model) for name, model in models.items() if model is not None}


def vocabulary_size(trainer: Any) -> int:
    """Number of tokens that the reference chooses from.

    Seam: `ref_model` is None where the policy is its own reference.
    """
    model = trainer.model if trainer.ref_model is None else trainer.ref_model
    return trainer.accelerator.unwrap_model(model).config.get_text_config().vocab_size


@contextlib.contextmanager
def override_attention_mask(
    causal: Any, mask: Any, scored: torch.Tensor, router_tokens: torch.Tensor | None = None
) -> Iterator[None]:
    """Inside, the backbone of `causal` sees `mask` in its attention mask's place, and the head sees scored tokens only.

    Seam: a fused head calls the backbone `base_model` as a module, passing the caller's keywords on; with
    `shift_labels` it projects `last_hidden_state` as it is, and takes the auxiliary loss from `router_logits` under
    the `attention_mask` that the caller gave, not the one seen here.

    Args:
        causal: the causal model with the fused head, without wrappers.
        mask: what the backbone is to take as its attention mask; None is plain causal.
        scored: (scored,) flat indices into (rows x width) of the hidden states to project, in the order of the labels.
        router_tokens: flat indices into (rows x width) of the tokens that the auxiliary loss is to count.
    """

    def see(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": mask}

    def select(_module: Any, _inputs: Any, output: Any) -> Any:
        output["last_hidden_state"] = output.last_hidden_state.flatten(0, 1)[scored].unsqueeze(0)
        if router_tokens is not None and output.get("router_logits") is not None:
            logits = (layer.reshape(-1, layer.size(-1)) for layer in output.router_logits)
            output["router_logits"] = tuple(layer[router_tokens.to(layer.device)] for layer in logits)
        return output

    # In front of other hooks, so that these see what the head sees.
    handles = [
        causal.base_model.register_forward_pre_hook(see, with_kwargs=True, prepend=True),
        causal.base_model.register_forward_hook(select, prepend=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def scatter_to_batch(output: Any, mask: torch.Tensor) -> Any:
    """A scored output whose fields are (1, scored), with fields of the shape of `mask`, zero outside it.

    Seam: of a scored output, `loss` and `aux_loss` are scalars and all else is per token.
    """
    for name, value in list(output.items()):
        if name not in ("loss", "aux_loss") and value is not None:
            there = mask.to(value.device)
            output[name] = value.new_zeros(there.shape).masked_scatter(there, value[0])
    return output
