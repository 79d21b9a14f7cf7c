"""The identity of a reference model: the fields that a store compares, and metadata that it records.

Nothing here needs torch or a model; `identify` makes an identity of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

NO_PROCESSOR = "none"
"""The processor of data without images."""

# What to change in a run so that it agrees with a store, for each field that may differ.
_REMEDIES = {
    "quantization": "--ref_quantization",
    "compute_dtype": "--bf16 or --fp16",
    "dtype": "--dtype",
    "weights": "the model that the store was made with",
    "config": "the model's configuration as it was",
    "adapter": "the adapter that the store was made with",
    "processor": "the processor that the store was made with, or another --ref_store",
}


@dataclass(frozen=True)
class Identity:
    """Everything about a reference model that its log-probs depend on.

    Attributes:
        weights: hash of the content of the weight files, or of the weights in memory.
        config: JSON of the configuration's fields that change the forward.
        adapter: hash of the active adapter, or `"none"`.
        quantization: such as `"nf4 double bfloat16"`, or `"none"`.
        dtype: of the parameters.
        compute_dtype: of the forward, under autocast.
        processor: JSON of the settings that change what the model sees of images; `"none"` for data without images.
        source, revision, attention, versions: metadata, never compared: the same weights under another name, with
            another attention kernel or with newer libraries are the same reference.

    Example:
        >>> import dataclasses
        >>> ours = Identity(weights="f00d", config="{}", quantization="none", dtype="bfloat16")
        >>> ours.differences(dataclasses.replace(ours, quantization="nf4 double bfloat16", source="elsewhere"))
        ['quantization is nf4 double bfloat16 in the store and none in this run (--ref_quantization)']
    """

    weights: str
    config: str
    adapter: str = "none"
    quantization: str = "none"
    dtype: str = "float32"
    compute_dtype: str = "float32"
    processor: str = NO_PROCESSOR
    source: str | None = field(default=None, compare=False)
    revision: str | None = field(default=None, compare=False)
    attention: str | None = field(default=None, compare=False)
    versions: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def keyed(self) -> dict[str, Any]:
        """Return the fields that are compared, with configuration and processor parsed; without images no processor."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        processor = values.pop("processor")
        parsed = {} if processor == NO_PROCESSOR else {"processor": json.loads(processor)}
        return {**values, "config": json.loads(self.config), **parsed}

    @property
    def recorded(self) -> dict[str, Any]:
        """Metadata fields: recorded in the manifest, never compared."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.compare}

    @property
    def fingerprint(self) -> str:
        """Return 32 hexadecimal digits that are equal if and only if all compared fields are."""
        return hashlib.blake2b(canonical(self.keyed).encode(), digest_size=16).hexdigest()

    @property
    def _named_weights(self) -> str:
        return self.weights + (f" ({self.source})" if self.source else "")

    @classmethod
    def from_json(cls, keyed: Mapping[str, Any], recorded: Mapping[str, Any]) -> Identity:
        """Rebuild an identity from its `keyed` and `recorded` fields; unknown metadata is dropped.

        Raises:
            KeyError: a compared field is missing.
            TypeError: one of the two is not a mapping.
        """
        values = {f.name: keyed[f.name] for f in fields(cls) if f.compare and f.name != "processor"}
        values |= {name: canonical(keyed[name]) for name in ("config", "processor") if name in keyed}
        known = {f.name for f in fields(cls) if not f.compare}
        return cls(**values, **{k: recorded[k] for k in known & {*recorded}})

    def differences(self, store: Identity) -> list[str]:
        """Describe each compared field that differs between this run and a store; empty for the same reference."""
        theirs, ours = ({**one.keyed, "weights": one._named_weights} for one in (store, self))
        found = [
            f"{name} is {theirs[name]} in the store and {ours[name]} in this run ({_REMEDIES[name]})"
            for name in ours
            if name not in ("config", "processor") and getattr(store, name) != getattr(self, name)
        ]
        found += _config_differences(theirs["config"], ours["config"])
        return found + self.processor_differences(store)

    def processor_differences(self, store: Identity) -> list[str]:
        """Describe each setting of the processor that differs between this run and a store."""
        theirs, ours = (one.keyed.get("processor") for one in (store, self))
        if theirs is not None and ours is not None:
            return _config_differences(theirs, ours, "processor")
        kinds = ["data without images" if one is None else "data with images" for one in (theirs, ours)]
        different = f"the store is of {kinds[0]} and this run reads {kinds[1]} ({_REMEDIES['processor']})"
        return [] if theirs == ours else [different]


def canonical(value: Any) -> str:
    """Return JSON that is identical for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _config_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], path: str = "config") -> list[str]:
    found = []
    for name in sorted({*theirs, *ours}):
        their, our = theirs.get(name), ours.get(name)
        if isinstance(their, Mapping) and isinstance(our, Mapping):
            found += _config_differences(their, our, f"{path}.{name}")
        elif their != our:
            texts = [canonical(value) if value is not None else "not set" for value in (their, our)]
            found.append(f"{path}.{name} is {texts[0]} in the store and {texts[1]} in this run")
    return found
