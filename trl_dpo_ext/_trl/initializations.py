"""Initializations of LoRA that need something done before: data, gradients, or a package."""

from __future__ import annotations

from typing import Any

import torch

_MARKS = {"corda": "eigens", "lora_ga": "_peft_loraga_grad"}
"""Seam: what peft's preparation leaves on the layers of the base, by initialization."""
_PREPARED = {
    "corda": "Call peft.tuners.lora.corda.preprocess_corda(model, peft_config, run_model=...) on the model first, and "
    "pass that model with the same peft_config",
    "lora_ga": "Call peft.tuners.lora.loraga.preprocess_loraga(model, peft_config, train_step) on the model first, and "
    "pass that model with the same peft_config",
    "eva": "Make the adapter with peft.get_peft_model(model, peft_config), fill it with "
    "peft.initialize_lora_eva_weights(model, dataloader), and pass that model without peft_config",
}


def initialization_problems(model: Any, peft_config: Any) -> list[str]:
    """Return why a new adapter would not get the initialization that its configuration names.

    Seam: without data, peft gives `eva` and `lora_ga` the default initialization in silence, and raises for `corda`
    once the model is loaded. `loftq` quantizes on a GPU.

    Args:
        model: the policy, or its name.
        peft_config: of the adapter that is to be made; None for none.
    """
    kind = getattr(peft_config, "init_lora_weights", None)
    if not isinstance(kind, str):
        return []
    kind = kind.lower()
    if kind == "loftq":
        return _loftq_problems()
    if kind not in _PREPARED or _is_prepared(model, kind):
        return []
    return [
        f"init_lora_weights={kind!r} is computed from data, which the trainer does not do: the adapter would start at "
        f"random, or not at all. {_PREPARED[kind]}; or set init_lora_weights=True."
    ]


def initialization_warnings(peft_config: Any) -> list[str]:
    """Return a warning if a new adapter starts at random, and therefore not as the reference, which is the base."""
    if getattr(peft_config, "init_lora_weights", None) is not False:
        return []
    return [
        "init_lora_weights=False starts the adapter at random: the policy does not start as its reference, the base. "
        "Set init_lora_weights=True; or make the adapter with peft.get_peft_model and pass that model, whose frozen "
        "copy is then the reference."
    ]


def _loftq_problems() -> list[str]:
    if torch.accelerator.current_accelerator() is not None:
        return []
    return ["init_lora_weights='loftq' is computed on a GPU, and this machine has none. Set init_lora_weights=True."]


def _is_prepared(model: Any, kind: str) -> bool:
    mark = _MARKS.get(kind)
    return mark is not None and not isinstance(model, str) and any(hasattr(m, mark) for m in model.modules())
