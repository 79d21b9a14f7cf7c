"""Generate with a trainer's policy in the middle of a run, on every engine, without a trace in the run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList
from trl.models.utils import add_hooks, remove_hooks, unwrap_model_for_generation

from .compiled import uncompiled, without_compilation
from .models import gather_object, is_peft_model, without_adapter
from .patching import evaluation_mode, temporarily
from .reference import ReferenceSeams
from .renamed import renamed_in_peft

_SHARE_OF_FREE_MEMORY = 0.8
"""How much of a GPU's free memory gathered weights may take."""


@dataclass(frozen=True)
class Speaker:
    """The policy, ready to generate."""

    causal: Any
    """The causal model, which has `generate`."""
    forward: Callable[..., Any]
    """What is called for a forward: the causal model, or what an adapter or an engine has wrapped around it."""
    in_lockstep: bool
    """Whether a forward gathers weights from all processes, so that all have to run equally many."""

    def generate(
        self, settings: GenerationConfig, processors: list[Any], turn: Callable[[], None], **inputs: Any
    ) -> Any:
        """Call `generate` of transformers with these settings alone, and return its token ids, (rows, tokens).

        Args:
            settings: all of them; what the model's generation configuration says otherwise is ignored.
            processors: of logits.
            turn: called before each forward.
            **inputs: `input_ids` and `attention_mask`, each (rows, tokens), padded on the left.

        Seam: `generate` fills gaps in the settings that it is given from `generation_config` of the model, and calls
        the model itself for each token. FSDP2 puts a `generate` on the instance that runs the root's hooks once, around
        all tokens.
        """

        def forward(*positional: Any, **keywords: Any) -> Any:
            turn()
            return self.forward(*positional, **keywords)

        model = calling_through(self.causal, forward)
        with temporarily(self.causal, generation_config=settings):
            return type(model).generate(  # not the causal model's own, which FSDP2 has wrapped
                model,
                **inputs,
                generation_config=settings,
                logits_processor=LogitsProcessorList(processors),
                synced_gpus=False,
            )


def calling_through(causal: Any, forward: Callable[..., Any]) -> Any:
    """A view of a model whose calls go through `forward`; everything else it has in common with the model.

    `generate` calls the causal model, past the FSDP module or the `PeftModel` around it. The root of FSDP2 has to run
    its hooks though, or its weights stay split, and the layers take themselves for roots.
    """
    kind = type(causal)
    through = type(kind.__name__, (kind,), {"__call__": lambda _, *args, **kwargs: forward(*args, **kwargs)})
    view = object.__new__(through)
    object.__setattr__(view, "__dict__", causal.__dict__)
    return view


class GenerationSeams(ReferenceSeams):
    """How a trainer's policy generates."""

    def generation_problem(self) -> str | None:
        """The reason why the policy cannot generate while it trains; None if it can.

        Seam: a PEFT configuration says whether it learns a prompt as `is_prompt_learning`.
        """
        trainer = self.trainer
        policy = self.unwrapped(trainer.model)
        causal = without_adapter(policy)
        parallel = trainer.accelerator.parallelism_config
        split = [name for name in ("tp_size", "cp_size", "sp_size") if getattr(parallel, name, 1) > 1]
        if split:
            return f"{split[0]}={getattr(parallel, split[0])} splits models or sequences"
        if trainer._is_vision_dataset:
            return "prompts have images"
        if is_peft_model(policy):
            config = policy.active_peft_config
            if config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None):
                return f"the adapter ({getattr(config.peft_type, 'value', config.peft_type)}) depends on the prompt"
        if causal.config.is_encoder_decoder:
            return f"{type(causal).__name__} is an encoder-decoder"
        return None if causal.can_generate() else f"{type(causal).__name__} has no generate method"

    @contextlib.contextmanager
    def generating(self) -> Iterator[Speaker]:
        """Yield the policy, ready to generate; every process enters and leaves.

        Afterwards modes and gradient checkpointing are what they were. Adapters stay on, and compiled models are run as
        they were before.
        """
        trainer = self.trainer
        policy = self.unwrapped(trainer.model)
        causal = without_adapter(policy)
        quiet = (uncompiled(policy), evaluation_mode(policy), without_checkpointing(policy), torch.no_grad())
        with contextlib.ExitStack() as stack:
            for context in (*quiet, trainer.accelerator.autocast()):
                stack.enter_context(context)
            if self.zero_stage == 3:
                stack.enter_context(self._reset_after_failure())
            if self.zero_stage == 3 and self._gathered_fits(policy):
                stack.enter_context(self._gathered())
                yield Speaker(causal, policy, in_lockstep=False)
            else:
                wrapped = without_compilation(trainer.model_wrapped) if trainer.is_fsdp_enabled else policy
                yield Speaker(causal, wrapped, in_lockstep=self.is_sharded)

    def reference_apart(self) -> Any:
        """The live reference, to call; None where it is the policy with its adapter switched.

        Seam: `ref_model` is None there.
        """
        return None if self.trainer.ref_model is None else without_compilation(self.trainer.ref_model)

    @contextlib.contextmanager
    def _gathered(self) -> Iterator[None]:
        """Hold all weights of a ZeRO-3 policy on every process.

        Seam: `unwrap_model_for_generation` gathers the weights, and removes the engine's hooks; it puts them back only
        if no exception passes through it.
        """
        failure: BaseException | None = None
        with renamed_in_peft(), unwrap_model_for_generation(self.trainer.model_wrapped, self.trainer.accelerator):
            try:
                yield
            except BaseException as error:
                failure = error
        if failure is not None:
            raise failure

    @contextlib.contextmanager
    def _reset_after_failure(self) -> Iterator[None]:
        """After an exception, bring engines of ZeRO-3 to one state on all processes: weights split, order forgotten.

        Seam: an engine gathers ahead in the order of former forwards, which is another one where a forward was not
        finished. `empty_partition_cache` splits what is gathered, and `add_hooks` of TRL forgets the order.
        """
        try:
            yield
        except BaseException:
            for engine in (self.trainer.model_wrapped, self.trainer.ref_model):
                if hasattr(engine, "empty_partition_cache"):
                    remove_hooks(engine)
                    engine.empty_partition_cache()
                    add_hooks(engine)
            raise

    def _gathered_fits(self, policy: nn.Module) -> bool:
        """Whether all weights of a policy that ZeRO-3 splits fit into the memory of every process.

        Seam: DeepSpeed keeps the number of elements of a split parameter as `ds_numel`.
        """
        device = self.trainer.accelerator.device
        size = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in policy.parameters())
        free = math.inf
        if device.type == "cuda":
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = torch.cuda.mem_get_info(device)[0] + unused
        return all(gather_object(size < _SHARE_OF_FREE_MEMORY * free))


@contextlib.contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Switch gradient checkpointing off, and on again where it was.

    Seam: transformers keeps the switch in `gradient_checkpointing` of each module that has one.
    """
    modules: list[Any] = [
        module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True
    ]
    for module in modules:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in modules:
            module.gradient_checkpointing = True
