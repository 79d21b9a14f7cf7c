"""A reference that is described and not loaded: what a store needs to know of it, and how to load it when it is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..identity.files import weight_files, weight_files_hash
from ..identity.identify import dtype_name, forward_config, quantization_fingerprint
from ..identity.identity import Identity, canonical
from .loading import Source, as_dtype, bnb_config, checkpoint, load_reference, skipped_layers

# Those of `load_reference`'s arguments that transformers is not told.
_OWN = {"model", "quantization", "double_quant", "compute_dtype", "skip_modules", "dtype", "revision", "device"}


@dataclass(frozen=True)
class ReferenceSpec:
    """A reference by the arguments of `load_reference`."""

    settings: Mapping[str, Any]

    @property
    def by_name(self) -> bool:
        """Whether it is loaded from a checkpoint, at any time, rather than made of a model in memory now."""
        return isinstance(self.settings["model"], str)

    @property
    def quantized(self) -> bool:
        """Whether it will be."""
        return bool(self.settings["quantization"])

    @property
    def source(self) -> Source:
        """What it is made of."""
        return Source(name=self.settings["model"], revision=self.settings.get("revision"))

    def load(self) -> Any:
        """The model, frozen and in evaluation mode."""
        return load_reference(**self.settings)

    def identity(self, autocast: str | None) -> Identity | None:
        """What `identify` says of it once it is loaded, from its files and the settings; None without files here.

        Args:
            autocast: the dtype of mixed precision, such as "bfloat16"; None without.
        """
        name, revision = self.settings["model"], self.settings.get("revision")
        load = {key: value for key, value in self.settings.items() if key not in _OWN}
        files = weight_files(name, revision)
        if files is None:
            return None
        config, kind = checkpoint(name, revision, load)
        plain = as_dtype(self.settings["dtype"]) or torch.float32
        quantization = getattr(config, "quantization_config", None)
        if self.quantized:
            skipped = skipped_layers(kind, config, self.settings["skip_modules"])
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
