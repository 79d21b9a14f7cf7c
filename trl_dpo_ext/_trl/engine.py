"""Which engine a run will train under, asked before an accelerator exists that could tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Engine:
    """What a run's arguments and its launch ask for; `distributed.launch` refuses a run that gets another engine."""

    fsdp_version: int = 0
    """1 or 2; 0 without FSDP."""
    zero_stage: int = 0
    """Stage of DeepSpeed's ZeRO; 0 without DeepSpeed."""
    is_deepspeed: bool = False

    @property
    def is_fsdp(self) -> bool:
        """Whether FSDP splits the weights."""
        return self.fsdp_version > 0

    @property
    def splits_weights(self) -> bool:
        """Whether each process will hold a part of a model's weights."""
        return self.is_fsdp or self.zero_stage == 3

    @property
    def places_models(self) -> bool:
        """Whether the engine takes models from the CPU, and moves what each process holds to its device."""
        return self.is_fsdp or self.is_deepspeed


def planned_engine(args: Any, environment: Mapping[str, str] | None = None) -> Engine:
    """Return the engine that a configuration and `accelerate launch` ask for.

    Seam: until an `Accelerator` is created, `args.distributed_state` is accelerate's `PartialState`, which calls FSDP
    MULTI_GPU. FSDP is used if `args.fsdp_plugin_args` is set, or if the variable ACCELERATE_USE_FSDP is "true", in the
    version that FSDP_VERSION has, or 1; DeepSpeed if `args.deepspeed_plugin` is set, which reads its variables itself.

    Args:
        args: training arguments.
        environment: environment variables; those of this process by default.
    """
    environment = os.environ if environment is None else environment
    plugin, version = getattr(args, "deepspeed_plugin", None), 0
    if plugin is not None:
        return Engine(zero_stage=plugin.zero_stage, is_deepspeed=True)
    given = getattr(args, "fsdp_plugin_args", None)
    if given is not None:
        version = int(given.get("fsdp_version", 2))
    elif environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        version = int(environment.get("FSDP_VERSION", 1))
    return Engine(fsdp_version=version)
