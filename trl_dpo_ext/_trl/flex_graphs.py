"""How often torch has compiled flex_attention; past a limit, it runs uncompiled and holds every score in memory."""

from __future__ import annotations

import warnings

LEAST_LIMIT = 64
"""A kernel is compiled for each kind of layer, with and without gradients, at the first width and for all others, for
each shape of heads, and for the plain rows with which the first batch is compared: 12 times for a model with two kinds
of layers. torch's own limit is 8."""


def raise_flex_limit() -> None:
    """Let torch compile flex_attention as often as rows of trees need it, in this process.

    Seam: `torch._dynamo.config.recompile_limit` is the limit of each function. It is not raised for the forward pass
    alone, since layers may be computed again in the backward pass.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, LEAST_LIMIT)


def num_graphs() -> int:
    """How often flex_attention has been compiled.

    Seam: transformers compiles torch's function itself, and dynamo lists the compiled versions of a function's code.
    """
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list
    from torch.nn.attention.flex_attention import flex_attention

    return len(_debug_get_cache_entry_list(flex_attention.__code__))


def warn_at_flex_limit() -> None:
    """Warn when flex_attention has been compiled so often that torch compiles it no more."""
    import torch._dynamo

    if (graphs := num_graphs()) >= torch._dynamo.config.recompile_limit:
        warnings.warn(
            f"flex_attention has been compiled {graphs} times, which is torch's limit: a batch that no kernel fits "
            "runs uncompiled, with all attention scores in memory. Raise torch._dynamo.config.recompile_limit, or set "
            "--attn_implementation sdpa.",
            stacklevel=2,
        )
