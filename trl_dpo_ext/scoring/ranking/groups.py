"""The rewards of several completions for each prompt, their summary, and the columns that are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ...data.lists.agreement import Agreement, best_first
from ...data.lists.groups import Floats, Groups
from ...statistics import finite, wilson
from ..pair_scores import SideScores

_INDICES = pa.list_(pa.int32())


@dataclass(frozen=True)
class GroupScores:
    """Scored completions.

    Attributes:
        groups: of the completions.
        completions: log-probs of all completions, in the order of the groups.
        rewards: (completions,) float64; NaN where a completion has no finite log-probs.
        columns: of the loaded split: a dataset.
    """

    groups: Groups
    completions: SideScores
    rewards: Floats
    columns: Any

    def __iter__(self) -> Iterator[tuple[Floats, Floats]]:
        """Rewards and given scores of each prompt."""
        for where in self.groups:
            yield self.rewards[where], self.groups.scores[where]


def ranking_summary(scored: GroupScores) -> dict[str, Any]:
    """Return how rewards agree with given scores, as JSON.

    Completions without a reward or a given score do not count; nor do prompts where fewer than two are left, or whose
    given scores are all equal. Of several best completions, any is right.

    Returns:
        `prompts`, `completions`, `unscored` (completions without a reward), `compared` (prompts), `top1` (agreement on
        the best completion, with interval), `tau_b` (mean over prompts and their number), `pairs` (accuracy over all
        pairs that the given scores order; equal rewards count one half), and `place_of_best` (number of prompts whose
        best completion has the highest reward, the second highest, and so on).
    """
    found = [each for each in (Agreement.of(*values) for values in scored) if each is not None]
    credit, taus = [each.credit for each in found], [each.pairs.tau_b for each in found if each.pairs.tau_b is not None]
    ordered, right = sum(each.pairs.ordered for each in found), sum(each.pairs.right for each in found)
    sizes = np.diff(scored.groups.bounds)
    return finite(
        {
            "prompts": len(sizes),
            "completions": len(scored.rewards),
            "per_prompt": {"min": int(sizes.min()), "max": int(sizes.max())} if len(sizes) else None,
            "unscored": int((~np.isfinite(scored.rewards)).sum()),
            "compared": len(credit),
            "top1": {"accuracy": _mean(credit), "interval": wilson(sum(credit), len(credit)), "n": len(credit)},
            "tau_b": {"mean": _mean(taus), "n": len(taus)},
            "pairs": {"accuracy": right / ordered if ordered else None, "n": ordered},
            "place_of_best": np.bincount([each.place - 1 for each in found]).tolist() if found else [],
        }
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def ranking_columns(scored: GroupScores) -> dict[str, pa.Array]:
    """Return the columns that are written, one value per row of the loaded split.

    Rows with lists of completions get `dpo_rewards`, and `dpo_order` (indices, the best first, ties by index, those
    without a reward last); rows with one completion each get `dpo_reward`, and `dpo_rank` among those of their prompt,
    from 0 for the best. Null stands for completions without finite log-probs.
    """
    if scored.groups.in_lists:
        found = [rewards for rewards, _ in scored]
        rewards = pa.array([finite(each.tolist()) for each in found], pa.list_(pa.float64()))
        return {"dpo_rewards": rewards, "dpo_order": pa.array([best_first(each) for each in found], _INDICES)}
    rewards = np.full(len(scored.rewards), np.nan)
    ranks = np.zeros(len(scored.rewards), np.int32)
    for where in scored.groups:
        places, values = scored.groups.places[where], scored.rewards[where]
        rewards[places] = values
        ranks[places[best_first(values)]] = np.arange(len(values))
    unknown = ~np.isfinite(rewards)
    return {"dpo_reward": pa.array(rewards, mask=unknown), "dpo_rank": pa.array(ranks, mask=unknown)}
