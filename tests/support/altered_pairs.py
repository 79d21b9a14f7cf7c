"""Batches with something replaced, for losses that agree on some of them: what identities and limits are written in."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.support.batches import PUBLISHED, SMOOTH, gradients, make_pairs, take
from trl_dpo_ext import get_loss

OTHER = {
    **SMOOTH,
    "columns": {
        "score_chosen": [1.0, 7.0, 6.5, 9.0, 3.0],
        "score_rejected": [0.5, 6.5, 2.0, 8.0, 1.0],
        "p_chosen": [0.3, 0.6, 1.0, 0.0, 0.2],
        "delta_r": [0.0, 0.5, 0.25, 1.0, 0.3],
        "margin": [2.0, 0.0, -1.5, 6.0, -1.0],
        "quantile_chosen": [1.0, 0.5, 0.25, 0.75, 1.0],
        "quantile_rejected": [0.5, 0.5, 0.75, 0.125, 0.25],
    },
}
BATCHES = {"published": PUBLISHED, "other": OTHER, "one pair": take(PUBLISHED, [1])}


def loss(name, **hyper):
    """A loss of a batch; no ranges are checked, since some identities leave them."""
    return lambda pairs: get_loss(name).make()(pairs, **hyper)


def on(change, inner):
    """`inner`, on pairs that `change` has altered."""
    return lambda pairs: inner(change(pairs))


def with_sides(change):
    """Pairs with other fields on either side; the score follows the log-probs."""

    def altered(pairs):
        sides = {
            name: replace(getattr(pairs, name), **{"score": None, **change(pairs, getattr(pairs, name))})
            for name in ("chosen", "rejected")
        }
        return replace(pairs, **sides)

    return altered


without_reference = with_sides(lambda pairs, side: {"ref_logps": torch.zeros_like(side.logps)})
of_one_token = with_sides(lambda pairs, side: {"lengths": torch.ones_like(side.lengths)})
of_equal_lengths = with_sides(lambda pairs, side: {"lengths": pairs.chosen.lengths})
chosen_above_reference = with_sides(lambda pairs, side: {"ref_logps": side.logps.detach() - 0.75})
of_mean_logps = with_sides(lambda pairs, side: {"logps": side.avg_logps})
alone = with_sides(lambda pairs, side: {name: getattr(side, name)[:1] for name in ("logps", "ref_logps", "lengths")})


def opposite_rewards(pairs):
    """The rewards of all sides add up to zero."""
    rejected = replace(pairs.rejected, logps=pairs.rejected.ref_logps - pairs.chosen.logratio, score=None)
    return replace(pairs, rejected=rejected)


def column(name, value):
    """Pairs whose column holds `value`, or `value(columns)`."""

    def altered(pairs):
        filled = value(pairs.columns) if callable(value) else torch.full_like(pairs.chosen.ref_logps, value)
        return replace(pairs, columns={**pairs.columns, name: filled})

    return altered


def gaps(columns):
    return columns["score_chosen"] - columns["score_rejected"]


def score_gap(gap):
    return column("score_chosen", lambda columns: columns["score_rejected"] + gap)


def value_and_gradients(side, inputs):
    pairs = make_pairs(inputs)
    value = side(pairs)
    return value, *gradients(value.sum(), pairs)
