"""Options of the forward pass: shared prompts and packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.pairs import Need
from ..option_docs import document_options

if TYPE_CHECKING:
    from ..core.mixture import LossMixture


@document_options
@dataclass(kw_only=True)
class ForwardOptions:
    """Options of `DPOExtConfig` for running policy and reference, besides TRL's `padding_free`.

    Args:
        > Forward pass

        share_prompt: Run policy and live reference on one row per batch, which holds each prompt once and no padding:
            the same loss and gradients from fewer tokens.
        verify_share_prompt: Compare the first batch of `share_prompt` or `padding_free` with the model's plain forward
            pass; a difference beyond rounding is an error.
    """

    share_prompt: bool = False
    verify_share_prompt: bool = True


def forward_problems(args: Any, mixture: LossMixture) -> list[str]:
    """Return what is wrong with the forward pass's options."""
    chosen = [name for name in ("share_prompt", "padding_free") if getattr(args, name)]
    problems = []
    if chosen and args.torch_compile:
        problems.append(
            f"{' and '.join(chosen)} cannot be used with torch_compile=True: a compiled model ignores the hooks that "
            "give it the layout of its rows. Remove one of them."
        )
    divergent = ", ".join(term.variant.name for term in mixture.terms if Need.TOKEN_KL in term.variant.needs)
    if divergent and args.torch_compile:
        problems.append(
            f"{divergent} cannot be used with torch_compile=True: it reads hidden states through hooks, which a "
            "compiled model ignores. Remove one of them."
        )
    if chosen and args.neftune_noise_alpha is not None:
        problems.append(
            f"{' and '.join(chosen)} cannot be used with neftune_noise_alpha={args.neftune_noise_alpha}: NEFTune "
            "scales its noise by the length of a row, and these rows have another length. Remove one of them."
        )
    return problems
