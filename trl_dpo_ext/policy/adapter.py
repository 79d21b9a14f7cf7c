"""A saved adapter: found by its name, and read without loading a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peft import PeftConfig
from transformers import AutoProcessor
from transformers.utils import find_adapter_config_file

from .._trl import adapter_kind, adapts_head
from ..checks.configuration import read_configuration
from ..errors import InputError

_PASSED = ("token", "cache_dir", "local_files_only", "subfolder")
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter in a folder or on the Hub, and the base that it was trained on."""

    name: str
    load: Mapping[str, Any]
    """The keywords that the base is loaded with."""
    config: Any
    """Its `PeftConfig`."""

    @classmethod
    def find(cls, name: Any, load: Mapping[str, Any]) -> SavedAdapter | None:
        """The adapter of that name; None if the name stands for a model, or for nothing.

        Args:
            name: a folder or a Hub id.
            load: the keywords that the model is loaded with.

        Raises:
            InputError: the adapter is not complete, or lies in a folder further down.
        """
        hub = {key: load[key] for key in ("revision", *_PASSED) if key in load}
        try:
            found = find_adapter_config_file(name, **hub) if isinstance(name, str) else None
        except (OSError, ValueError):  # not reachable: the model's loader says so
            found = None
        if found is None:
            _refuse_parent_folder(name)
            return None
        try:
            config = PeftConfig.from_pretrained(name, **hub)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{found} cannot be read as the configuration of an adapter: {error}. Save the "
                "adapter again with PEFT's save_pretrained."
            ) from error
        if Path(name).is_dir() and not any((Path(found).parent / file).is_file() for file in _WEIGHTS):
            raise InputError(
                f"{name} has the configuration of an adapter, but not its weights "
                f"({' or '.join(_WEIGHTS)}). Copy them into the folder."
            )
        return cls(name, load, config)

    @property
    def is_beside_model(self) -> bool:
        """Whether the folder holds the base itself, so that transformers loads both by its name."""
        names = (
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        )
        folder = Path(self.name)
        return (folder / "config.json").is_file() and any((folder / name).is_file() for name in names)

    @property
    def base(self) -> str:
        """The name of the base."""
        return self.name if self.is_beside_model else self.config.base_model_name_or_path or ""

    @property
    def base_revision(self) -> str | None:
        """The base's revision: that of the adapter's configuration; for a local adapter, the one that is asked for."""
        asked = self.load.get("revision")
        local = Path(self.name).is_dir() and asked != "main"
        return (asked if local else None) or getattr(self.config, "revision", None)

    @property
    def base_load(self) -> dict[str, Any]:
        """The keywords to load the base with."""
        return {
            key: value for key, value in {**self.load, "revision": self.base_revision}.items() if key != "subfolder"
        }

    @property
    def hub(self) -> dict[str, Any]:
        """The keywords to load the adapter with."""
        return {key: self.load[key] for key in ("revision", *_PASSED) if self.load.get(key) is not None}

    @property
    def kind(self) -> str:
        """The method, such as LORA."""
        return adapter_kind(self.config)

    @cached_property
    def base_config(self) -> Any:
        """The base's configuration.

        Raises:
            InputError: the base is not named, or not found.
        """
        if not self.base:
            raise InputError(
                f"{self.name} is an adapter, and its adapter_config.json does not name its base model: set "
                "base_model_name_or_path there, or pass PeftModel.from_pretrained(base, adapter, is_trainable=True)."
            )
        try:
            return read_configuration(self.base, self.base_load, self.base_revision)
        except (OSError, ValueError) as error:
            if find_adapter_config_file(self.base) if Path(self.base).is_dir() else None:
                reason = "which is an adapter itself. Merge that one into its base, save the result, and name it there."
            else:
                reason = f"which could not be found: {str(error).splitlines()[0]} Set base_model_name_or_path there."
            raise InputError(
                f"{self.name} is an adapter, and its adapter_config.json names the base {self.base}, {reason}"
            ) from error

    @cached_property
    def processing_class(self) -> Any:
        """The tokenizer or processor that was saved with the adapter; None if the base's is to be used."""
        try:
            found = AutoProcessor.from_pretrained(
                self.name, trust_remote_code=bool(self.load.get("trust_remote_code")), **self.hub
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found

    @property
    def vocabulary(self) -> int:
        """The number of tokens of the tokenizer that was saved with the adapter; 0 without."""
        found = getattr(self.processing_class, "tokenizer", self.processing_class)
        return 0 if found is None else len(found)

    @property
    def adds_tokens(self) -> bool:
        """Whether the base's embedding has to grow, as `AutoPeftModelForCausalLM` lets it, before the adapter fits."""
        return self.vocabulary > self.base_config.get_text_config().vocab_size

    def problems(self, merge: bool) -> list[str]:
        """Why it can be neither trained further nor merged, without loading it."""
        try:
            quantized = getattr(self.base_config, "quantization_config", None)
        except InputError as error:
            return error.problems
        if self.config.is_prompt_learning:
            return [
                f"{self.name} is an adapter of virtual tokens ({self.kind}), which peft can neither train further nor "
                f"merge. Start from its base, {self.base}, with a new adapter."
            ]
        found = []
        if not merge and adapts_head(self.config):
            found.append(
                f"{self.name} adapts lm_head, whose adapter TRL bypasses: it would neither compute nor train. Set "
                "merge_adapter=True (--merge_adapter) to merge it first."
            )
        if merge and (quantized or self.load.get("quantization_config")):
            found.append(
                "merge_adapter=True cannot be used with a quantized base: merging would round the adapter's weights to "
                f"its precision. Load {self.base} without quantization, or leave merge_adapter out to train the "
                "adapter further."
            )
        return found


def _refuse_parent_folder(name: Any) -> None:
    """Raise if a folder has adapters in the folders below it, and nothing to load itself."""
    folder = Path(name) if isinstance(name, str) else None
    if folder is None or not folder.is_dir() or (folder / "config.json").exists():
        return
    below = [path.parent for path in folder.glob("*/adapter_config.json") if path.parent.name != "ref"]
    if below:
        newest = max(below, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)] or [-1])
        raise InputError(
            f"{name} holds neither a model nor an adapter, but {len(below)} of its folders "
            f"{'hold adapters' if len(below) > 1 else 'holds one'}. Name the one to start from, such as {newest}."
        )
