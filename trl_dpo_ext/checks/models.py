"""Which models a run can train, or take as its reference: told from configuration files, or from a model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from .. import _trl
from ..errors import InputError
from .configuration import named_class, read_configuration

NO_MODEL = "No model: set --model_name_or_path (a hub id or a folder), or pass a model."
_CONFIG, _ADAPTER = "config.json", "adapter_config.json"


def policy_config(args: Any, model: Any) -> Any:
    """The configuration of a policy that can be trained; None for an adapter's folder.

    Args:
        args: the run's configuration.
        model: a model, or its name.

    Raises:
        InputError: it cannot be found, or is no causal language model.
    """
    if model is None:
        raise InputError(NO_MODEL)
    config = _read_config(args, model) if isinstance(model, str) else _config_of(model, "model")
    problem = None
    if config is not None:
        problem = _kind_problem(model, config) if isinstance(model, str) else _instance_problem(model, "The model")
    if problem:
        raise InputError(problem)
    return config


def reference_problems(ref_model: Any) -> list[str]:
    """Return what is wrong with `ref_model`, the reference as the trainer was given it."""
    if isinstance(ref_model, str):
        return [
            f"ref_model must be a model, and is the name {ref_model!r}. Load it, or set ref_model_name_or_path in the "
            "configuration."
        ]
    if ref_model is not None:
        try:
            _config_of(ref_model, "ref_model")
        except InputError as error:
            return error.problems
        problem = _instance_problem(ref_model, "ref_model")
        return [problem] if problem else []
    return []


def _config_of(model: Any, argument: str) -> Any:
    config = getattr(model, "config", None)
    if not isinstance(config, transformers.PreTrainedConfig):
        hint = " Pass str(path)." if isinstance(model, Path) else ""
        kinds = "a name or a transformers model" if argument == "model" else "a transformers model"
        raise InputError(f"{argument} must be {kinds}; got {type(model).__name__}.{hint}")
    return config


def _is_missing(name: str) -> bool:
    """Whether a name can only be a folder, and that folder does not exist."""
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return looks_like_path and not Path(name).exists()


def _read_config(args: Any, name: str) -> Any:
    path = Path(name)
    if _is_missing(name):
        full = path.expanduser()
        hint = f" Write the full path, {full}." if name.startswith("~") and full.exists() else ""
        raise InputError(f"The model {name} does not exist: no such folder (--model_name_or_path).{hint}")
    if path.is_file():
        raise InputError(f"The model {name} is a file (--model_name_or_path). Pass the folder that holds {_CONFIG}.")
    if path.is_dir() and not (path / _CONFIG).is_file():
        if (path / _ADAPTER).is_file():
            return None
        inside = [file for known in (_CONFIG, _ADAPTER) for file in path.glob(f"*/{known}")]
        hint = f" Did you mean {max(inside, key=lambda file: file.stat().st_mtime).parent}?" if inside else ""
        raise InputError(f"The model folder {name} has no {_CONFIG} (--model_name_or_path).{hint}")
    load = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    try:
        return read_configuration(name, load, load.get("revision"))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"The model {name} could not be read (--model_name_or_path): {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """The first line of an error's message, with a full stop."""
    return str(error).strip().splitlines()[0].rstrip(".:") + "." if str(error).strip() else f"{type(error).__name__}."


def _kind_problem(name: str, config: Any) -> str | None:
    """Return why TRL cannot train the class that a configuration names."""
    names = config.architectures or []
    if not names:
        return (
            f"{_CONFIG} of {name} names no class under architectures, by which TRL loads the model. Write it with "
            "save_pretrained of a ...ForCausalLM model."
        )
    return _class_problem(f"{name} is a {names[0]},", config, named_class(config))


def _instance_problem(model: Any, what: str) -> str | None:
    plain = _trl.without_adapter(model)
    kind: Any = type(plain)
    # A class that comes with a checkpoint may have a head and not say that it generates.
    judged = kind.__module__.startswith("transformers.") or plain.get_output_embeddings() is None
    return _class_problem(f"{what} is a {kind.__name__},", plain.config, kind if judged else None)


def _class_problem(subject: str, config: Any, kind: Any) -> str | None:
    """Return why a class is no causal language model; a class that transformers does not have is not judged."""
    needed = "Use a causal language model (...ForCausalLM)."
    if config.is_encoder_decoder:
        return f"{subject} an encoder-decoder model; TRL's DPO needs a decoder. {needed}"
    if kind is not None and not getattr(kind, "can_generate", lambda: True)():
        return f"{subject} which has no language model head. {needed}"
    return None


def embedding_rows(model: Any, config: Any) -> int | None:
    """How many tokens a model has embeddings for; None if its configuration does not say.

    Args:
        model: a model, or its name.
        config: its configuration.
    """
    if not isinstance(model, str):
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
        if isinstance(rows, int):
            return rows
    return getattr(config.get_text_config(), "vocab_size", None)
