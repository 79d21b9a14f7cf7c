"""Where a reference's weights are kept when several processes train: replicated, or sharded layer by layer."""

from __future__ import annotations

import contextlib
from typing import Any


def replicate(reference: Any, accelerator: Any) -> Any:
    """Keep a frozen reference unsharded on this process's device, out of the hands of FSDP and ZeRO."""
    reference.to(accelerator.device)
    if _zero_stage(accelerator) == 3:
        _mark_gathered(reference)
    return reference.eval()


def _zero_stage(accelerator: Any) -> int:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return plugin.zero_stage if plugin is not None else 0


def _mark_gathered(reference: Any) -> None:
    """Mark the output layer as gathered, for code that gathers it under ZeRO-3."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus  # pyright: ignore[reportMissingImports]

    head = reference.get_output_embeddings()
    for parameter in (head.weight, head.bias):
        if parameter is not None and not hasattr(parameter, "ds_status"):
            parameter.ds_status = ZeroParamStatus.AVAILABLE


def shard_by_layer(reference: Any, accelerator: Any) -> None:
    """Shard each layer that the policy's wrapping names as one unit, under FSDP2; once is enough.

    With the whole model as one unit, every forward gathers all of it on every process. Layers that are sharded have
    classes of other names, in which accelerate does not find the ones to wrap.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or plugin.fsdp_version != 2:
        return
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    if any(isinstance(module, FSDPModule) for module in reference.modules()):
        return
    with contextlib.suppress(AttributeError):  # a plugin whose policy is set already
        plugin.set_auto_wrap_policy(reference)
    chosen = fsdp2_prepare_auto_wrap_policy(plugin, reference)
    if chosen is None:
        return
    mesh = getattr(accelerator, "torch_device_mesh", None)
    settings: dict[str, Any] = {
        "reshard_after_forward": plugin.reshard_after_forward,
        "offload_policy": plugin.cpu_offload,
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        "mesh": mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)] if mesh is not None else None,
    }
    for module in list(reference.modules()):
        if module is not reference and chosen(module) and not isinstance(module, FSDPModule):
            fully_shard(module, **settings)
