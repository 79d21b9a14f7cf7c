"""Flags of the forward: shared prompts, packed rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.mixture import LossMixture


@dataclass(kw_only=True)
class ForwardOptions:
    """Fields of `DPOExtConfig` about how policy and reference are run; with `padding_free`, TRL's own flag."""

    share_prompt: bool = field(
        default=False,
        metadata={
            "help": "Run policy and live reference on one row per pair, in which the prompt stands once: the same "
            "loss and gradients from fewer tokens. Batches for which it does not pay are fed without padding."
        },
    )
    verify_share_prompt: bool = field(
        default=True,
        metadata={
            "help": "Compare the first batch of share_prompt or padding_free with the model's plain forward; a "
            "difference beyond rounding is an error."
        },
    )


def forward_problems(args: Any, mixture: LossMixture) -> list[str]:
    """What is wrong with these flags, given the losses."""
    flags = [name for name in ("share_prompt", "padding_free") if getattr(args, name)]
    problems = []
    if flags and args.torch_compile:
        problems.append(
            f"{' and '.join(flags)} cannot be used with torch_compile=True: a compiled model ignores the hooks that "
            "give it its mask. Drop one of them."
        )
    attention = str((args.model_init_kwargs or {}).get("attn_implementation") or "")
    if args.share_prompt and "flash" in attention:
        problems.append(
            f"share_prompt=True cannot be used with attn_implementation={attention!r}, which takes no mask but the "
            "causal one. Use sdpa or flex_attention, or padding_free=True in place of share_prompt."
        )
    return problems
