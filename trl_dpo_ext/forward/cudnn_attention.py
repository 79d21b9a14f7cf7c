"""Keep training off a kernel of cuDNN that can give NaN gradients."""

from __future__ import annotations

import logging
from typing import Any

import torch

from .masks import layer_kinds

logger = logging.getLogger(__name__)

_FIRST_TORCH = "2.11"
"""From this version on, `sdpa` prefers cuDNN on Hopper and Blackwell (pytorch#196678). Measured with 2.11 and cuDNN
9.19; no later version has been shown to be free of the defect."""
_FIRST_CUDNN = 91500  # older ones are not chosen


def avoid_cudnn_attention(causal: Any, device: torch.device, dtype: torch.dtype, packed: bool, announce: bool) -> bool:
    """Turn off cuDNN's attention where its gradient may be NaN, for the whole process.

    If attention has a mask, the width of the batch is 64 modulo 128, and a row's scores have a logsumexp below -88, the
    gradient of the queries is NaN while outputs are right, so that no check of the forward pass can see it.

    Args:
        causal: the policy.
        device: on which it trains.
        dtype: in which it computes.
        packed: whether its batches are packed rows, whose attention has no mask except in windows and chunks.
        announce: whether to log what was done.

    Returns:
        Whether it was turned off.
    """
    config = causal.config.get_text_config()
    takes_masks = config._attn_implementation == "sdpa" and not (packed and layer_kinds(config) == ["full_attention"])
    if not takes_masks or dtype not in (torch.float16, torch.bfloat16) or not _prefers_cudnn(device):
        return False
    torch.backends.cuda.enable_cudnn_sdp(False)
    if announce:
        logger.warning(
            "Turned off cuDNN's attention, which can give NaN gradients here where attention has a mask "
            "(pytorch#196678); sdpa uses its other kernels. To keep it, call "
            "torch.backends.cuda.enable_cudnn_sdp(True) after the trainer has been created."
        )
    return True


def _prefers_cudnn(device: torch.device) -> bool:
    """Whether `sdpa` takes cuDNN first on this device."""
    if device.type != "cuda" or torch.version.hip is not None or not torch.backends.cuda.cudnn_sdp_enabled():
        return False
    if torch.__version__ < _FIRST_TORCH or (torch.backends.cudnn.version() or 0) < _FIRST_CUDNN:
        return False
    return torch.cuda.get_device_capability(device)[0] in (9, 10)
