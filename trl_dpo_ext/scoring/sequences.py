"""Score any token sequences by the two passes: for protocols that tokenize otherwise, and prompts with many answers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from ..config import DPOExtConfig
from .pair_scores import SideScores
from .score import PreferenceScores, default_config, score_preferences
from .token_rows import token_rows


def score_sequences(
    policy: Any,
    sequences: Iterable[tuple[Sequence[int], Sequence[int]]],
    tokenizer: Any = None,
    args: DPOExtConfig | None = None,
    **options: Any,
) -> tuple[SideScores, PreferenceScores]:
    """Score completions as they are, without truncation; each distinct sequence, and each prompt, is computed once.

    Args:
        policy, tokenizer, args: of `score_preferences`.
        sequences: token ids of a prompt, of at least one token, and of its completion.
        **options: of `score_preferences`.

    Returns:
        Scores of all sequences in their order, and the result that they were taken from.

    Raises:
        InputError: see `score_preferences`.
    """
    args = copy.copy(args or default_config(options.get("work_dir")))
    args.max_length = None
    scored = score_preferences(policy, token_rows(sequences), tokenizer, args, **options)
    return scored.pairs.chosen, scored
