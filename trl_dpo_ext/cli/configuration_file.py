"""Reads the YAML file of `--config`, in which every key may stand once."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..recipe_registry import nearest_recipe


def read_keys(file: Path) -> dict[str, Any]:
    """Return the keys and values of a configuration file.

    Raises:
        InputError: there is no such file, it is not YAML, or it holds something else than a mapping, or a key twice.
    """
    if not file.is_file():
        near = nearest_recipe(str(file))
        hint = f" Did you mean {near}?" if near else ""
        raise InputError(f"--config {file}: no such file or recipe.{hint} Run `trl-dpo-ext recipes` to list recipes.")
    try:
        loader = _Loader(file.read_text(encoding="utf-8"))
        keys = loader.get_single_data()
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {error} Write one `key: value` in each line.") from None
    if not isinstance(keys, dict):
        raise InputError(f"{file} must hold a YAML mapping of keys to values.")
    if loader.repeated:
        raise InputError(*(f"{file} sets {text}, and only the last would count. Keep one." for text in loader.repeated))
    return keys


def contradictions(args: Any, model: Any, given: Collection[str]) -> list[str]:
    """Return which keywords of `model_init_kwargs` an option of the model contradicts; they would win in silence.

    Args:
        args: a `DPOExtConfig`.
        model: TRL's `ModelConfig`; None where it could not be parsed.
        given: names of the options that were set.
    """
    load = args.model_init_kwargs or {}
    options = {"dtype": "dtype", "attn_implementation": "attn_implementation", "revision": "model_revision"}
    return [
        f"{option}={getattr(model, option)!r} and {name!r}: {load[name]!r} in model_init_kwargs contradict each other. "
        "Remove one of them."
        for name, option in options.items()
        if model is not None and option in given and name in load and load[name] != getattr(model, option)
    ]


class _Loader(yaml.SafeLoader):
    """Notes the keys that stand twice in one mapping, of which YAML libraries keep the last without a word."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """See `SafeLoader.construct_mapping`. Keys that a merge (`<<`) adds may be set again."""
        lines: dict[str, list[int]] = {}
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                lines.setdefault(str(key.value), []).append(key.start_mark.line + 1)
        self.repeated += [
            f"{key} {len(at)} times (lines {', '.join(map(str, at))})" for key, at in lines.items() if len(at) > 1
        ]
        return super().construct_mapping(node, deep)
