"""The parallel strategy of a run: read from an accelerate configuration, or from a live accelerator."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ..errors import InputError
from ..recipe_registry import accelerate_configs

Kind = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp1", "fsdp2"]
GPUS_PER_MACHINE = 8
_ZERO_STAGES: dict[int, Kind] = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
# FSDP1's sharding strategies, which accelerate accepts by name or by number, counted from 1.
_FSDP1_STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")


@dataclass(frozen=True, slots=True)
class ParallelStrategy:
    """How a run is distributed over GPUs."""

    kind: Kind
    processes: int
    machines: int = 1
    shard_size: int = 0
    """Number of processes that a sharded tensor is split over; 0 means all of them."""
    half_precision: bool = True
    """True if the run computes in bf16 or fp16 (`mixed_precision`)."""
    offload: bool = False
    """True if parameters and optimizer states are kept in host memory."""
    offload_optimizer: bool = False
    on_cpu: bool = False
    keeps_gathered: bool = False
    """True if FSDP keeps a layer gathered between its forward and its backward pass."""

    @property
    def shards(self) -> int:
        """Number of shards of a sharded tensor."""
        return self.shard_size or self.processes

    @property
    def is_fsdp(self) -> bool:
        """True for either version of FSDP."""
        return self.kind in ("fsdp1", "fsdp2")

    @property
    def is_zero(self) -> bool:
        """True for every stage of DeepSpeed ZeRO."""
        return self.kind.startswith("zero")

    @property
    def shards_optimizer(self) -> bool:
        """True if each process holds only a shard of the optimizer states."""
        return self.is_fsdp or self.is_zero

    @property
    def shards_weights(self) -> bool:
        """True if each process holds only a shard of the weights."""
        return self.is_fsdp or self.kind == "zero3"

    @property
    def weight_shards(self) -> int:
        """Number of shards that the weights are split into; 1 if every process holds all of them."""
        return self.shards if self.shards_weights else 1

    def with_processes(self, processes: int) -> ParallelStrategy:
        """Return this strategy for another number of GPUs, on machines of eight."""
        if self.kind == "single":
            return self
        machines = machines_for(processes) if processes != self.processes else self.machines
        kind = "single" if self.kind == "ddp" and processes == 1 else self.kind
        return replace(self, kind=kind, processes=processes, machines=machines, shard_size=0)

    def describe(self) -> str:
        """Name the strategy and its number of GPUs, such as "ZeRO-3 over 16 GPUs on 2 machines"."""
        names = {"single": "one process", "ddp": "DDP", "fsdp1": "FSDP1", "fsdp2": "FSDP2"}
        name = names.get(self.kind, f"ZeRO-{self.kind[-1]}")
        name += " with offload" if self.offload or self.offload_optimizer else ""
        if self.kind == "single":
            return name
        return f"{name} over {self.processes} GPUs" + (f" on {self.machines} machines" if self.machines > 1 else "")


def machines_for(gpus: int) -> int:
    """Return the number of machines of eight GPUs that hold `gpus` GPUs."""
    return max(1, -(-gpus // GPUS_PER_MACHINE))


def read_strategy(file: str | Path) -> ParallelStrategy:
    """Read the strategy that an accelerate configuration describes.

    Raises:
        InputError: the file is missing, is not a YAML mapping, or describes an unsupported strategy.
    """
    path = Path(file)
    if not path.is_file():
        near = difflib.get_close_matches(str(file), accelerate_configs(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"--accelerate_config {file}: no such file or shipped configuration.{hint}")
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(keys, dict):
        raise InputError(f"{file} must hold a YAML mapping of keys to values.")
    try:
        return _strategy_from_keys(keys)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            f"{file} is not a valid accelerate configuration: {error!r}. Make one with `accelerate config`."
        ) from None


def _strategy_from_keys(keys: Mapping[str, Any]) -> ParallelStrategy:
    strategy = ParallelStrategy(
        "single",
        processes=int(keys.get("num_processes") or 1),
        machines=int(keys.get("num_machines") or 1),
        half_precision=str(keys.get("mixed_precision", "no")).lower() not in ("no", "false"),
        on_cpu=bool(keys.get("use_cpu")),
    )
    kind = str(keys.get("distributed_type", "NO")).upper()
    if kind == "FSDP":
        return _with_fsdp(strategy, keys.get("fsdp_config") or {}, keys.get("parallelism_config") or {})
    if kind == "DEEPSPEED":
        return _with_deepspeed(strategy, keys.get("deepspeed_config") or {})
    if kind in ("NO", "FALSE") or strategy.processes == 1:
        return replace(strategy, processes=1, machines=1)
    if kind.startswith("MULTI_"):
        return replace(strategy, kind="ddp")
    raise ValueError(f"distributed_type {kind} is not supported")


def _with_fsdp(strategy: ParallelStrategy, fsdp: Mapping[str, Any], parallelism: Mapping[str, Any]) -> ParallelStrategy:
    offload = bool(fsdp.get("fsdp_offload_params"))
    strategy = replace(strategy, kind="fsdp1", offload=offload, offload_optimizer=offload)
    if int(fsdp.get("fsdp_version", 1)) == 2:
        shard_size = int(parallelism.get("parallelism_config_dp_shard_size") or 0)
        keeps = fsdp.get("fsdp_reshard_after_forward", True) in (False, "false")
        return replace(strategy, kind="fsdp2", shard_size=shard_size, keeps_gathered=keeps)
    given = str(fsdp.get("fsdp_sharding_strategy", "FULL_SHARD")).upper()
    sharding = _FSDP1_STRATEGIES[int(given) - 1] if given.isdigit() else given
    if sharding not in _FSDP1_STRATEGIES:
        raise ValueError(f"fsdp_sharding_strategy {given} is not one of {', '.join(_FSDP1_STRATEGIES)}")
    return _with_fsdp1_sharding(strategy, sharding)


def _with_fsdp1_sharding(strategy: ParallelStrategy, sharding: str) -> ParallelStrategy:
    if sharding == "NO_SHARD":
        return replace(strategy, kind="ddp")
    shard_size = strategy.processes // strategy.machines if sharding.startswith("HYBRID") else 0
    keeps = sharding in ("SHARD_GRAD_OP", "HYBRID_SHARD_ZERO2")
    return replace(strategy, shard_size=shard_size, keeps_gathered=keeps)


def _with_deepspeed(strategy: ParallelStrategy, keys: Mapping[str, Any]) -> ParallelStrategy:
    file = keys.get("deepspeed_config_file")
    if file:
        return _with_zero(strategy, json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {}))
    offloads = {f"offload_{part}": {"device": keys.get(f"offload_{part}_device")} for part in ("param", "optimizer")}
    return _with_zero(strategy, {"stage": keys.get("zero_stage", 2), **offloads})


def _with_zero(strategy: ParallelStrategy, zero: Mapping[str, Any]) -> ParallelStrategy:
    """Add what a DeepSpeed configuration has under `zero_optimization`."""
    params, states = (
        str((zero.get(f"offload_{part}") or {}).get("device") or "none") != "none" for part in ("param", "optimizer")
    )
    stage = int(zero.get("stage", 0))
    if stage not in _ZERO_STAGES:
        raise ValueError(f"ZeRO stage {stage} does not exist")
    return replace(strategy, kind=_ZERO_STAGES[stage], offload=params, offload_optimizer=states)


def detect_strategy(accelerator: Any) -> ParallelStrategy:
    """Return the strategy that a live accelerator runs."""
    state = accelerator.state
    strategy = ParallelStrategy(
        "ddp" if accelerator.num_processes > 1 else "single",
        accelerator.num_processes,
        half_precision=str(accelerator.mixed_precision) != "no",
        on_cpu=accelerator.device.type == "cpu",
    )
    deepspeed, fsdp = getattr(state, "deepspeed_plugin", None), getattr(state, "fsdp_plugin", None)
    if deepspeed is not None:
        return _with_zero(strategy, deepspeed.deepspeed_config.get("zero_optimization", {}))
    if fsdp is None:
        return strategy
    from torch.distributed.fsdp import CPUOffloadPolicy  # FSDP2's; FSDP1 has one object with a flag

    offload = isinstance(fsdp.cpu_offload, CPUOffloadPolicy) or getattr(fsdp.cpu_offload, "offload_params", False)
    strategy = replace(strategy, kind="fsdp1", offload=offload, offload_optimizer=offload)
    if fsdp.fsdp_version == 2:
        parallelism = getattr(accelerator, "parallelism_config", None)
        shard_size = parallelism.dp_shard_size if parallelism else 0
        return replace(strategy, kind="fsdp2", shard_size=shard_size, keeps_gathered=not fsdp.reshard_after_forward)
    return _with_fsdp1_sharding(strategy, (fsdp.sharding_strategy or fsdp.reshard_after_forward).name)
