"""LoRA's keys of other tools."""

from __future__ import annotations

from typing import Any

from .draft import Draft

ALL_LINEAR = "all-linear"


def put_lora(draft: Draft, **settings: Any) -> None:
    """Turn LoRA on, with our keys; settings that are None are left out."""
    draft.put("use_peft", True)
    for key, value in settings.items():
        if value is not None:
            draft.put(key, value)


def modules(value: Any) -> list[str] | None:
    """Names of modules, given as a list, as text with commas, or as a word for all linear layers."""
    if value is None or value == []:
        return None
    names = value.split(",") if isinstance(value, str) else value
    names = [str(name).strip() for name in names]
    return [ALL_LINEAR] if set(names) & {"all", ALL_LINEAR} else names
