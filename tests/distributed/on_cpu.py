"""Runs one process of a launched job on the CPU as accelerate would run it on a GPU, and records what really ran.

python on_cpu.py FOLDER module:function SETTINGS    calls function(folder, settings), which may return more to record
python on_cpu.py FOLDER -m MODULE ARGUMENTS...      runs a module as `accelerate launch -m` does
python on_cpu.py FOLDER script.py ARGUMENTS...      runs a script

Without a GPU accelerate starts unrelated processes, or turns FSDP into plain data parallelism; here it is made to report
GPUs that talk gloo, in this process only, so that recipe files run unchanged.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
# FSDP1 loads empty weights on all ranks but the first otherwise, and fills them through a GPU.
FSDP1_ON_CPU = {"FSDP_SYNC_MODULE_STATES": "false", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}
TRAINERS: list[Any] = []


def stand_in_for_gpus() -> None:
    fsdp1 = os.environ.get("ACCELERATE_USE_FSDP") == "true" and os.environ.get("FSDP_VERSION") == "1"
    if fsdp1:
        os.environ.update(FSDP1_ON_CPU)
    import accelerate.state
    import torch
    import transformers.training_args
    from torch.distributed import fsdp

    def prepare_backend(self: Any, cpu: bool = False, sagemaker_dp: Any = False, backend: Any = None) -> Any:
        launched = int(os.environ.get("LOCAL_RANK", -1)) != -1
        kinds = accelerate.state.DistributedType
        return ("gloo", kinds.MULTI_GPU) if launched else (None, kinds.NO)

    accelerate.state.PartialState._prepare_backend = prepare_backend
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    if fsdp1:  # crashes when it offloads from the CPU to the CPU, which accelerate asks for at every save
        never = property(lambda _: False, lambda _, value: None)
        fsdp.StateDictConfig.offload_to_cpu = never  # pyright: ignore[reportAttributeAccessIssue]
        copy_gathered_states()
    torch.Tensor.pin_memory = lambda self, *_, **__: self  # what is offloaded from the CPU is in its memory already


def copy_gathered_states() -> None:
    """FSDP1 gathers one kind of optimizer states after another in one buffer; offloading from a GPU takes them out of it."""
    from torch.distributed.fsdp import _optim_utils

    unflatten = _optim_utils._unflatten_orig_param_states

    def unflatten_and_copy(info: Any, output_states: dict[str, dict[str, Any]], state_name: str, *rest: Any) -> None:
        unflatten(info, output_states, state_name, *rest)
        for states in output_states.values():
            if state_name in states:
                states[state_name] = states[state_name].clone()

    _optim_utils._unflatten_orig_param_states = unflatten_and_copy


def no_repacking() -> None:
    """Keep 4-bit layers as they are: on CPUs with AVX512-BF16 an evaluation forward repacks them in place, wrongly."""
    try:
        import bitsandbytes.nn.modules as layers
    except ImportError:
        return
    layers.has_avx512bf16 = lambda: False


def remember_trainers() -> None:
    from transformers import Trainer

    construct = Trainer.__init__

    def constructing(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        TRAINERS.append(self)

    Trainer.__init__ = constructing
    Trainer.end = lambda self: None  # takes the process group down, which recording needs and which gloo may hang in


def engine_of(trainer: Any) -> str:
    """The engine by what wraps the model, whatever any configuration says."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    wrapped = trainer.model_wrapped
    if isinstance(wrapped, FSDPModule):
        return "fsdp2"
    if isinstance(wrapped, FullyShardedDataParallel):
        return "fsdp1"
    if isinstance(wrapped, DistributedDataParallel):
        return "ddp"
    if hasattr(wrapped, "zero_optimization_stage"):
        return f"zero{wrapped.zero_optimization_stage()}"
    return "single"


def record(folder: Path, more: dict[str, Any] | None) -> None:
    import torch

    rank = int(os.environ.get("RANK", 0))
    kept = dict(more or {})
    if TRAINERS:
        from trl_dpo_ext.estimate.strategy import detect_strategy

        trainer = TRAINERS[-1]
        kept = {
            "engine": engine_of(trainer),
            "distributed_type": trainer.accelerator.distributed_type.value,
            "processes": trainer.accelerator.num_processes,
            "wrapped": type(trainer.model_wrapped).__name__,
            "estimated_as": dataclasses.asdict(detect_strategy(trainer.accelerator)),
            "logs": trainer.state.log_history,
            **kept,
        }
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all ranks take part
        if rank == 0:
            torch.save({k: v.detach().clone().contiguous() for k, v in weights.items()}, folder / "weights.pt")
    file = folder / f"record-{rank}.json"
    file.with_suffix(".part").write_text(json.dumps(kept))
    file.with_suffix(".part").rename(file)


def run(folder: Path, target: list[str]) -> dict[str, Any] | None:
    name, *arguments = target
    if name == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif name.endswith(".py"):
        sys.argv = target
        runpy.run_path(name, run_name="__main__")
    else:
        module, function = name.split(":")
        return getattr(importlib.import_module(module), function)(folder, json.loads(arguments[0]))
    return None


def main() -> int:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # torchrun's workers outlive a killed launcher
    folder, target = Path(sys.argv[1]), sys.argv[2:]
    try:
        if not os.environ.get("WITHOUT_STAND_IN"):  # a test of what happens where there are no GPUs
            stand_in_for_gpus()
        no_repacking()
        remember_trainers()
        try:
            more = run(folder, target)
        except SystemExit as exit:
            if exit.code:
                raise
            more = None
        record(folder, more)
        if TRAINERS:
            TRAINERS[-1].accelerator.wait_for_everyone()
        return 0
    except BaseException:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    status = main()
    # Taken down in order, a gloo group now and then waits for ever on a thread of its own; everything is written by now.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
