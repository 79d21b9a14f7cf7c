"""Preference pairs from scored continuations, labels flipped at random, and the columns that losses read."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import datasets

from trl_dpo_ext.core.registry import LossVariant


@dataclass(frozen=True)
class Pair:
    """Two continuations of a prefix, the better one by its score first."""

    prompt: str
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float
    quantile_chosen: float
    """Share of the prefix's continuations that score no higher, itself included."""
    quantile_rejected: float

    @property
    def flipped(self) -> Pair:
        """The same pair as an annotator sees it who takes the worse one for the better."""
        return Pair(
            self.prompt, self.rejected, self.chosen, self.score_rejected, self.score_chosen,
            self.quantile_rejected, self.quantile_chosen,
        )  # fmt: skip


def pairs_of(prompt: str, continuations: Sequence[str], scores: Sequence[float], most: int) -> list[Pair]:
    """Return up to `most` pairs of continuations with different scores, those that differ the most."""
    count = len(scores)
    quantiles = [sum(other <= score for other in scores) / count for score in scores]
    found = []
    for one, other in itertools.combinations(range(count), 2):
        if scores[one] == scores[other]:
            continue
        better, worse = (one, other) if scores[one] > scores[other] else (other, one)
        texts, values = (continuations[better], continuations[worse]), (scores[better], scores[worse])
        found.append(Pair(prompt, *texts, *values, quantiles[better], quantiles[worse]))
    return sorted(found, key=lambda pair: pair.score_rejected - pair.score_chosen)[:most]


def with_flips(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """Flip this share of the pairs, drawn by the seed: the pairs flipped at a share are flipped at every larger one."""
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    chosen = set(order[: round(share * len(pairs))])
    return [pair.flipped if index in chosen else pair for index, pair in enumerate(pairs)]


def stars(score: float) -> float:
    """A score on the scale of one to five that score columns usually have."""
    return 3 + 2 * score


def dataset_of(pairs: Sequence[Pair], variant: LossVariant) -> datasets.Dataset:
    """The pairs, with the columns that the loss declares.

    Raises:
        ValueError: the loss reads a column that this task has no value for.
    """
    rows = [{name: asdict(pair)[name] for name in ("prompt", "chosen", "rejected")} for pair in pairs]
    for row, pair in zip(rows, pairs, strict=True):
        values = _columns(pair)
        if missing := [name for name in variant.columns if name not in values]:
            raise ValueError(f"{variant.name} reads {', '.join(missing)}, which this task does not have.")
        row.update({name: values[name] for name in variant.columns})
    return datasets.Dataset.from_list(rows)


def _columns(pair: Pair) -> dict[str, Any]:
    chosen, rejected = stars(pair.score_chosen), stars(pair.score_rejected)
    return {
        "score_chosen": chosen,
        "score_rejected": rejected,
        "margin": chosen - rejected,
        "delta_r": chosen - rejected,
        "p_chosen": 1 / (1 + math.exp(rejected - chosen)),
        "quantile_chosen": pair.quantile_chosen,
        "quantile_rejected": pair.quantile_rejected,
    }
