"""Records a model that was passed in Python, so that a later program can load the same one, or say that it cannot."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from accelerate import PartialState

from ... import _trl
from ...errors import InputError
from ..config import DTYPES, QUANTIZATIONS
from ..identity.identify import dtype_name, quantization_fingerprint
from ..identity.unchanged import sample_fingerprint
from .loading import as_dtype, checkpoint, source_of


def recorded_instances(**models: Any) -> dict[str, dict[str, Any]]:
    """Describe models for the description of a run; those that are None are left out."""
    return {what: asdict(Instance.of(model)) for what, model in models.items() if model is not None}


@dataclass(frozen=True)
class Instance:
    """A model that was passed in Python.

    Args:
        name: folder or hub id that it was loaded from; None where the model knows none.
        revision: of `name`.
        dtype: of its weights.
        quantization: as in a reference's identity; "none" for none.
        weights: fingerprint of values of each of its weights; None where they could not be read, or are quantized.
    """

    name: str | None
    revision: str | None = None
    dtype: str = "float32"
    quantization: str = "none"
    weights: str | None = None

    @classmethod
    def of(cls, model: Any) -> Instance:
        """Describe a model as it is now; its weights are sampled, not hashed."""
        config, made_of = model.config, source_of(model)
        name, revision = getattr(config, "_name_or_path", None), None
        if made_of is not None and made_of.name is not None:
            name, revision = made_of.name, made_of.revision
        if _trl.is_peft_model(model) or _trl.has_adapter_inside(model):
            name = revision = None  # files of the base alone
        quantization = quantization_fingerprint(getattr(config, "quantization_config", None))
        weights = sample_fingerprint(model) if quantization == "none" else None
        return cls(name or None, revision, dtype_name(_trl.without_adapter(model).dtype), quantization, weights)

    @classmethod
    def read(cls, recorded: Any) -> Instance | None:
        """The instance that `recorded_instances` described; None for anything else."""
        if not isinstance(recorded, Mapping) or "name" not in recorded:
            return None
        return cls(**{name: recorded[name] for name in cls.__dataclass_fields__ if name in recorded})

    @property
    def described(self) -> str:
        """What is known of it, in a few words."""
        words = [self.dtype if self.quantization == "none" else self.quantization]
        words += [f"loaded from {self.name}"] if self.name else []
        words += [f"weights {self.weights}"] if self.weights else []
        return ", ".join(words)

    @property
    def options(self) -> dict[str, Any]:
        """Options of a configuration that load it by name, beside the name."""
        options: dict[str, Any] = {}
        kind, *more = self.quantization.split(" ")
        if kind in QUANTIZATIONS:
            options["ref_quantization"] = kind
            options |= {"ref_double_quant": True} if "double" in more else {}
        elif self.dtype in DTYPES and self.dtype != "float32":
            options["ref_dtype"] = self.dtype
        return options | ({"ref_model_revision": self.revision} if self.revision else {})

    def problem(self) -> str | None:
        """Why the model cannot be loaded by its name any more; None if it can.

        The weights are loaded once to compare them, on the CPU, by one process.
        """
        mine = self._problem() if PartialState().is_main_process else None
        return _trl.gather_object(mine)[0]

    def _problem(self) -> str | None:
        if self.name is None:
            return "the run does not know a folder or name to load it from"
        try:
            config, kind = checkpoint(self.name, self.revision, {})
            if self.weights is None:
                return None
            model = kind.from_pretrained(self.name, revision=self.revision, dtype=as_dtype(self.dtype), config=config)
        except (InputError, OSError, ValueError) as error:
            return f"{self.name} cannot be loaded ({str(error).splitlines()[0]})"
        same = sample_fingerprint(model) == self.weights
        del model
        gc.collect()
        return (
            None
            if same
            else f"{self.name} holds other weights: the model was changed after it was loaded, or the files"
        )
