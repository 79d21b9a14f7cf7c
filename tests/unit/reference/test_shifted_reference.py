"""Which losses a shift of the reference moves: what is declared is what happens."""

from __future__ import annotations

import pytest
import torch

from tests.support.batches import SMOOTH, hypers_of, make_pairs
from trl_dpo_ext import Pairs, list_losses


def shifted(pairs: Pairs, by: float, per_token: bool) -> Pairs:
    """The same pairs with reference log-probs moved by one amount: per answer (on its first token), or per token."""
    sides = []
    for side in (pairs.chosen, pairs.rejected):
        first = side.mask & (side.mask.cumsum(dim=1) == 1)
        shift = (side.mask if per_token else first) * by
        tokens, total = side.ref_token_logps + shift, shift.sum(dim=1)
        fields = {name: getattr(side, name) for name in type(side).__dataclass_fields__}
        score = None  # worked out anew
        sides.append(
            type(side)(**{**fields, "ref_logps": side.ref_logps + total, "ref_token_logps": tokens, "score": score})
        )
    fields = {name: getattr(pairs, name) for name in Pairs.__dataclass_fields__}
    weights = {name: torch.ones_like(c) for name, c in pairs.columns.items() if name.endswith("token_weights")}
    return Pairs(**{**fields, "chosen": sides[0], "rejected": sides[1], "columns": {**pairs.columns, **weights}})


@pytest.mark.parametrize("variant", [v for v in list_losses(reads="pairs") if v.needs_reference], ids=lambda v: v.name)
def test_what_a_shift_of_both_sides_moves_is_what_is_declared(variant) -> None:
    moved = {}
    for per_token in (False, True):
        largest = 0.0
        for hyper in hypers_of(variant):
            batches = [
                shifted(make_pairs(SMOOTH), by, per_token) for by in (0.0, -3.75, 3.75)
            ]  # a loss may look one way
            plain, *others = [variant.make()(pairs, **hyper).detach() for pairs in batches]
            largest = max(largest, *(float((values - plain).abs().max()) for values in others))
        moved[per_token] = largest > 1e-9
    assert variant.shift_invariant != all(moved.values())


def test_losses_without_a_reference_read_no_reward_of_one() -> None:
    assert all(variant.shift_invariant for variant in list_losses() if not variant.needs_reference)
    named = {"apo_down", "apo_zero", "bco_pair", "nca_pair", "sppo", "sppo_hard", "anc_dpo", "dpop", "kto_pair"}
    assert named <= {variant.name for variant in list_losses() if not variant.shift_invariant}
