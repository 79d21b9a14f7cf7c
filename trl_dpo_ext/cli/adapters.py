"""Adapters in the flags: a start from a saved one, and flags of one that is not asked for."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from .._trl import adapter_kind
from ..errors import InputError
from ..policy.adapter import SavedAdapter


def saved_adapter(args: Any, model: Any) -> SavedAdapter | None:
    """The adapter that --model_name_or_path stands for; None if it stands for a model.

    Args:
        args: a `DPOExtConfig`.
        model: TRL's `ModelConfig`, as parsed from the flags.
    """
    load = {"revision": model.model_revision, **(args.model_init_kwargs or {})}
    return SavedAdapter.find(model.model_name_or_path, load)


def as_new_adapter(args: Any, model: Any, peft_config: Any) -> tuple[Any, Any]:
    """The flags and the PEFT configuration of the run that trains as much on the same base, for the estimate.

    Raises:
        InputError: the flags ask for a second adapter.
    """
    adapter = saved_adapter(args, model)
    if adapter is None:
        return model, peft_config
    model = replace(model, model_name_or_path=adapter.base or None, model_revision=adapter.base_revision or "main")
    if args.merge_adapter:
        return model, peft_config
    if peft_config is not None:
        raise InputError(
            f"{adapter.name} is an adapter, and --use_peft asks for a new one. Remove --use_peft to train this adapter "
            "further, or set --merge_adapter to train the new one on top of the merged weights."
        )
    adapter.config.inference_mode = False
    dropout = getattr(adapter.config, "lora_dropout", 0.0)
    return replace(model, use_peft=True, lora_dropout=dropout), adapter.config


def describe_policy(trainer: Any, model: Any) -> str | None:
    """Which adapter trains, and on what; None if no adapter is involved.

    Args:
        trainer: the constructed trainer.
        model: the flags of the model.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model)
    adapter = saved_adapter(trainer.args, model)
    base = adapter.base if adapter is not None else model.model_name_or_path
    if adapter is not None and trainer.args.merge_adapter:
        base = f"{base} with the adapter {adapter.name} merged"
    configs = getattr(policy, "peft_config", None)
    if not configs:
        return f"all weights of {base}" if adapter is not None else None
    kind = adapter_kind(configs[policy.active_adapter])
    if adapter is None or trainer.args.merge_adapter:
        return f"a new {kind} adapter on {base}"
    return f"the {kind} adapter {adapter.name}, trained further, on {base}"


def unused_adapter_flags(model: Any) -> list[str]:
    """Return what is wrong with flags of an adapter without --use_peft: all weights would be trained, in silence."""
    if model is None or model.use_peft:
        return []
    flags = [f for f in fields(model) if f.name.startswith("lora_") or f.name in ("use_rslora", "use_dora")]
    defaults = type(model)()
    given = [f"--{f.name}" for f in flags if getattr(model, f.name) != getattr(defaults, f.name)]
    if not given:
        return []
    return [
        f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect without --use_peft: all weights would be "
        "trained. Add --use_peft, or remove the others."
    ]
