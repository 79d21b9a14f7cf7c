"""What splits a model over processes: read from an accelerate configuration, or from a running accelerator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ..errors import InputError

Kind = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp1", "fsdp2"]
_STAGES: dict[int, Kind] = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
# FSDP1's sharding strategies, which accelerate takes by name or by number from 1.
_STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")


@dataclass(frozen=True, slots=True)
class ParallelStrategy:
    """How a run is spread over GPUs."""

    kind: Kind
    processes: int
    machines: int = 1
    shards: int = 0
    """Over how many processes a sharding engine splits; 0 means all of them."""
    half: bool = True
    """Whether it computes in bf16 or fp16 (`mixed_precision`)."""
    offload: bool = False
    """Whether parameters and optimizer states wait in host memory."""
    offload_optimizer: bool = False
    on_cpu: bool = False
    keeps_gathered: bool = False
    """Whether FSDP's layers, once gathered for the forward pass, stay so until the backward pass."""

    @property
    def splits(self) -> int:
        """Over how many processes a sharded tensor is split."""
        return self.shards or self.processes

    @property
    def is_fsdp(self) -> bool:
        """Whether it is either version of FSDP."""
        return self.kind in ("fsdp1", "fsdp2")

    @property
    def shards_weights(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return self.is_fsdp or self.kind == "zero3"

    def over(self, processes: int) -> ParallelStrategy:
        """The same engine over another number of GPUs; machines of eight."""
        if self.kind == "single":
            return self
        machines = max(1, -(-processes // 8)) if processes != self.processes else self.machines
        alone = self.kind == "ddp" and processes == 1
        return replace(self, kind="single" if alone else self.kind, processes=processes, machines=machines, shards=0)

    def describe(self) -> str:
        """Kind and processes, in a few words."""
        words = {"single": "one process", "ddp": "DDP", "fsdp1": "FSDP1", "fsdp2": "FSDP2"}
        name = words.get(self.kind, f"ZeRO-{self.kind[-1]}")
        name += " with offload" if self.offload or self.offload_optimizer else ""
        if self.kind == "single":
            return name
        return f"{name} over {self.processes} GPUs" + (f" on {self.machines} machines" if self.machines > 1 else "")


def read_strategy(file: str | Path) -> ParallelStrategy:
    """The engine that an accelerate configuration describes.

    Raises:
        InputError: the file is not there, not a mapping, or of a kind that is not known here.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"--accelerate_config {file} is neither a file nor the name of a shipped one.")
    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(keys, dict):
        raise InputError(f"{file} must hold a YAML mapping of keys to values.")
    try:
        return _engine(keys)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{file} is not a configuration that accelerate takes: {error!r}.") from None


def _engine(keys: Mapping[str, Any]) -> ParallelStrategy:
    engine = ParallelStrategy(
        "single",
        processes=int(keys.get("num_processes") or 1),
        machines=int(keys.get("num_machines") or 1),
        half=str(keys.get("mixed_precision", "no")).lower() not in ("no", "false"),
        on_cpu=bool(keys.get("use_cpu")),
    )
    kind = str(keys.get("distributed_type", "NO")).upper()
    if kind == "FSDP":
        return _fsdp(engine, keys.get("fsdp_config") or {}, keys.get("parallelism_config") or {})
    if kind == "DEEPSPEED":
        return _deepspeed(engine, keys.get("deepspeed_config") or {})
    if kind in ("NO", "FALSE") or engine.processes == 1:
        return replace(engine, processes=1, machines=1)
    if kind.startswith("MULTI_"):
        return replace(engine, kind="ddp")
    raise ValueError(f"distributed_type {kind} is not one that this package knows")


def _fsdp(engine: ParallelStrategy, fsdp: Mapping[str, Any], parallelism: Mapping[str, Any]) -> ParallelStrategy:
    offload = bool(fsdp.get("fsdp_offload_params"))
    engine = replace(engine, kind="fsdp1", offload=offload, offload_optimizer=offload)
    if int(fsdp.get("fsdp_version", 1)) == 2:
        shards = int(parallelism.get("parallelism_config_dp_shard_size") or 0)
        keeps = fsdp.get("fsdp_reshard_after_forward", True) in (False, "false")
        return replace(engine, kind="fsdp2", shards=shards, keeps_gathered=keeps)
    given = str(fsdp.get("fsdp_sharding_strategy", "FULL_SHARD")).upper()
    strategy = _STRATEGIES[int(given) - 1] if given.isdigit() else given
    if strategy not in _STRATEGIES:
        raise ValueError(f"fsdp_sharding_strategy {given} is none of {', '.join(_STRATEGIES)}")
    return _with_strategy(engine, strategy)


def _with_strategy(engine: ParallelStrategy, strategy: str) -> ParallelStrategy:
    if strategy == "NO_SHARD":
        return replace(engine, kind="ddp")
    shards = engine.processes // engine.machines if strategy.startswith("HYBRID") else 0
    return replace(engine, shards=shards, keeps_gathered=strategy in ("SHARD_GRAD_OP", "HYBRID_SHARD_ZERO2"))


def _deepspeed(engine: ParallelStrategy, keys: Mapping[str, Any]) -> ParallelStrategy:
    own = keys.get("deepspeed_config_file")
    if own:
        return _with_zero(engine, json.loads(Path(own).read_text(encoding="utf-8")).get("zero_optimization", {}))
    offloads = {f"offload_{part}": {"device": keys.get(f"offload_{part}_device")} for part in ("param", "optimizer")}
    return _with_zero(engine, {"stage": keys.get("zero_stage", 2), **offloads})


def _with_zero(engine: ParallelStrategy, zero: Mapping[str, Any]) -> ParallelStrategy:
    """With what DeepSpeed's own configuration has under `zero_optimization`."""
    params, states = (
        str((zero.get(f"offload_{part}") or {}).get("device") or "none") != "none" for part in ("param", "optimizer")
    )
    stage = int(zero.get("stage", 0))
    if stage not in _STAGES:
        raise ValueError(f"there is no ZeRO stage {stage}")
    return replace(engine, kind=_STAGES[stage], offload=params, offload_optimizer=states)


def detect_strategy(accelerator: Any) -> ParallelStrategy:
    """The engine that a live accelerator runs under."""
    state = accelerator.state
    engine = ParallelStrategy(
        "ddp" if accelerator.num_processes > 1 else "single",
        accelerator.num_processes,
        half=str(accelerator.mixed_precision) != "no",
        on_cpu=accelerator.device.type == "cpu",
    )
    deepspeed, fsdp = getattr(state, "deepspeed_plugin", None), getattr(state, "fsdp_plugin", None)
    if deepspeed is not None:
        return _with_zero(engine, deepspeed.deepspeed_config.get("zero_optimization", {}))
    if fsdp is None:
        return engine
    from torch.distributed.fsdp import CPUOffloadPolicy  # of FSDP2; FSDP1 has one object with a flag

    offload = isinstance(fsdp.cpu_offload, CPUOffloadPolicy) or getattr(fsdp.cpu_offload, "offload_params", False)
    engine = replace(engine, kind="fsdp1", offload=offload, offload_optimizer=offload)
    if fsdp.fsdp_version == 2:
        parallelism = getattr(accelerator, "parallelism_config", None)
        shards = parallelism.dp_shard_size if parallelism else 0
        return replace(engine, kind="fsdp2", shards=shards, keeps_gathered=not fsdp.reshard_after_forward)
    return _with_strategy(engine, (fsdp.sharding_strategy or fsdp.reshard_after_forward).name)
