"""Name the settings of a processor that change what a model sees of an image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .identity import canonical

# Settings that do not change pixels, their number, or their tokens: names, devices, what is returned, other modalities.
# Every other setting counts, so that a new one is not overlooked. The chat template is in the token ids.
_NOT_THE_PIXELS = {
    "audio_processor", "audio_tokenizer", "auto_map", "chat_template", "data_format", "device", "disable_grouping",
    "feature_extractor", "image_processor_type", "input_data_format", "model_input_names", "name_or_path",
    "processor_class", "return_tensors", "tokenizer", "transformers_version", "video_processor", "video_token",
}  # fmt: skip


def processor_settings(processor: Any) -> str:
    """Return the settings of a processor and of its image processor as JSON, the same for equal settings.

    Sizes, patches, tiling, mean and deviation, resampling, tokens of images, and the classes, as images are resized
    otherwise with torchvision than with PIL. A setting of None counts as not set.

    Args:
        processor: of a vision-language model.
    """
    settings = _counted(processor.to_dict())
    settings["class"] = type(processor).__name__
    images = getattr(processor, "image_processor", None)
    if images is not None:
        settings["image_processor"] = {**_counted(images.to_dict()), "class": type(images).__name__}
    return canonical(settings)


def _counted(settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        str(name): _counted(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if value is not None and not str(name).startswith("_") and name not in _NOT_THE_PIXELS
    }
    return json.loads(json.dumps(kept, default=str))
