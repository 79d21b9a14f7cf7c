"""Read options that hold a mapping, however they were given: as a mapping, as JSON text, or as the name of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._trl import typed_values

IN_FILES = ("accelerator_config", "fsdp_config", "deepspeed")
"""Options that also take the name of a JSON file, which transformers reads."""
MAPPINGS = (
    *("model_init_kwargs", "lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"),
    *("liger_kernel_config", "parallelism_config"),
    *IN_FILES,
)
"""Options of transformers and TRL that hold a mapping."""
_TEXTS = ("loss_type", "dataset_columns", "watch_thresholds", "stop_on", "ignore_alarms")
_TEXTS += ("optim_target_modules", "optim_args")
"""Options that are plain text or a list of it, and may be given as JSON text too."""
_PATTERN = "optim_target_modules"
"""May be a regular expression, which can begin as a list in JSON does."""


def read_mappings(args: Any) -> list[str]:
    """Replace JSON text in options by what it says; return what is wrong with them.

    An option with a problem is set to None, so that everything else can be checked.

    Args:
        args: training arguments, before their own `__post_init__`.
    """
    problems = []
    for name in (*MAPPINGS, *_TEXTS):
        value, problem = _read(name, getattr(args, name, None))
        if problem:
            problems.append(problem)
            value = ["sigmoid"] if name == "loss_type" else None
        if value is not getattr(args, name, None):
            setattr(args, name, value)
    return problems


def _read(name: str, value: Any) -> tuple[Any, str | None]:
    text = value[0] if name in _TEXTS and isinstance(value, list) and len(value) == 1 else value
    if isinstance(text, str) and text.lstrip().startswith("{" if name in MAPPINGS else ("{", "[")):
        try:
            value = json.loads(text)
        except ValueError as error:
            if name == _PATTERN:
                return value, None
            return None, f"{name} is not valid JSON: {error}; got {text!r}. {_how(name)}"
        value = typed_values(value) if name in MAPPINGS else value
    elif name in MAPPINGS and isinstance(value, str):
        return _plain_text(name, value)
    if name == "optim_args" and isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items()), None  # as transformers takes it
    if name == "parallelism_config" and isinstance(value, Mapping):
        return _parallelism(value)
    if name in MAPPINGS and isinstance(value, (list, tuple, bool, int, float)):
        return None, f"{name} must be a mapping; got {value!r}. {_how(name)}"
    return value, None


def _plain_text(name: str, text: str) -> tuple[str | None, str | None]:
    if text.strip().lower() in ("none", "null", ""):
        return None, None
    if name not in IN_FILES:
        return None, f"{name} must be a mapping; got the text {text!r}. {_how(name)}"
    if name != "deepspeed" and not Path(text).is_file():  # which may be encoded
        return None, f"{name} must be a mapping or a JSON file; {text!r} is neither. {_how(name)}"
    if Path(text).is_file():
        try:
            found = json.loads(Path(text).read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            return None, f"{name}: the file {text} is not valid JSON: {error}."
        if not isinstance(found, Mapping):
            return None, f"{name}: the file {text} must hold a JSON object; it holds a {type(found).__name__}."
    return text, None


def _parallelism(values: Mapping[str, Any]) -> tuple[Any, str | None]:
    from accelerate import ParallelismConfig

    try:
        return ParallelismConfig(**values), None
    except (TypeError, ValueError) as error:
        return None, f"parallelism_config is not what accelerate.ParallelismConfig takes: {error}."


def _how(name: str) -> str:
    return f"""Write --{name} '{{"key": "value"}}' on the command line, or a mapping in YAML and Python."""
