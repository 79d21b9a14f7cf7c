"""Log-probs of the pairs of an evaluation, one row per pair, taken from the forward that evaluates them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..core.pairs import Pairs
from ..statistics import Numbers, length_bias

_CHOSEN, _REJECTED, _CHOSEN_TOKENS, _REJECTED_TOKENS, _MARGIN, _LOGRATIO = range(6)


def batch_columns(pairs: Pairs, rewards: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The rows that a batch adds, (pairs, 6) float32.

    They hold the log-probs of both sides, their tokens, the margin of rewards, and the chosen side's log-ratio to the
    reference.
    """
    sides = (pairs.chosen, pairs.rejected)
    logps = [torch.where(side.mask, side.token_logps, 0.0).float().sum(dim=1) for side in sides]
    columns = [*logps, *(side.lengths.float() for side in sides), (rewards[0] - rewards[1]).float()]
    columns.append(pairs.chosen.logratio.float())
    return torch.stack([column.detach() for column in columns], dim=1)


def pair_keys(inputs: Mapping[str, Any]) -> torch.Tensor:
    """A number for each pair of a batch that depends on its tokens alone, not on padding, (pairs,) int64."""
    attended = inputs["attention_mask"].long()
    place = attended.cumsum(dim=1)
    mixed = ((inputs["input_ids"].long() + 1) * 1_000_003) ^ (place * 7_919)
    mixed = mixed * mixed  # integers wrap around
    rows = ((mixed ^ (mixed >> 17)) * attended).sum(dim=1)
    chosen, rejected = rows.chunk(2)
    return chosen * 31 + rejected


@dataclass
class PairTable:
    """The pairs of one evaluation, in the order in which they were evaluated."""

    batches: list[torch.Tensor] = field(default_factory=list)
    """(pairs, 6) each, of all processes."""
    key_batches: list[torch.Tensor] = field(default_factory=list)
    has_stored_reference: bool = False
    """Whether the log-ratio is told, in place of a KL divergence, for which the reference would have to run."""

    def add(self, columns: torch.Tensor, keys: torch.Tensor, gather: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Add a batch.

        Args:
            columns: `batch_columns` of this process.
            keys: `pair_keys` of this process.
            gather: concatenates the rows of all processes, without those that were repeated to fill the batch.
        """
        self.batches.append(gather(columns).cpu())
        self.key_batches.append(gather(keys).cpu())

    @property
    def values(self) -> Numbers:
        """All rows, (pairs, 6)."""
        return torch.cat(self.batches).double().numpy() if self.batches else np.zeros((0, 6))

    def chosen_by_pair(self) -> dict[int, float]:
        """Log-probs of the chosen answers by the key of their pair."""
        keys = torch.cat(self.key_batches).tolist() if self.key_batches else []
        return dict(zip(keys, self.values[:, _CHOSEN].tolist(), strict=True))

    def metrics(self, start: Mapping[int, float]) -> dict[str, float]:
        """What alarms and the console read of these pairs.

        Args:
            start: `chosen_by_pair` at the start.
        """
        values = self.values
        right = (values[:, _MARGIN] > 0).sum() + (values[:, _MARGIN] == 0).sum() / 2
        bias = length_bias(values[:, _CHOSEN_TOKENS].astype(np.int64), values[:, _REJECTED_TOKENS].astype(np.int64))
        found = summary(
            pairs=len(values),
            right=float(right),
            margin=float(values[:, _MARGIN].sum()),
            chosen=(float(values[:, _CHOSEN].sum()), float(values[:, _CHOSEN_TOKENS].sum())),
            rejected=(float(values[:, _REJECTED].sum()), float(values[:, _REJECTED_TOKENS].sum())),
            longer=bias["longer"],
            shorter=bias["shorter"],
        )
        if self.has_stored_reference and len(values):
            tokens = max(float(values[:, _CHOSEN_TOKENS].sum()), 1)
            found["watch/logratio_chosen"] = float(values[:, _LOGRATIO].sum()) / tokens
        now = self.chosen_by_pair()
        both = [(value, start[key]) for key, value in now.items() if key in start]
        if both:
            found["watch/chosen_falls_in"] = sum(value < before for value, before in both) / len(both)
        return found


def summary(
    *,
    pairs: float,
    right: float,
    margin: float,
    chosen: tuple[float, float],
    rejected: tuple[float, float],
    longer: float,
    shorter: float,
) -> dict[str, float]:
    """The values of some pairs from their sums.

    Args:
        pairs: their number.
        right: pairs that are ranked right, ties as one half.
        margin: sum of the margins of rewards; NaN where there are none, and then no accuracy.
        chosen, rejected: sum of log-probs in nats, and number of tokens.
        longer, shorter: pairs whose chosen answer is the longer or the shorter one, in tokens.
    """
    if not pairs:
        return {}
    ranked = {} if math.isnan(margin) else {"accuracy": right / pairs, "margin": margin / pairs}
    return {
        "pairs": pairs,
        **ranked,
        "watch/chosen_logp_per_token": chosen[0] / max(chosen[1], 1),
        "watch/rejected_logp_per_token": rejected[0] / max(rejected[1], 1),
        "longer_is_chosen": longer / pairs,
        "shorter_is_chosen": shorter / pairs,
    }
