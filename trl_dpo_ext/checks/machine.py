"""What a run asks of its machine: a precision, trackers to report to, a folder to write to, a login, and memory."""

from __future__ import annotations

import difflib
import os
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from transformers import training_args

from .. import _trl


def precision_problems(args: Any) -> list[str]:
    """Return why the machine cannot run in bfloat16, if the options ask for that.

    Args:
        args: training arguments, before their own `__post_init__`: there, `bf16` of None stands for TRL's default.
    """
    default = args.bf16 is None and not args.fp16
    asked = [name for name in ("bf16", "bf16_full_eval") if getattr(args, name)] or (["bf16"] if default else [])
    found = training_args.is_torch_bf16_gpu_available, training_args.is_torch_xla_available
    if not asked or args.use_cpu or any(is_available() for is_available in found):
        return []
    names = "bf16 is on by default and" if default else f"{' and '.join(f'{name}=True' for name in asked)}"
    has_gpu = torch.cuda.is_available()
    why = "the GPU of this machine does not support (Ampere or newer does)" if has_gpu else "this machine has no GPU"
    other = "fp16=True, or bf16=False" if has_gpu else "use_cpu=True to run on the CPU, or bf16=False"
    link = ", which" if has_gpu else ", but"
    return [f"{names} needs a GPU with bfloat16{link} {why}. Set {other}."]


def machine_problems(args: Any) -> list[str]:
    """Return which trackers are missing, why the output folder cannot be written, and why nothing can be pushed.

    Args:
        args: training arguments.
    """
    problems = [problem for name in args.report_to for problem in _tracker_problems(name)]
    if args.should_save and args.output_dir:
        problems += folder_problems("output_dir", args.output_dir)
    if args.push_to_hub and args.process_index == 0 and not (args.hub_token or huggingface_hub.get_token()):
        problems.append(
            "push_to_hub=True uploads the model, and nobody is logged in on this machine. Run `hf auth login`, set "
            "HF_TOKEN, or pass hub_token."
        )
    return problems


def _tracker_problems(name: str) -> list[str]:
    known = _trl.trackers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(known)}, all, none."
        return [f"report_to has an unknown tracker {name!r}. {hint}"]
    if known[name]:
        return []
    return [f"report_to names {name}, which is not installed. Install it, or set report_to to none."]


def folder_problems(option: str, folder: str) -> list[str]:
    """Return why a folder cannot be created or written; nothing is left behind.

    Args:
        option: that names the folder.
        folder: its path.
    """
    path = Path(folder).expanduser()
    existing = next(parent for parent in (path, *path.absolute().parents) if os.path.lexists(parent))
    if not existing.is_dir():
        what = "is a file" if existing == path else f"is below {existing}, which is a file"
        return [f"{option} {folder} {what}. Choose another folder."]
    try:
        with tempfile.TemporaryDirectory(dir=existing):
            return []
    except OSError as error:
        return [f"{option} {folder} cannot be written: {error.strerror}. Choose another folder."]


_OUT_OF_MEMORY = (
    "out of memory",  # CUDA error, Triton Error [CUDA], HIP, XPU, MPS backend
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",  # also raised for shapes that are too large
    "can't allocate memory",  # DefaultCPUAllocator
    "PT_DEVMEM Allocation failed",  # HPU
)


def is_out_of_memory(error: Exception) -> bool:
    """Return True if a smaller batch may avoid this error."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return any(words.lower() in text for words in _OUT_OF_MEMORY)
