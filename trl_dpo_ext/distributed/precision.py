"""Keep the precision of log-probs and the checkpointing options that FSDP and DeepSpeed would change."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import torch


def keep_precision(accelerator: Any) -> None:
    """Let modules under FSDP2 return their outputs in the precision in which they were computed.

    With bf16, accelerate's policy casts every module's output to it, log-probs too, which are then summed over
    completions. Computation stays in bf16, log-probs in float32.

    Seam: `accelerator.state.fsdp_plugin`, None without FSDP, has `fsdp_version` and a `mixed_precision_policy` that is
    read when a model is prepared; for FSDP2 the policy is torch's dataclass with `output_dtype`.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if plugin is not None and plugin.fsdp_version == 2 and policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


def keep_checkpointing(args: Any) -> None:
    """Copy the checkpointing options that TRL has set to the name under which transformers reads them.

    For an adapter under ZeRO-3 TRL asks for reentrant checkpointing, without which the backward pass fails.

    Seam: TRL writes `gradient_checkpointing_kwargs`, of which newer versions of transformers read a copy made before,
    `activation_checkpointing_kwargs`.
    """
    if hasattr(args, "activation_checkpointing_kwargs"):
        args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs


def split_uncast(
    inputs: Mapping[str, Any], columns: Collection[str], device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a batch into the values that must keep their precision, on the device, and those for the model.

    Under DeepSpeed with bf16, transformers casts every floating-point tensor of a batch: of stored reference log-probs,
    sums of hundreds of nats, eight bits would be left. What is kept are all `ref_*` keys, and the dataset columns that
    losses read.
    """
    kept = {key: value for key, value in inputs.items() if key.startswith("ref_") or key in columns}
    rest = {key: value for key, value in inputs.items() if key not in kept}
    return {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in kept.items()}, rest
