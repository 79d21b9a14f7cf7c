"""Models: which is which under their wrappers, what the fused head does, and how rows of ours go through a backbone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch
from accelerate.utils import gather_object as gather_objects
from peft import PeftModel
from trl.trainer import dpo_trainer

from ..core.token_kl import Projection
from .compiled import is_compiled, is_compiled_by
from .engine import planned_engine
from .internals import TrainerInternals


def with_head(model: Any) -> Any:
    """Give a model the head with which TRL computes token log-probs.

    Seam: `add_fused_lm_head(model)` changes the model's forward.
    """
    dpo_trainer.add_fused_lm_head(model)
    return model


def with_own_forward(copied: Any) -> Any:
    """Remove the head from a copy of a model that has been in a trainer: without it, the copy's forward is its own.

    Seam: `add_fused_lm_head` puts a `forward` on the instance that keeps the bound forward it replaces in a closure,
    which a copy has in common with the original. For logits, the copy would run the original.
    """
    forward = vars(copied).get("forward")
    if getattr(getattr(forward, "__func__", None), "__code__", None) in _codes_of_head():
        del copied.forward
    return copied


def _codes_of_head() -> list[Any]:
    """The code of the functions inside `add_fused_lm_head`."""
    return [each for each in dpo_trainer.add_fused_lm_head.__code__.co_consts if isinstance(each, CodeType)]


def is_peft_model(model: Any) -> bool:
    """Whether a model is a `PeftModel`, which TRL can run without its adapter.

    Seam: TRL switches adapters of a `PeftModel` alone, not those that `model.add_adapter` put inside a model.
    """
    return isinstance(model, PeftModel)


def without_adapter(model: Any) -> Any:
    """The model inside a `PeftModel`; any other model unchanged."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def gather_object(value: Any) -> list[Any]:
    """One object of each process, in their order, on every process."""
    gathered = gather_objects([value])
    return gathered if isinstance(gathered, list) else [gathered]


class ModelSeams:
    """What the package asks about a trainer's models.

    Args:
        trainer: a `trl.DPOTrainer`; it may still be under construction.
    """

    def __init__(self, trainer: TrainerInternals) -> None:
        self.trainer = trainer

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first process of all machines."""
        return self.trainer.accelerator.is_main_process

    @property
    def is_sharded(self) -> bool:
        """Whether a forward gathers weights from all processes, so that all have to run it together."""
        return self.trainer.is_fsdp_enabled or self.zero_stage == 3

    @property
    def is_adapted(self) -> bool:
        """Whether the policy is a PEFT model, whose base or frozen adapter is its reference."""
        return is_peft_model(self.unwrapped(self.trainer.model))

    @contextlib.contextmanager
    def kept_mode(self) -> Iterator[None]:
        """Inside, models may be switched to evaluation; afterwards the policy trains or evaluates as before."""
        modules = list(self.trainer.model.modules())
        modes = [module.training for module in modules]
        try:
            yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode

    def evaluate(self, name: str | None) -> None:
        """Evaluate on the trainer's evaluation set, or on the one of that name if it has several, and log that."""
        if name is None:
            self.trainer.evaluate()
        else:
            self.trainer.evaluate(name, metric_key_prefix=f"eval_{name}")

    @staticmethod
    def from_main(value: Any) -> Any:
        """What the first process gives, on every process."""
        return gather_object(value)[0]

    @property
    def has_trained(self) -> bool:
        """Whether the policy has taken a step, so that it is not the initial policy any more."""
        return self.trainer.state.global_step > 0

    @property
    def zero_stage(self) -> int:
        """Stage of DeepSpeed's ZeRO; 0 without."""
        return planned_engine(self.trainer.args).zero_stage

    def unwrapped(self, model: Any) -> Any:
        """The model without what distributed training or `torch.compile` has wrapped around it."""
        return self.trainer.accelerator.unwrap_model(model, keep_torch_compile=False)

    def causal_model(self, model: Any) -> Any:
        """The model with an output layer, without what training or an adapter has wrapped around it."""
        return without_adapter(self.unwrapped(model))

    def models(self) -> dict[str, Any]:
        """Policy and live reference as the losses call them, without what training has wrapped around them.

        Seam: `ref_model` is None where the policy is its own reference, or where there is none.
        """
        models = {"policy": self.trainer.model, "reference": self.trainer.ref_model}
        return {name: self.unwrapped(model) for name, model in models.items() if model is not None}

    def reference_module(self) -> Any:
        """The reference without what training has wrapped around it; a PEFT model where it is the policy."""
        reference = self.trainer.ref_model
        return self.unwrapped(self.trainer.model if reference is None else reference)

    def vocabulary_size(self) -> int:
        """Number of tokens that the reference chooses from.

        Seam: `ref_model` is None where the policy is its own reference.
        """
        return self.reference_module().config.get_text_config().vocab_size

    def casts_parameters(self) -> bool:
        """Whether the engine keeps or gathers parameters in the precision of the forward, as FSDP and DeepSpeed do."""
        return self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled

    def autocast_dtype(self) -> str | None:
        """The dtype of mixed precision by name, such as "bfloat16"; None without."""
        return {"bf16": "bfloat16", "fp16": "float16"}.get(self.trainer.accelerator.mixed_precision)

    def compute_dtype(self, causal: Any) -> str:
        """The dtype of a model's forward by name: that of autocast, or of the parameters."""
        return self.autocast_dtype() or str(causal.dtype).removeprefix("torch.")

    def precision(self, causal: Any) -> tuple[torch.dtype, bool]:
        """The lowest precision of parameters and forward, and whether weights are quantized."""
        dtypes = [causal.dtype, getattr(torch, self.compute_dtype(causal))]
        quantized = getattr(causal.config, "quantization_config", None) is not None
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps), quantized

    @contextlib.contextmanager
    def capture_projection(
        self, model: Any, mask: torch.Tensor, wanted: bool, selected: bool = False
    ) -> Iterator[list[Projection]]:
        """Yield the list that the first forward of `model` inside fills, if wanted.

        Args:
            model: whose logits are wanted; it may be wrapped.
            mask: (rows, tokens) bool, true on completion tokens.
            wanted: whether to capture anything.
            selected: the head is given completion tokens alone, by `override_attention_mask`.

        Seam: a fused head calls the backbone `base_model` as a module and projects its `last_hidden_state` but the last
        position through the weights of `get_output_embeddings()`, as they are at that time (an adapter may be off).
        """
        caught: list[Projection] = []
        if not wanted:
            yield caught
            return
        causal = self.causal_model(model)

        def catch(_module: Any, _inputs: Any, output: Any) -> None:
            head, hidden = causal.get_output_embeddings(), output.last_hidden_state
            hidden = hidden[0] if selected else hidden[:, -mask.size(1) - 1 : -1]
            caught.append(Projection(hidden, head.weight, head.bias))

        handle = causal.base_model.register_forward_hook(catch)
        try:
            yield caught
        finally:
            handle.remove()

    def compilation_problems(self) -> list[str]:
        """Reasons why hooks on the backbone of policy or reference would be ignored.

        Seam: `torch.compile` guards neither on the hooks of what it compiles nor on what they close over.
        """
        if is_compiled_by(self.trainer.accelerator):
            return ["torch_compile, or the dynamo backend of accelerate, compiles models, which then ignore hooks"]
        problems = []
        given = {"policy": self.trainer.model, "reference": self.trainer.ref_model}
        for name, model in ((name, model) for name, model in given.items() if model is not None):
            causal = self.causal_model(model)
            # A call passes these on its way to the backbone.
            if any(map(is_compiled, (model, getattr(model, "base_model", None), causal, causal.base_model))):
                problems.append(f"the {name} was compiled before it was given to the trainer, so it ignores hooks")
        return problems

    def projection_problems(self) -> list[str]:
        """Reasons why the logits of policy or reference cannot be recomputed from hidden states and weights."""
        problems = self.compilation_problems()
        if self.is_sharded:
            problems.append("FSDP and ZeRO-3 split the output layer over processes")
        for model in self.models().values():
            causal = self.causal_model(model)
            text = causal.config.get_text_config()
            problems += [
                f"{type(causal).__name__} changes its logits by {name}={getattr(text, name)}"
                for name in _LOGIT_CHANGES
                if getattr(text, name, None) not in (None, 1, 1.0)
            ]
            if not causal.get_output_embeddings().weight.is_floating_point():
                problems.append(f"the output layer of {type(causal).__name__} is quantized")
        return list(dict.fromkeys(problems))


# What TRL's fused head does to logits beyond projecting: scale or cap them, where the model's configuration says so.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


@contextlib.contextmanager
def override_attention_mask(
    causal: Any, mask: Any, scored: torch.Tensor, router_tokens: torch.Tensor | None = None
) -> Iterator[None]:
    """Show the backbone of `causal` another attention mask, and its head the scored tokens only.

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


def scatter_to_batch(output: Any, targets: torch.Tensor, shape: torch.Size) -> Any:
    """Scatter the fields of a scored output from (1, scored) to `shape`, with zeros elsewhere.

    Args:
        output: of a fused head.
        targets: (scored,) the flat index in `shape` of each value. A mask would make the host wait for the device.
        shape: (rows, tokens).

    Seam: of a scored output, `loss` and `aux_loss` are scalars and all else is per token.
    """
    for name, value in list(output.items()):
        if name not in ("loss", "aux_loss") and value is not None:
            empty = value.new_zeros(shape.numel())
            output[name] = empty.index_copy(0, targets.to(value.device), value[0]).view(shape)
    return output
