"""Size of a model from its configuration alone, counted on the meta device."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._trl import outside_language_model, takes_text_alone
from ..errors import InputError
from .vision_tower import VisionTower, vision_tower


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameter counts and dimensions of a causal language model, with a vision tower or without."""

    name: str
    parameters: int
    linear: int
    """Weights of all linear layers except the output layer; bitsandbytes quantizes these."""
    embedding: int
    """Weights of embedding tables, for which 8-bit optimizers keep 32-bit states."""
    largest_linear: int
    layers: int
    hidden: int
    mlp: int
    heads: int
    vocabulary: int
    trainable: int
    """Trained parameters: all of them, or those of the adapter."""
    beside_text: int = 0
    """Weights outside the language model, such as a vision tower's; counted in `parameters`."""
    linear_beside_text: int = 0
    """Those of them in linear layers; counted in `linear`, and not quantized in a reference."""
    linear_layers: int = 0
    """Number of the linear layers that a reference quantizes."""
    linear_sides: int = 0
    """Inputs and outputs of these layers, added up."""
    tower: VisionTower | None = None
    tower_trained: bool = False
    """Whether weights outside the language model are trained, so that activations of the tower are kept."""

    @property
    def head(self) -> int:
        """Weights of the output layer."""
        return self.vocabulary * self.hidden


def compute_model_size(config: Any, peft_config: Any = None) -> ModelSize:
    """Count a model's parameters by building it, and its adapter if any, on the meta device.

    Args:
        config: a transformers configuration of a causal language model.
        peft_config: a PEFT configuration; None trains every parameter.

    Raises:
        ValueError: transformers has neither a causal language model nor a vision-language model for that configuration.

    Example:
        >>> from transformers import LlamaConfig
        >>> tiny = LlamaConfig(
        ...     hidden_size=8, intermediate_size=16, num_hidden_layers=2, vocab_size=32, num_attention_heads=2
        ... )
        >>> compute_model_size(tiny).parameters  # 2 x 32 x 8 + 2 x (4 x 8 x 8 + 3 x 8 x 16 + 2 x 8) + 8
        1832
    """
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    from .._trl.unsharded import unsharded_loading

    # Under ZeRO-3 all processes build a model together; this one may be built by a single process.
    with torch.device("meta"), unsharded_loading():
        model = _build(config)
    output = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not output]
    linear = [layer.weight.numel() for layer in layers]
    outside = outside_language_model(model).values()
    beside_text = sum(_count(part) for part in outside)
    tower_layers = [m for part in outside for m in part.modules() if isinstance(m, torch.nn.Linear)]
    quantized = [layer for layer in layers if all(layer is not other for other in tower_layers)]
    tower = vision_tower(model)
    embedding = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding))
    parameters = _count(model)
    text = config.get_text_config()
    hidden = text.hidden_size
    adapted = (parameters, beside_text) if peft_config is None else _adapter_parameters(model, peft_config)
    return ModelSize(
        name=type(model).__name__,
        parameters=parameters,
        linear=sum(linear),
        embedding=embedding,
        largest_linear=max(linear),
        layers=text.num_hidden_layers,
        hidden=hidden,
        mlp=getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden,
        heads=text.num_attention_heads,
        vocabulary=text.vocab_size,
        trainable=adapted[0],
        beside_text=beside_text,
        linear_beside_text=sum(layer.weight.numel() for layer in tower_layers),
        linear_layers=len(quantized),
        linear_sides=sum(sum(layer.weight.shape) for layer in quantized),
        tower=tower,
        tower_trained=adapted[1] > 0,
    )


def _build(config: Any) -> Any:
    """A model as its checkpoint is loaded."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if takes_text_alone(config) or getattr(config, "is_encoder_decoder", False):
        return AutoModelForCausalLM.from_config(config)
    try:
        return AutoModelForImageTextToText.from_config(config)
    except ValueError:  # of several modalities, and loaded as its language model
        return AutoModelForCausalLM.from_config(config)


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _adapter_parameters(model: Any, peft_config: Any) -> tuple[int, int]:
    """Trained parameters of an adapter: all, and those outside the language model."""
    from peft import get_peft_model

    with torch.device("meta"):
        adapted: Any = get_peft_model(model, copy.deepcopy(peft_config))  # PEFT modifies its configuration
    outside = outside_language_model(model).values()  # the layers are replaced in place
    return _trained(adapted), sum(_trained(part) for part in outside)


def _trained(module: Any) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


NO_MODEL = "No model: set --model_name_or_path, or set --model_config to the model's config.json."


def read_model_config(model_name_or_path: str | None, model_config: str | None, revision: str = "main") -> Any:
    """Read a model's configuration from `model_config` (a config.json, or a folder with one), or by the model's name.

    Raises:
        InputError: the configuration is missing, invalid, or not reachable.
    """
    from transformers import AutoConfig

    if model_config:
        return _config_from_file(Path(model_config))
    if model_name_or_path is None:
        raise InputError(NO_MODEL)
    try:
        return AutoConfig.from_pretrained(model_name_or_path, revision=revision)
    except (OSError, ValueError) as error:  # not cached and no network, gated, or no such model
        reason = str(error).split("\n")[0]
        raise InputError(
            f"The configuration of {model_name_or_path} is neither cached nor reachable: {reason} Download its "
            "config.json (a few kB; no weights are needed) and pass --model_config FILE."
        ) from None


def _config_from_file(path: Path) -> Any:
    from transformers import AutoConfig

    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"--model_config {path}: no such file; pass a model's config.json.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"--model_config {file} is not valid JSON: {error}. Pass the config.json of the model's folder."
        ) from None
    if not isinstance(values, dict) or "model_type" not in values:
        raise InputError(f"--model_config {file} has no model_type; pass a model's config.json.")
    try:
        return AutoConfig.for_model(**values)
    except ValueError as error:
        raise InputError(f"--model_config {file}: {str(error).splitlines()[0]}") from None
