"""Run a model on rows with branches; the LM head works only on scored positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import _trl
from .masks import attention_mask
from .tree_rows import UNSCORED, TreeRows


def row_logps(model: Callable[..., Any], causal: Any, rows: TreeRows) -> torch.Tensor:
    """Compute the log-prob of every label of `rows`, in row-major order.

    Args:
        model: the module to call: the model itself, or the wrapper of DDP, FSDP, DeepSpeed or PEFT around it.
        causal: the causal model inside, with TRL's fused head.
        rows: on any device; `branch_problems` tells which models cannot take rows with several branches.

    Returns:
        Shape (scored,), float32, with a gradient if gradients are enabled.
    """
    trees = rows.has_trees
    device = causal.device
    input_ids, labels = rows.input_ids.to(device), rows.labels.to(device).flatten()
    position_ids = rows.position_ids.to(device) if trees else None
    branch = rows.branch.to(device) if trees else None
    scored = (labels != UNSCORED).nonzero().squeeze(1)
    return run_rows(model, causal, input_ids, labels[scored], scored, position_ids, branch).log_probs[0]


def run_rows(
    model: Callable[..., Any],
    causal: Any,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    scored: torch.Tensor,
    position_ids: torch.Tensor | None = None,
    branch: torch.Tensor | None = None,
    segment: torch.Tensor | None = None,
    router_tokens: torch.Tensor | None = None,
    **keywords: Any,
) -> Any:
    """Call `model` on rows and return the fused head's output, whose per-token fields have shape (1, scored).

    Args:
        model, causal: see `row_logps`.
        input_ids: (rows, width).
        labels, scored: (scored,) the token to predict, and the flat index in (rows x width) at which it is predicted.
        position_ids, branch, segment: (rows, width); without a branch and a segment, rows are ordinary causal ones.
        router_tokens: see `_trl.override_attention_mask`.
        **keywords: for the model.
    """
    mask = None
    if position_ids is not None:
        keywords["position_ids"] = position_ids
    if branch is not None and position_ids is not None:
        config = causal.config.get_text_config()
        mask = attention_mask(config, branch, position_ids, causal.dtype, segment)
    with _trl.override_attention_mask(causal, mask, scored, router_tokens):
        return model(
            input_ids=input_ids, shift_labels=labels.unsqueeze(0), fused_lm_head=True, use_cache=False, **keywords
        )
