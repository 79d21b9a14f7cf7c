"""The images of a batch, which both halves have: run through the vision tower once."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .batch import COMPLETION_MASK
from .patching import temporarily

IMAGES_ONCE = "images_once"
"""Our batch key that says: what the vision tower is fed has the images of the chosen half alone."""

_ONCE_IN = {"gemma3", "idefics3", "llava", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "smolvlm"}
"""The `model_type` of families whose features of an image depend on nothing but that image."""

_FED_TO_TOWER = ("pixel_values", "pixel_attention_mask")
_GRIDS = "image_grid_thw"
"""Seam: the sizes of images, which tower and language model read."""
TEXT_KEYS = ("input_ids", "attention_mask", COMPLETION_MASK, "token_type_ids", "mm_token_type_ids")


def tower_of(causal: Any) -> Any:
    """The module that computes the features of images, if both halves of a batch can share them; else None.

    Seam: of the families in `_ONCE_IN`, one module inside the causal model has `get_image_features` and calls it once
    in a forward, with what the processor made of all images; it reads `pooler_output` of the result (Qwen3-VL
    `deepstack_features`, too), images in order, and puts that in the places of image tokens.
    """
    if getattr(causal.config, "model_type", None) not in _ONCE_IN:
        return None
    found = [each for each in causal.modules() if hasattr(type(each), "get_image_features") and each is not causal]
    return found[0] if len(found) == 1 else None


def with_images_once(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Leave the images of the rejected half out of a collated batch, if they are those of the chosen half.

    Seam: TRL's collator gives the processor the images of all rows twice, chosen half first.
    """
    given = {name: value for name, value in batch.items() if name not in TEXT_KEYS}
    if "pixel_values" not in given or not given.keys() <= {*_FED_TO_TOWER, _GRIDS}:
        return dict(batch)
    if not all(len(value) % 2 == 0 and torch.equal(*value.chunk(2)) for value in given.values()):
        return dict(batch)
    # Contiguous: a view would hold, and send between processes, the memory of both halves.
    halves = {name: given[name].chunk(2)[0].clone() for name in _FED_TO_TOWER if name in given}
    return {**batch, **halves, IMAGES_ONCE: True}


@contextlib.contextmanager
def sharing_features(tower: Any) -> Iterator[None]:
    """Inside, a model is fed batches of `with_images_once`: both halves get the features of the same images.

    Args:
        tower: from `tower_of`.
    """
    plain = tower.get_image_features
    names = list(inspect.signature(plain).parameters)

    def shared(*args: Any, **keywords: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **keywords}
        if given.get(_GRIDS) is not None:
            given[_GRIDS] = given[_GRIDS].chunk(2)[0]
        output = plain(**given)
        output.pooler_output = _twice(output.pooler_output)
        if getattr(output, "deepstack_features", None) is not None:
            output.deepstack_features = [_twice(layer) for layer in output.deepstack_features]
        return output

    with temporarily(tower, get_image_features=shared):
        yield


def _twice(features: Any) -> Any:
    return torch.cat([features, features]) if isinstance(features, torch.Tensor) else [*features, *features]


def patches_per_token(config: Any) -> float:
    """The number of patches that one image token stands for, by the configuration of a vision-language model.

    Seam: `spatial_merge_size` (Qwen) or `scale_factor` (Idefics3) is its root; Gemma 3 pools the patches of an image to
    `mm_tokens_per_image`. Elsewhere one patch is one token.
    """
    vision = config.vision_config
    side = getattr(vision, "spatial_merge_size", None) or getattr(config, "scale_factor", None) or 1
    pooled = getattr(config, "mm_tokens_per_image", None)
    return (vision.image_size // vision.patch_size) ** 2 / pooled if pooled else float(side**2)


def tower_sizes(config: Any) -> tuple[int, int]:
    """Hidden size and size of the MLP of a vision tower.

    Seam: of Qwen2-VL's, `embed_dim` and `mlp_ratio`; there `hidden_size` is the language model's.
    """
    vision = config.vision_config
    hidden = getattr(vision, "embed_dim", None) or getattr(vision, "hidden_size", None) or 0
    return hidden, getattr(vision, "intermediate_size", None) or int(hidden * getattr(vision, "mlp_ratio", 4))
