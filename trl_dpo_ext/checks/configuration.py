"""A model's configuration, read by the model's name, and the class that it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers

_READ_WITH = ("trust_remote_code", "token", "cache_dir", "subfolder", "local_files_only", "code_revision")
"""The keywords of a model's `from_pretrained` that its configuration is read with too, beside the revision."""


def read_configuration(name: str, load: Mapping[str, Any], revision: str | None) -> Any:
    """Read the configuration of a checkpoint; nothing else is loaded.

    Args:
        name: a folder or a Hub id.
        load: the keywords that the model is loaded with.
        revision: of the checkpoint.

    Raises:
        OSError, ValueError, KeyError: transformers cannot find or read it.
    """
    settings = {key: load[key] for key in _READ_WITH if key in load}
    return transformers.AutoConfig.from_pretrained(name, revision=revision, **settings)


def named_class(config: Any) -> Any:
    """The class that a configuration names; None if it names none, or one that transformers does not have."""
    names = config.architectures or []
    return getattr(transformers, names[0], None) if names else None


def model_class(config: Any) -> Any:
    """The class that loads a checkpoint: the one that its configuration names, or else an auto class.

    A checkpoint with code of its own names its auto classes; like TRL, the one of models of images is preferred.
    """
    named = named_class(config)
    if named is not None:
        return named
    images = transformers.AutoModelForImageTextToText
    mapped = getattr(config, "auto_map", None)
    takes = images.__name__ in mapped if mapped else type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return images if takes else transformers.AutoModelForCausalLM
