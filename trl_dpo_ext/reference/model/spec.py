"""A reference described by the options but not loaded: its identity for the store, and how to load it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..._trl import without_adapter
from ..identity.files import loads_files_as_they_are, weight_files, weight_files_hash
from ..identity.identify import dtype_name, forward_config, quantization_fingerprint
from ..identity.identity import Identity, canonical
from .loading import Source, as_dtype, checkpoint, load_reference
from .quantization import bnb_config, quantized_shapes, skipped_layers

# Those of `load_reference`'s arguments that transformers is not told.
_OWN = {"model", "quantization", "double_quant", "compute_dtype", "skip_modules", "dtype", "revision", "device"}


@dataclass(frozen=True)
class ReferenceSpec:
    """A reference, described by the arguments of `load_reference`."""

    settings: Mapping[str, Any]

    @property
    def by_name(self) -> bool:
        """Whether it can be loaded at any time, from a checkpoint, rather than copied from a model in memory now."""
        return isinstance(self.settings["model"], str)

    @property
    def quantized(self) -> bool:
        """Whether the model will be quantized."""
        return bool(self.settings["quantization"])

    @property
    def source(self) -> Source:
        """The origin of the model."""
        model = self.settings["model"]
        if self.by_name:
            return Source(name=model, revision=self.settings.get("revision"))
        return Source(instance=weakref.ref(model))

    def quantized_shapes(self) -> list[tuple[int, int]]:
        """The shapes of the layers that will be quantized, without loading them."""
        model = self.settings["model"]
        if self.by_name:
            load = {key: value for key, value in self.settings.items() if key not in _OWN}
            config, kind = checkpoint(model, self.settings.get("revision"), load)
        else:
            config, kind = model.config, type(without_adapter(model))
        return quantized_shapes(kind, config, self.settings["skip_modules"])

    def load(self) -> Any:
        """Load the model, frozen and in evaluation mode."""
        return load_reference(**self.settings)

    def identity(self, autocast: str | None) -> Identity | None:
        """Return what `identify` would return for the loaded model; None if no files on this machine hold its weights.

        Args:
            autocast: the dtype of mixed precision, such as "bfloat16"; None without.
        """
        name, revision = self.settings["model"], self.settings.get("revision")
        load = {key: value for key, value in self.settings.items() if key not in _OWN}
        files = weight_files(name, revision) if loads_files_as_they_are(load) else None
        if files is None:
            return None
        config, kind = checkpoint(name, revision, load)
        plain = as_dtype(self.settings["dtype"]) or torch.float32
        quantization = getattr(config, "quantization_config", None)
        if self.quantized:
            skipped = skipped_layers(kind, config, self.settings["skip_modules"], "ref_skip_modules")
            multiplied = as_dtype(self.settings["compute_dtype"]) or plain
            quantization = bnb_config(self.settings["quantization"], self.settings["double_quant"], multiplied, skipped)
        return Identity(
            weights=f"files:{weight_files_hash(files)}",
            config=canonical(forward_config(config.to_dict())),
            quantization=quantization_fingerprint(quantization),
            dtype=dtype_name(plain),
            compute_dtype=autocast or dtype_name(plain),
            source=name,
            revision=revision,
        )
