"""What the engines (DDP, FSDP, DeepSpeed) get silently wrong, put right: who really runs, and in which precision."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ..errors import InputError

_DATA_PARALLEL_ON_CPU = "MULTI_CPU"


def check_launch(environment: Mapping[str, str], args: Any) -> None:
    """Compare what `accelerate launch` was asked for, as it says in the environment, with what came of it.

    Args:
        environment: environment variables.
        args: training arguments, which know the processes.

    Raises:
        InputError: FSDP or DeepSpeed was asked for and is not used, or several processes train each on their own.
    """
    processes = args.world_size  # asked first: it sets the state up
    problems = launch_problems(environment, args.distributed_state.distributed_type.value, processes)
    if problems:
        raise InputError(*problems)
    _warn_of_one_process(environment, processes)


def launch_problems(environment: Mapping[str, str], kind: str, processes: int) -> list[str]:
    """What differs between what was asked for and a run of `kind` (accelerate's word, such as MULTI_GPU)."""
    problems = []
    plain = kind == "NO" or kind == _DATA_PARALLEL_ON_CPU
    if _is_true(environment, "ACCELERATE_USE_FSDP") and plain:
        problems.append(_not_used("FSDP", "accelerate takes it up for GPUs only", processes))
    if _is_true(environment, "ACCELERATE_USE_DEEPSPEED") and kind != "DEEPSPEED":
        problems.append(
            _not_used("DeepSpeed", "use_cpu turns it off, and so does starting without a launcher", processes)
        )
    launched = int(environment.get("WORLD_SIZE", 1))
    if launched > 1 and processes == 1:
        problems.append(
            f"{launched} processes were launched and each trains on its own, into one output folder: no GPU was found. "
            "Pass use_cpu=True to train together on CPUs, or unset WORLD_SIZE to train in one process."
        )
    return problems


def _not_used(engine: str, why: str, processes: int) -> str:
    got = "one plain process" if processes == 1 else f"plain data parallelism over {processes} processes"
    return f"The launch asked for {engine} and got {got}: {why}. Remove use_cpu, or launch without {engine}."


def _warn_of_one_process(environment: Mapping[str, str], processes: int) -> None:
    # For several CPU processes accelerate sets an address to meet at, and leaves starting them to mpirun.
    asked = "ACCELERATE_MIXED_PRECISION" in environment and {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys()
    if asked and processes == 1 and "WORLD_SIZE" not in environment and _is_true(environment, "ACCELERATE_USE_CPU"):
        warnings.warn(
            "accelerate launch prepared for several processes and started one: for CPUs it leaves that to mpirun. "
            "distributed_type: MULTI_GPU with use_cpu=True in the recipe starts them without.",
            stacklevel=5,
        )


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes")


def keep_precision(accelerator: Any) -> None:
    """Let modules under FSDP2 return what they computed.

    With bf16, accelerate's policy casts every module's output to it, log-probs too, which are then summed over
    completions. Computation stays in bf16, log-probs in float32.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if plugin is not None and plugin.fsdp_version == 2 and policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)


def keep_checkpointing(args: Any) -> None:
    """Let transformers see the checkpointing options that TRL has set, under their newer name.

    For an adapter under ZeRO-3 TRL asks for reentrant checkpointing, without which the backward pass fails. It writes
    `gradient_checkpointing_kwargs`, of which newer versions of transformers read a copy made before.
    """
    if hasattr(args, "activation_checkpointing_kwargs"):
        args.activation_checkpointing_kwargs = args.gradient_checkpointing_kwargs


def split_uncast(
    inputs: Mapping[str, Any], columns: Collection[str], device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch in two parts: values that must keep their precision, on the device; and what the model is to be given.

    Under DeepSpeed with bf16, transformers casts every floating-point tensor of a batch: of stored reference log-probs,
    sums of hundreds of nats, eight bits would be left. What is kept are all `ref_*` keys, and the dataset columns that
    losses read.
    """
    kept = {key: value for key, value in inputs.items() if key.startswith("ref_") or key in columns}
    rest = {key: value for key, value in inputs.items() if key not in kept}
    return {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in kept.items()}, rest
