"""The parts of a model that takes more than text."""

from __future__ import annotations

from typing import Any


def takes_text_alone(config: Any) -> bool:
    """Whether a configuration is that of a language model, with no other model inside.

    Seam: `get_text_config()` gives the configuration itself then.
    """
    return config.get_text_config() is config


def outside_language_model(model: Any) -> dict[str, Any]:
    """The largest modules that hold no part of the language model, such as vision tower and projector, by name.

    Seam: `get_decoder()` is the language model without its output layer.
    """
    if takes_text_alone(model.config):
        return {}
    language, output = model.get_decoder(), model.get_output_embeddings()
    inside = {id(language), id(output)}

    def largest(module: Any, name: str) -> dict[str, Any]:
        if id(module) in inside:
            return {}
        if not any(id(part) in inside for part in module.modules()):
            return {name.removeprefix("."): module}
        found: dict[str, Any] = {}
        for key, child in module.named_children():
            found |= largest(child, f"{name}.{key}")
        return found

    return largest(model, "")
