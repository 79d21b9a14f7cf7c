"""Checks whether the losses of a run go with lists of answers, before a model is loaded.

Tests in tests/unit/core/test_list_terms.py.
"""

from __future__ import annotations

from .columns import COLUMNS_OF_SCORES
from .lists import ORDERS, Order
from .loss_spec import HOST_PREFIX
from .mixture import LossMixture
from .pairs import Need
from .variant import LossVariant

_GIVEN: dict[Order, str] = {"best": "only the index of the best answer", "ranks": "only ranks", "scores": "scores"}
_INSTEAD: dict[Order, str] = {
    "ranks": "a loss of ranks, such as pl, or of pairs",
    "best": "a loss of the best answer, such as top1, or of pairs",
}


def list_problems(mixture: LossMixture, order: Order) -> list[str]:
    """Return why terms of a mixture cannot train on lists of which `order` is known, one sentence or two each.

    Example:
        >>> from trl_dpo_ext import DPOExtConfig
        >>> config = DPOExtConfig(output_dir="out", loss_type=["pl", "aot"], bf16=False)
        >>> for problem in list_problems(config.loss_mixture(), "ranks"):
        ...     print(problem)
        loss_type 'aot' cannot train on lists: it compares the pairs of a batch, and pairs of one list share answers. \
Choose a loss whose pairs are independent.
    """
    problems = [problem for term in mixture.terms for problem in variant_problems(term.variant, order)]
    return problems + [
        f"loss_type '{HOST_PREFIX}{name}' cannot train on lists: TRL's code reads pairs. Write {name!r}."
        for name in mixture.host_names
    ]


def variant_problems(variant: LossVariant, order: Order) -> list[str]:
    """Return why a variant cannot train on lists of which `order` is known."""
    reasons = [_dependent_pairs(variant), _columns_of_pairs(variant), _order_needed(variant, order)]
    return [f"loss_type {variant.name!r} cannot train on lists: {reason}" for reason in reasons if reason]


def needed_order(variant: LossVariant) -> Order:
    """Return what a variant must know of the order of the answers."""
    if variant.order is not None:
        return variant.order
    return "scores" if any(name in COLUMNS_OF_SCORES for name in variant.columns) else "best"


def _dependent_pairs(variant: LossVariant) -> str | None:
    if variant.stateful:
        return "it keeps a running state over pairs, and pairs of one list share answers. Choose a loss without one."
    if Need.BATCH in variant.needs:
        return (
            "it compares the pairs of a batch, and pairs of one list share answers. Choose a loss whose pairs are "
            "independent."
        )
    return None


def _columns_of_pairs(variant: LossVariant) -> str | None:
    names = [name for name in variant.columns if name not in COLUMNS_OF_SCORES]
    if not names or variant.reads == "lists":
        return None
    return f"it reads {', '.join(names)}, which the pairs of a list do not have. Choose a loss of the scores."


def _order_needed(variant: LossVariant, order: Order) -> str | None:
    needed = needed_order(variant)
    if ORDERS.index(order) >= ORDERS.index(needed):
        return None
    return f"it needs {needed}, and the data has {_GIVEN[order]}. Add {needed}, or choose {_INSTEAD[order]}."
