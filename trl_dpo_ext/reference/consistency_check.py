"""First-step consistency check: the untrained policy must reproduce the log-probs of a reference that is its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import _trl
from ..errors import InputError
from ..forward.outputs import PairBatch
from ..forward.pair_forward import PairForward
from .identity.unchanged import base_sample
from .identity.weights import adapters_alter_base
from .precompute.collator import ReferenceCollator
from .precompute.stored import Running

# Root mean square of the difference per token, in nats. In float32 two batch shapes differ by rounding, 1e-5 or so;
# with 8 bits of mantissa by a few hundredths. Another model, template or vocabulary is off by one half and more.
_TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-2}
_LOW_PRECISION_TOLERANCE = 0.25

# Fields of a model's configuration that make a forward in training mode noisy. `disable_dropout` reaches modules alone.
_NOISE = ("attention_dropout", "router_jitter_noise", "input_jitter_noise")


def tolerance(dtype: torch.dtype, quantized: bool) -> float:
    """Return the largest root mean square difference per token that rounding explains, in nats."""
    return _LOW_PRECISION_TOLERANCE if quantized else _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE)


def difference(logps: torch.Tensor, ref_logps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the root mean square difference per token of policy and reference, a scalar in nats.

    Args:
        logps: policy, (rows, tokens) or summed (rows,).
        ref_logps: reference, of the same shape.
        mask: (rows, tokens) bool.
    """
    apart = (logps.detach().float() - ref_logps.float()).square()
    if apart.dim() == 1:
        return (apart / mask.sum(dim=1).clamp(min=1).square()).mean().sqrt()
    return (apart.sum() / mask.sum().clamp(min=1)).sqrt()


def policy_is_noisy(args: Any, config: Any) -> bool:
    """Return True if the policy's log-probs in training mode are not those of evaluation mode."""
    return bool(not args.disable_dropout or args.neftune_noise_alpha or noise_of(config))


def noise_of(config: Any) -> dict[str, float]:
    """Return the fields of a model's configuration that make its training mode noisy whatever `disable_dropout` is."""
    text = config.get_text_config()
    return {name: getattr(text, name) for name in _NOISE if getattr(text, name, 0)}


def noise_warning(noise: str) -> str:
    """Return a warning about noise that `disable_dropout` leaves on, which the user may not know of."""
    return (
        f"disable_dropout=True turns off dropout modules alone, and the policy trains with other noise: {noise}. Set "
        "it to 0 there (model_init_kwargs for a model by name), or disable_dropout=False if it is intended."
    )


def check(measured: float, allowed: float, source: str, cause: str) -> None:
    """Stop a run whose reference is not the model that it starts from.

    Raises:
        InputError: naming both numbers, the likely cause, and how to go on.
    """
    if not measured <= allowed:  # NaN is wrong too
        raise InputError(
            f"Before the first step, the policy and its reference ({source}) should be the same model, but they differ "
            f"by {measured:.3g} nats per token (root mean square; rounding explains up to {allowed:.3g}). {cause} Set "
            "--verify_reference false to train against this reference nevertheless."
        )


def check_given(
    host: _trl.Host, running: Running, reading: ReferenceCollator, forward: PairForward, folder: Path
) -> None:
    """Compare a few log-probs that a store held with those of a reference that was given, while it is in memory.

    Weights and configuration identify a reference, and hooks, patched layers and buffers that no file holds do not.

    Args:
        host: the trainer.
        running: gives the reference.
        reading: builds batches that hold the stored log-probs.
        forward: how models are called.
        folder: of the store.

    Raises:
        InputError: they differ by more than rounding explains.
    """
    rows = host.trainer.train_dataset
    if not rows:
        return
    few = [rows[at] for at in sorted({0, len(rows) // 2, len(rows) - 1})]
    batch = PairBatch.take(host.on_device(reading(few)), ())
    if batch.stored is None:
        return
    with running() as (_, causal):
        _, _, output = host.run_reference(batch.inputs, lambda called: forward.wrap(called, host.causal_model))
        allowed = tolerance(*host.precision(causal))
    tokens = _trl.scored_tokens(output, batch.mask.size(1))
    measured = max(_trl.gather_object(difference(tokens, batch.stored, batch.mask).item()), key=_nan_first)
    if not measured <= allowed:
        raise InputError(
            f"The reference store {folder} holds other log-probs than ref_model gives: they differ by "
            f"{measured:.3g} nats per token (root mean square; rounding explains up to {allowed:.3g}), although "
            "weights and configuration are the same. One of the two computes with other code, hooks, or buffers. "
            "Choose another --ref_store, or set --verify_reference false to train against the stored ones."
        )


def _nan_first(value: float) -> float:
    return float("inf") if value != value else value


def likely_cause(host: _trl.Host, stored: bool) -> str:
    """Return the likely cause of a difference and its remedy, found without the help of other processes.

    Args:
        host: the trainer.
        stored: whether the log-probs come from a store or columns.
    """
    models = host.models()
    policy, reference = models["policy"], models.get("reference")
    changed = [] if stored or reference is None else _changed(policy, reference)
    if changed:
        return (
            f"The policy's weights in memory are not those that its reference was loaded with: {changed[0]} and "
            f"{len(changed) - 1} more differ. Pass the policy as it is now as ref_model=load_reference(model), or set "
            "precompute_ref_log_probs before changing it."
        )
    merged = _trl.merged_adapters(policy)
    if merged:
        return f"An adapter is merged into the policy ({merged[0]}). Call model.unmerge_adapter() first."
    if reference is None and not stored:
        return _adapter_cause(host, policy)
    if reference is not None and any(module.training for module in reference.modules()):
        return "The reference runs in training mode, so dropout and noise are on. Call ref_model.eval()."
    if stored:
        return (
            "Another model, chat template or code computed the stored log-probs, or the policy has changed since. "
            "Recompute them in another --ref_store."
        )
    return "The reference was loaded from another checkpoint, or the policy has changed since it was loaded."


def _adapter_cause(host: _trl.Host, policy: Any) -> str:
    """The likely cause where the reference is the policy with its adapter switched."""
    copied = host.reference_adapter()
    if copied is not None:
        apart = [
            name
            for name, mine, theirs in _trl.adapter_pairs(policy, policy.active_adapter, _trl.FROZEN)
            if theirs is None or not torch.equal(mine.to(theirs.dtype), theirs)
        ]
        if apart:
            return (
                f"The adapter is not what its frozen copy was made of: {apart[0]} and {len(apart) - 1} more differ. "
                "Change or load adapter weights before the trainer is created."
            )
    elif adapters_alter_base(policy):
        return "The initialization of the adapter has changed the base. Set init_lora_weights=True in the peft_config."
    return (
        "The adapter does not start as its base, or its weights were changed or loaded after the trainer was created. "
        "Pass the model with its adapter (a PeftModel) to the trainer, which keeps a frozen copy as the reference."
    )


def _changed(policy: nn.Module, reference: nn.Module) -> list[str]:
    """Names of weights that differ between two models of one kind, by some values of each."""
    if any(hasattr(p, "ds_id") or hasattr(p, "_local_tensor") for p in (*policy.parameters(), *reference.parameters())):
        return []  # reading them needs all processes
    ours, theirs = base_sample(policy), base_sample(reference)
    if ours.keys() != theirs.keys():
        return []
    return [name for name, values in ours.items() if values != theirs[name]]
