"""Scored pairs for tests, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from trl_dpo_ext.scoring.pair_scores import PairScores, SideScores

BETA = 0.1


def side(policy: Sequence[float], ref: Sequence[float], tokens: Sequence[int]) -> SideScores:
    """One side; its norms are those of log-probs that are all alike."""
    sums = [np.array(values, np.float32) for values in (policy, ref)]
    counts = np.array(tokens, np.int32)
    norms = [(np.abs(values) / np.sqrt(np.maximum(counts, 1))).astype(np.float32) for values in sums]
    return SideScores(*sums, *norms, counts)


def scored(
    chosen: Sequence[float],
    rejected: Sequence[float],
    tokens: Sequence[Sequence[int]] | None = None,
    status: Sequence[str] | None = None,
    columns: Mapping[str, Any] | Dataset | None = None,
    beta: float = BETA,
) -> PairScores:
    """Pairs with these log-ratios; the reference gives every token a log-prob of -1."""
    number = len(chosen)
    counts = [[4] * number, [5] * number] if tokens is None else tokens
    sides = []
    for ratios, lengths in zip((chosen, rejected), counts, strict=True):
        ref = [-float(length) for length in lengths]
        sides.append(side([ratio + base for ratio, base in zip(ratios, ref, strict=True)], ref, lengths))
    if not isinstance(columns, Dataset):
        given = {"prompt": ["say "] * number, "chosen": ["yes"] * number, "rejected": ["no"] * number}
        columns = Dataset.from_dict(given | dict(columns or {}))
    states = np.array(["ok"] * number if status is None else status, dtype=object)
    return PairScores(np.arange(number), states, *sides, beta, columns)


def random_scored(number: int, seed: int = 0, **more: Any) -> PairScores:
    """Pairs of various lengths, margins that grow with the difference of length, a tie, and a dropped row."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, 60, (2, number))
    ratios = generator.normal(0.5, 6, (2, number)) + 0.1 * tokens
    ratios[1, 0] = ratios[0, 0] = 2.0
    tokens[1, 0] = tokens[0, 0]
    status = ["identical", *["ok"] * (number - 1)]
    if number > 3:
        status[3] = "dropped"
        tokens[:, 3] = 0
        ratios[:, 3] = np.nan
    return scored(ratios[0].tolist(), ratios[1].tolist(), tokens.tolist(), status, **more)
