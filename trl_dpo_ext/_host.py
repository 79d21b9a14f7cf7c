"""Every place where this package leans on TRL's inside. Nothing else names it.

Each function here rests on one *seam*: a fact about TRL's DPOTrainer that its documentation does not promise. Each seam
has one test in tests/contract, so that a TRL upgrade which moves it breaks a test that names it, not a user's run.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import gather_object as gather_objects
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer import dpo_trainer
from trl.trainer.utils import get_config_model_id

from .errors import InputError
from .reference.placement import place_whole, shard_by_layer
from .token_kl import Projection

REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
"""Seam: the batch keys in which TRL expects stored reference log-probs, each (pairs,)."""

COMPLETION_MASK = "completion_mask"
"""Seam: the batch key of the (rows, tokens) mask of completion tokens; rows = 2 x pairs, chosen half first."""

COMPLETION_IDS = {"chosen": "chosen_ids", "rejected": "rejected_ids"}
"""Seam: the columns in which TRL keeps a row's tokenised completions, EOS included."""


TOKEN_IDS = ("prompt_ids", *COMPLETION_IDS.values())
"""Seam: the columns in which TRL keeps a row's tokens."""


def keeps_end(collator: Any) -> bool:
    """Whether a row that is too long loses its start instead of its end.

    Seam: the collator truncates to `max_length`, by the mode in `truncation_mode`.
    """
    return getattr(collator, "truncation_mode", "keep_start") == "keep_end"


class Recorder:
    """Stands in a model's place where TRL calls it, and keeps the first scored output.

    Seam: TRL's loss only ever *calls* the model, with `fused_lm_head=True` where it wants log-probs; the output then
    carries `log_probs` of shape (rows, tokens - 1), zero outside the completion.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model
        self.output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        if self.output is None and kwargs.get("fused_lm_head"):
            self.output = output
        return output


def scored_tokens(output: Any, tokens: int, name: str = "log_probs") -> torch.Tensor:
    """A per-token field of a recorded output, (rows, tokens); prompt-learning PEFT puts virtual tokens in front."""
    return getattr(output, name)[:, -tokens:]


def scored_output(log_probs: torch.Tensor) -> Any:
    """Stored log-probs, (rows, tokens), in the place of a model's output."""
    return SimpleNamespace(log_probs=log_probs)


@contextlib.contextmanager
def constructing(args: Any, names: Sequence[str], weights: Sequence[float]) -> Iterator[None]:
    """Inside, TRL's constructor sees only the losses it is to compute itself, usually none.

    Seam: an empty `loss_types` is legal and adds no loss; the constructor copies the names and is done with `args`.
    TRL's constructor warns of `padding_free`, which it has dropped and we have not, so it does not see that either.
    """
    saved = args.loss_type, args.loss_weights, args.padding_free
    args.loss_type, args.loss_weights, args.padding_free = list(names), list(weights) or None, False
    try:
        yield
    finally:
        args.loss_type, args.loss_weights, args.padding_free = saved


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
def no_policy() -> Iterator[None]:
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
            return place_whole(model, accelerator)
        shard_by_layer(model, accelerator)
        return saved[0](model, accelerator)

    def prepare_deepspeed(model: Any, accelerator: Any) -> Any:
        return place_whole(model, accelerator) if model is whole else saved[1](model, accelerator)

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
def reference_from_batch(trainer: Any) -> Iterator[None]:
    """Inside, TRL's loss takes the reference log-probs from the batch and runs no reference forward.

    Seam: `precompute_ref_logps` is read at each loss, and then `REFERENCE_COLUMNS` are taken from the batch.
    """
    saved = trainer.precompute_ref_logps
    trainer.precompute_ref_logps = True
    try:
        yield
    finally:
        trainer.precompute_ref_logps = saved


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


def prepared(trainer: Any, dataset: Any) -> Any:
    """A dataset, or a dictionary of them, tokenised as TRL does it.

    Seam: `_prepare_dataset(dataset, processing_class, args, name)`, which leaves tokenised data as it is.
    """
    if isinstance(dataset, dict):
        return {
            name: trainer._prepare_dataset(d, trainer.processing_class, trainer.args, name)
            for name, d in dataset.items()
        }
    return trainer._prepare_dataset(dataset, trainer.processing_class, trainer.args, "eval")


@contextlib.contextmanager
def plain_scores(trainer: Any) -> Iterator[None]:
    """Inside, TRL's loss works out no scores of an f-divergence, of which it knows fewer than we do.

    Seam: `f_divergence_type` is read at each loss, and scores go into losses alone, not into metrics.
    """
    saved = trainer.f_divergence_type
    trainer.f_divergence_type = "reverse_kl"
    try:
        yield
    finally:
        trainer.f_divergence_type = saved


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


def collated_columns(trainer: Any) -> list[str] | None:
    """The dataset columns that the collator is given; None for all.

    Seam: `_signature_columns` lists them, once `_set_signature_columns_if_needed` has run.
    """
    if not trainer.args.remove_unused_columns:
        return None
    trainer._set_signature_columns_if_needed()
    return list(trainer._signature_columns)


def let_go_of_reference(trainer: Any) -> None:
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


def is_sharded(trainer: Any) -> bool:
    """Whether a forward gathers weights from all processes, so that all have to run it together."""
    return trainer.is_fsdp_enabled or getattr(trainer.args.deepspeed_plugin, "zero_stage", 0) == 3


@contextlib.contextmanager
def reference_for_pass(trainer: Any, load: Callable[[], Any] | None = None) -> Iterator[tuple[Any, Any]]:
    """The reference to call and the causal model in it, in evaluation mode.

    It is a model of its own, what `load` gives, or the policy.

    Seam: before training the policy is whole on its device, unless DeepSpeed is to place it, and under FSDP it is not
    wrapped; `prepare_deepspeed` and `prepare_fsdp`, as found in the trainer's module, do that for models that only run.
    """
    ours = trainer.ref_model is None and load is None  # the policy is the reference
    if ours and not is_adapted(trainer) and trainer.state.global_step > 0:
        raise InputError([_GONE])
    model, engine = trainer.ref_model, None
    if load is not None:
        model = engine = load()
    elif ours and trainer.is_deepspeed_enabled and trainer.deepspeed is None:
        model = engine = dpo_trainer.prepare_deepspeed(trainer.model, trainer.accelerator)
    elif ours and trainer.is_fsdp_enabled and trainer.model_wrapped is trainer.model and not trainer.state.global_step:
        model = dpo_trainer.prepare_fsdp(copy.deepcopy(trainer.model), trainer.accelerator)
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
        if engine is not None and hasattr(engine, "destroy"):
            engine.destroy()


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
    """The lowest precision of parameters and forward, and whether weights are quantised."""
    dtypes = [causal.dtype, getattr(torch, compute_dtype(trainer, causal))]
    quantised = getattr(causal.config, "quantization_config", None) is not None
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps), quantised


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


def is_adapted(trainer: Any) -> bool:
    """Whether the policy is a PEFT model, whose base or frozen adapter is its reference."""
    return hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config")


def causal_model(trainer: Any, model: Any) -> Any:
    """The model with an output layer, without what training or an adapter has wrapped around it."""
    inner = trainer.accelerator.unwrap_model(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


@contextlib.contextmanager
def caught_projection(
    trainer: Any, model: Any, mask: torch.Tensor, wanted: bool, selected: bool = False
) -> Iterator[list[Projection]]:
    """The list that the first forward of `model` inside fills, where it is wanted.

    `mask` is true on completion tokens, (rows, tokens); `selected` says that the head is given these alone, by
    `backbone_seeing`.

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
            problems.append(f"the output layer of {type(causal).__name__} is quantised")
    return list(dict.fromkeys(problems))


def models_of(trainer: Any) -> dict[str, Any]:
    """Policy and live reference as the losses call them, without what training has wrapped around them.

    Seam: `ref_model` is None where the policy is its own reference, or where there is none.
    """
    models = {"policy": trainer.model, "reference": trainer.ref_model}
    return {name: trainer.accelerator.unwrap_model(model) for name, model in models.items() if model is not None}


def not_plain_text(trainer: Any) -> list[str]:
    """What keeps a batch from being whole sequences of tokens and nothing else.

    Seam: `_is_vision_dataset`; context and sequence parallelism cut the batch before the loss sees it.
    """
    problems = ["the dataset has images, which stand in the prompt"] if trainer._is_vision_dataset else []
    parallel = trainer.accelerator.parallelism_config
    split = [name for name in ("cp_size", "sp_size") if getattr(parallel, name, 1) > 1]
    return problems + [f"{name}={getattr(parallel, name)} cuts sequences into parts" for name in split]


def labels_of(inputs: Mapping[str, Any]) -> torch.Tensor:
    """The labels that TRL gives a model, (rows, tokens): token ids in completions, -100 elsewhere."""
    return inputs["input_ids"].masked_fill(inputs[COMPLETION_MASK] == 0, -100)


def vocabulary_size(trainer: Any) -> int:
    """Number of tokens that the reference chooses from.

    Seam: `ref_model` is None where the policy is its own reference.
    """
    model = trainer.model if trainer.ref_model is None else trainer.ref_model
    return trainer.accelerator.unwrap_model(model).config.get_text_config().vocab_size


def add_metric(trainer: Any, name: str, value: float) -> None:
    """Log a value, averaged over the batches between two log lines.

    Seam: `_metrics[mode][name]` is a list that `log` averages, prefixes in evaluation, and clears.
    """
    trainer._metrics[_mode(trainer)][name].append(value)


def replace_metric(trainer: Any, name: str, value: float) -> None:
    """Put another value in the place of what TRL has just logged for this batch."""
    trainer._metrics[_mode(trainer)][name][-1] = value


PAIR_METRICS = ("rewards/", "logps/", "loss/")
"""Seam: how TRL's names of metrics begin that are means over the pairs of a batch; and ours."""


def weigh_pair_metrics(trainer: Any, pairs: int) -> None:
    """Let the evaluation batch just done count by its number of pairs: TRL averages batches, whatever their size.

    Seam: each batch adds one value to each list of `_metrics["eval"]`, and the lists are averaged.
    """
    for name, values in trainer._metrics["eval"].items():
        if name.startswith(PAIR_METRICS):
            values += [values[-1]] * (pairs - 1)


@contextlib.contextmanager
def cut_when_gathered(trainer: Any, cut: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside, what TRL gathers over processes goes through `cut`.

    Seam: what TRL logs per pair is gathered by `accelerator.gather`.
    """
    gather = trainer.accelerator.gather
    trainer.accelerator.gather = lambda values: cut(gather(values))
    try:
        yield
    finally:
        del trainer.accelerator.gather


def _mode(trainer: Any) -> str:
    return "train" if is_training(trainer) else "eval"


def is_training(trainer: Any) -> bool:
    """Whether a loss is being trained on rather than evaluated.

    Seam: TRL tells the two apart by the policy's `training` flag.
    """
    return trainer.model.training


def default_output_dir(model: Any) -> str:
    """The output folder TRL uses where no configuration is given."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return f"{name.split('/')[-1]}-DPO"


@contextlib.contextmanager
def backbone_seeing(
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


def in_rows(output: Any, mask: torch.Tensor) -> Any:
    """A scored output whose fields are (1, scored), with fields of the shape of `mask`, zero outside it.

    Seam: of a scored output, `loss` and `aux_loss` are scalars and all else is per token.
    """
    for name, value in list(output.items()):
        if name not in ("loss", "aux_loss") and value is not None:
            there = mask.to(value.device)
            output[name] = value.new_zeros(there.shape).masked_scatter(there, value[0])
    return output
