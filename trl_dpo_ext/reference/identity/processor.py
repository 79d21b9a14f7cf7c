"""Name the settings of a processor that change what a model sees of an image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import AddedToken

from .identity import canonical

# Settings that do not change pixels, their number, or their tokens: names, devices, what is returned, other modalities.
# Every other setting counts, so that a new one is not overlooked. The chat template is in the token ids.
_NOT_THE_PIXELS = {
    "audio_processor", "audio_tokenizer", "auto_map", "chat_template", "data_format", "device", "disable_grouping",
    "feature_extractor", "image_processor_type", "input_data_format", "model_input_names", "name_or_path",
    "processor_class", "return_tensors", "tokenizer", "transformers_version", "video_processor", "video_token",
}  # fmt: skip

_CUTS = ("max_length", "truncation", "truncation_side", "stride")
"""Settings of a tokenizer with which a processor cuts texts."""


def processor_settings(processor: Any) -> str:
    """Return the settings of a processor and of its image processor as JSON, the same for equal settings.

    Sizes, patches, tiling, mean and deviation, resampling, tokens of images, and the classes, as images are resized
    otherwise with torchvision than with PIL; also attributes that only the object has, such as the text that stands for
    an image, and how the tokenizer cuts texts. A setting of None counts as not set.

    Args:
        processor: of a vision-language model.
    """
    settings = _counted({**_attributes(processor), **processor.to_dict()})
    settings["class"] = _class(processor)
    images = getattr(processor, "image_processor", None)
    if images is not None:
        settings["image_processor"] = {**_counted(images.to_dict()), "class": _class(images)}
    cuts = getattr(getattr(processor, "tokenizer", None), "init_kwargs", {})
    return canonical({**settings, **_counted({name: cuts.get(name) for name in _CUTS})})


def _attributes(processor: Any) -> dict[str, Any]:
    """The plain values that an object holds, whatever its class writes to a file."""
    plain = (str, int, float, AddedToken)
    found = {name: value for name, value in vars(processor).items() if isinstance(value, plain)}
    return {name: str(value) if isinstance(value, AddedToken) else value for name, value in found.items()}


def _class(part: Any) -> str:
    """The name of a class; of one that transformers does not have, with the module that it was loaded from."""
    kind = type(part)
    return kind.__name__ if kind.__module__.startswith("transformers.") else f"{kind.__module__}.{kind.__name__}"


def _counted(settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        str(name): _counted(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if value is not None and not str(name).startswith("_") and name not in _NOT_THE_PIXELS
    }
    return json.loads(json.dumps(kept, default=str))
