"""Flags of the stored reference: where its log-probs are kept and how they are computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..core.mixture import LossMixture


@dataclass(kw_only=True)
class StoreOptions:
    """Fields of `DPOExtConfig` about the store; with `precompute_ref_log_probs`, TRL's own flag."""

    ref_store: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the store that precompute_ref_log_probs reads and fills. Default: a folder "
            "per reference under the datasets cache."
        },
    )
    precompute_ref_max_tokens: int | None = field(
        default=None,
        metadata={"help": "Token positions in one batch of the reference pass. Default: from the free memory."},
    )
    verify_reference: bool = field(
        default=True,
        metadata={
            "help": "At step 0, compare the policy's log-probs with the stored reference's where both are the same "
            "model; a difference is an error."
        },
    )


def store_problems(args: Any, mixture: LossMixture) -> list[str]:
    """What is wrong with these flags, given the losses."""
    problems = []
    limit = args.precompute_ref_max_tokens
    if not args.precompute_ref_log_probs:
        unused = {"ref_store": args.ref_store, "precompute_ref_max_tokens": limit}
        problems += [
            f"{name}={value!r} is used with precompute_ref_log_probs=True only, which is off."
            for name, value in unused.items()
            if value is not None
        ]
    elif args.sync_ref_model:
        problems.append(
            "precompute_ref_log_probs=True cannot be used with sync_ref_model=True: the reference would change while "
            "its stored log-probs stay."
        )
    if limit is not None and limit < 1:
        problems.append(f"precompute_ref_max_tokens must be at least 1; got {limit} (token positions per batch).")
    return problems
