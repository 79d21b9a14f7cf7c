"""Launch validation: a run under DDP, FSDP or DeepSpeed must be the run that `accelerate launch` was configured for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from accelerate.state import AcceleratorState, is_initialized

from .._trl import planned_engine, temporarily
from ..errors import InputError

_DATA_PARALLEL_ON_CPU = "MULTI_CPU"


def check_launch(environment: Mapping[str, str], args: Any) -> None:
    """Compare what `accelerate launch` was configured for, according to the environment, with the actual run.

    Args:
        environment: environment variables.
        args: training arguments.

    Raises:
        InputError: FSDP or DeepSpeed was configured and is not used, or several processes train independently.

    Seam: `accelerate launch` passes its configuration on in `ACCELERATE_*` variables, and torchrun in `WORLD_SIZE`;
    `args.distributed_state` holds accelerate's kind of run once `args.world_size` has been read.
    """
    processes = args.world_size  # read first: it initializes the state
    kind = args.distributed_state.distributed_type.value
    problems = launch_problems(environment, kind, processes, planned_engine(args, environment).is_fsdp)
    if problems:
        raise InputError(*problems)
    _warn_of_one_process(environment, processes)


def launch_problems(environment: Mapping[str, str], kind: str, processes: int, fsdp: bool = False) -> list[str]:
    """List the differences between the configured launch and the run.

    Args:
        environment: environment variables.
        kind: accelerate's name for the processes that run, such as MULTI_GPU.
        processes: that train together.
        fsdp: whether FSDP was asked for by the training arguments, as it may be by the environment.
    """
    problems = []
    launched_with_fsdp = _is_true(environment, "ACCELERATE_USE_FSDP")
    plain = kind == "NO" or kind == _DATA_PARALLEL_ON_CPU
    if (launched_with_fsdp or fsdp) and plain:
        why = "accelerate supports FSDP only on GPUs, and for processes that a launcher has started"
        remove = "launch without FSDP" if launched_with_fsdp else "remove fsdp"
        problems.append(_not_used("FSDP", why, processes, remove))
    if _is_true(environment, "ACCELERATE_USE_DEEPSPEED") and kind != "DEEPSPEED":
        problems.append(
            _not_used(
                "DeepSpeed",
                "use_cpu turns DeepSpeed off, and so does starting without a launcher",
                processes,
                "launch without DeepSpeed",
            )
        )
    launched = int(environment.get("WORLD_SIZE", 1))
    if launched > 1 and processes == 1:
        problems.append(
            f"{launched} processes were launched, but no GPU was found, so they would train independently and write to "
            "the same output folder. Pass use_cpu=True to train together on CPUs, or unset WORLD_SIZE for one process."
        )
    return problems


def _not_used(engine: str, why: str, processes: int, remove: str) -> str:
    actual = "a single process" if processes == 1 else f"plain data parallelism over {processes} processes"
    return f"The launch is configured for {engine} but runs as {actual}: {why}. Remove use_cpu, or {remove}."


def _warn_of_one_process(environment: Mapping[str, str], processes: int) -> None:
    # For several CPU processes accelerate sets an address to meet at, and leaves starting them to mpirun.
    asked = "ACCELERATE_MIXED_PRECISION" in environment and {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys()
    if asked and processes == 1 and "WORLD_SIZE" not in environment and _is_true(environment, "ACCELERATE_USE_CPU"):
        warnings.warn(
            "accelerate launch was configured for several CPU processes but started only one: it expects mpirun to "
            "start them. Use distributed_type: MULTI_GPU with use_cpu=True to start them without mpirun.",
            stacklevel=5,
        )


def plugin_in_use(args: Any) -> AbstractContextManager[None]:
    """Let a second accelerator be created with a DeepSpeed plugin that the first one has, as for a second model.

    Seam: accelerate takes that plugin from its state where none is passed, and raises where one is; transformers passes
    `args.deepspeed_plugin`.
    """
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is None or not is_initialized() or AcceleratorState().deepspeed_plugin is not plugin:
        return nullcontext()
    return temporarily(args, deepspeed_plugin=None)


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes")
