"""What splits a model over processes: read from an accelerate configuration, or from a running accelerator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ..errors import InputError

Kind = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp1", "fsdp2"]


@dataclass(frozen=True, slots=True)
class Engine:
    """How a run is spread over GPUs."""

    kind: Kind
    processes: int
    machines: int = 1
    shards: int = 0
    """Over how many processes a sharding engine splits; 0 means all of them."""
    half: bool = True
    """Whether it computes in bf16 or fp16 (`mixed_precision`)."""
    offload: bool = False
    """Whether parameters and optimiser states wait in host memory."""
    offload_optimiser: bool = False
    on_cpu: bool = False

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

    def over(self, processes: int) -> Engine:
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
        name += " with offload" if self.offload or self.offload_optimiser else ""
        if self.kind == "single":
            return name
        return f"{name} over {self.processes} GPUs" + (f" on {self.machines} machines" if self.machines > 1 else "")


def read_engine(file: str | Path) -> Engine:
    """The engine that an accelerate configuration describes.

    Raises:
        InputError: the file is not there, not a mapping, or of a kind that is not known here.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError([f"--accelerate_config {file} is neither a file nor the name of a shipped one."])
    keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(keys, dict):
        raise InputError([f"{file} must hold a YAML mapping of keys to values."])
    on_cpu = bool(keys.get("use_cpu"))
    machines = int(keys.get("num_machines") or 1)
    processes = int(keys.get("num_processes") or 1)
    half = str(keys.get("mixed_precision", "no")).lower() not in ("no", "false")
    kind = str(keys.get("distributed_type", "NO")).upper()
    fsdp, deepspeed = keys.get("fsdp_config") or {}, keys.get("deepspeed_config") or {}
    if kind == "FSDP":
        version = int(fsdp.get("fsdp_version", 1))
        shards = int((keys.get("parallelism_config") or {}).get("parallelism_config_dp_shard_size") or 0)
        offload = bool(fsdp.get("fsdp_offload_params"))
        return Engine("fsdp2" if version == 2 else "fsdp1", processes, machines, shards, half, offload, offload, on_cpu)
    if kind == "DEEPSPEED":
        stage = int(deepspeed.get("zero_stage", 2))
        params, states = (str(deepspeed.get(f"offload_{what}_device", "none")) for what in ("param", "optimizer"))
        kinds: dict[int, Kind] = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
        return Engine(kinds[stage], processes, machines, 0, half, params != "none", states != "none", on_cpu)
    if kind in ("NO", "FALSE") or processes == 1:
        return Engine("single", 1, half=half, on_cpu=on_cpu)
    if kind.startswith("MULTI_"):
        return Engine("ddp", processes, machines, half=half, on_cpu=on_cpu)
    raise InputError([f"{file}: distributed_type {kind} is not one that this package knows."])


def running_engine(accelerator: Any) -> Engine:
    """The engine that a live accelerator runs under."""
    state = accelerator.state
    half = str(accelerator.mixed_precision) != "no"
    on_cpu = accelerator.device.type == "cpu"
    processes = accelerator.num_processes
    deepspeed, fsdp = getattr(state, "deepspeed_plugin", None), getattr(state, "fsdp_plugin", None)
    if deepspeed is not None:
        zero = deepspeed.deepspeed_config.get("zero_optimization", {})
        kinds: dict[int, Kind] = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
        params, states = (
            str((zero.get(f"offload_{part}") or {}).get("device", "none")) for part in ("param", "optimizer")
        )
        kind = kinds[deepspeed.zero_stage]
        return Engine(kind, processes, 1, 0, half, params != "none", states != "none", on_cpu)
    if fsdp is not None:
        offload = bool(getattr(fsdp.cpu_offload, "offload_params", fsdp.cpu_offload))
        return Engine("fsdp2" if fsdp.fsdp_version == 2 else "fsdp1", processes, 1, 0, half, offload, offload, on_cpu)
    return Engine("ddp" if processes > 1 else "single", processes, half=half, on_cpu=on_cpu)
