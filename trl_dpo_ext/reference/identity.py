"""Which reference a log-prob was computed with: what is compared, and what is only written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

# How a run is made to agree with a store, for each field that may differ.
_REMEDIES = {
    "quantization": "--ref_quantization",
    "compute_dtype": "--bf16 or --fp16",
    "dtype": "--dtype",
    "weights": "the model that the store was made with",
    "config": "the model's configuration as it was",
    "adapter": "the adapter that the store was made with",
}


@dataclass(frozen=True)
class Identity:
    """A reference model, as far as its log-probs depend on it.

    Attributes:
        weights (`str`): Hash of the content of the weight files, or of the weights in memory.
        config (`str`): JSON of the configuration's fields that change the forward.
        adapter (`str`): Hash of the adapter that is on, or `"none"`.
        quantization (`str`): Such as `"nf4 double bfloat16"`, or `"none"`.
        dtype (`str`): Of the parameters.
        compute_dtype (`str`): Of the forward, under autocast.
        source, revision, attention, versions: Written down, never compared: the same weights under another name, with
            another attention kernel or by newer libraries are the same reference.

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
    source: str | None = field(default=None, compare=False)
    revision: str | None = field(default=None, compare=False)
    attention: str | None = field(default=None, compare=False)
    versions: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def keyed(self) -> dict[str, Any]:
        """The fields that are compared, readable."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        return {**values, "config": json.loads(self.config)}

    @property
    def recorded(self) -> dict[str, Any]:
        """The fields that are only written down."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.compare}

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits, equal where nothing that is compared differs."""
        return hashlib.blake2b(canonical(self.keyed).encode(), digest_size=16).hexdigest()

    @classmethod
    def from_json(cls, keyed: Mapping[str, Any], recorded: Mapping[str, Any]) -> Identity:
        """What `keyed` and `recorded` were made of.

        Raises:
            KeyError, TypeError: When they were made of something else.
        """
        values = {f.name: keyed[f.name] for f in fields(cls) if f.compare}
        known = {f.name for f in fields(cls) if not f.compare}
        return cls(**{**values, "config": canonical(keyed["config"])}, **{k: recorded[k] for k in known & {*recorded}})

    def differences(self, store: Identity) -> list[str]:
        """In words, what is compared and differs between this run and a store; empty for the same reference."""
        theirs, ours = store.keyed, self.keyed
        found = [
            f"{name} is {theirs[name]} in the store and {ours[name]} in this run ({_REMEDIES[name]})"
            for name in ours
            if name != "config" and theirs[name] != ours[name]
        ]
        return found + _config_differences(theirs["config"], ours["config"])


def canonical(value: Any) -> str:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _config_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], path: str = "config") -> list[str]:
    found = []
    for name in sorted({*theirs, *ours}):
        their, our = theirs.get(name), ours.get(name)
        if isinstance(their, Mapping) and isinstance(our, Mapping):
            found += _config_differences(their, our, f"{path}.{name}")
        elif their != our:
            said = [canonical(value) if value is not None else "not set" for value in (their, our)]
            found.append(f"{path}.{name} is {said[0]} in the store and {said[1]} in this run")
    return found
