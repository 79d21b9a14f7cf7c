"""The vision tower of a model, as far as the memory of images depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .._trl import outside_language_model

_USUAL_IMAGE = (1024, 768)
"""Width and height of the image that stands for those of a model that takes images of any size."""
_TILES = 13
"""Tiles of such an image in models that cut images: 4 x 3, and the whole."""


@dataclass(frozen=True, slots=True)
class VisionTower:
    """Dimensions of the transformer that reads the patches of an image."""

    layers: int
    hidden: int
    mlp: int
    patch_values: int
    """Numbers that one patch is given as."""
    patches_per_token: float
    """Patches that one image token of the language model is made of."""
    image_tokens: int
    """Tokens of one image; of one of 1024 x 768 pixels if the model takes images of any size."""

    def activations(
        self, patches: float, residual_bytes: int, *, half: bool, trained: bool, checkpointing: bool
    ) -> tuple[float, float]:
        """Bytes kept of a batch for the backward pass, and the extra bytes of a layer while it runs.

        Measured with saved-tensor hooks on one layer of CLIP, SigLIP, Qwen2-VL, and Qwen2.5-VL: 16 to 32 bytes for each
        unit of the width and 4 to 8 for each of the MLP's if all is in half precision (autocast on float32 weights: 32
        to 46 and 8 to 14; float32: 32 to 54 and 8 to 16). Here are the largest.

        Args:
            patches: of the batch.
            residual_bytes: of one number between two layers.
            half: whether layers multiply in half precision.
            trained: whether weights of the tower are trained; if not, nothing is kept but the pixels.
            checkpointing: whether layers are computed again in the backward pass.
        """
        per_width, per_mlp = (32, 8) if residual_bytes == 2 else (46, 14) if half else (54, 16)
        layer = (per_width * self.hidden + per_mlp * self.mlp) * patches
        pixels = 4.0 * self.patch_values * patches
        if not trained:
            return pixels, layer / 4
        if checkpointing:
            return pixels + residual_bytes * self.layers * patches * self.hidden, layer
        return pixels + self.layers * layer, 0.0


def vision_tower(model: Any) -> VisionTower | None:
    """Measure the vision tower of a model, on the meta device or not; None if it has none that is a transformer."""
    parts = outside_language_model(model).values()
    lists = [m for part in parts for m in part.modules() if isinstance(m, torch.nn.ModuleList)]
    blocks = max((each for each in lists if _linear(each)), key=len, default=None)
    vision = getattr(model.config, "vision_config", None)
    if blocks is None or vision is None or not getattr(vision, "patch_size", None):
        return None
    widths = [layer.in_features for layer in _linear(blocks[-1])]
    patch, side = _side(vision.patch_size), _side(getattr(vision, "image_size", None))
    width, height = (side, side) if side else _USUAL_IMAGE
    patches = (width // patch) * (height // patch)
    per_token = _patches_per_token(model.config, vision, patches)
    tiles = _TILES if hasattr(model.config, "scale_factor") else 1
    channels = getattr(vision, "num_channels", None) or getattr(vision, "in_channels", None) or 3
    return VisionTower(
        layers=len(blocks),
        hidden=min(widths),
        mlp=max(widths),
        patch_values=channels * patch**2 * getattr(vision, "temporal_patch_size", 1),
        patches_per_token=per_token,
        image_tokens=round(tiles * patches / per_token),
    )


def _linear(module: torch.nn.Module) -> list[torch.nn.Linear]:
    return [each for each in module.modules() if isinstance(each, torch.nn.Linear)]


def _side(size: Any) -> Any:
    return size[0] if isinstance(size, list | tuple) else size


def _patches_per_token(config: Any, vision: Any, patches: int) -> float:
    """How many patches the projector merges into a token, by the name that each family gives to that."""
    if getattr(config, "mm_tokens_per_image", None):
        return patches / config.mm_tokens_per_image
    if getattr(config, "downsample_ratio", None):
        return config.downsample_ratio**-2
    merged = (getattr(vision, "spatial_merge_size", None), *(getattr(config, n, None) for n in _MERGED))
    return next((each for each in merged if each), 1) ** 2


_MERGED = ("spatial_merge_size", "scale_factor")
