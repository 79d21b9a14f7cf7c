"""Which options do not go with lists, and which have no effect on pairs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...core.columns import COLUMNS_OF_SCORES, Column
from ...core.list_terms import list_problems
from ...core.lists import ORDERS, Order
from ...core.mixture import LossMixture
from ..columns import loss_columns
from .choice import DEFAULTS, LIST_OPTIONS


def list_run_problems(args: Any, mixture: LossMixture, orders: Collection[Order], computes_metrics: bool) -> list[str]:
    """Return why a run cannot train on its data as lists, or which options lists alone read.

    Args:
        args: the run's configuration.
        mixture: its losses.
        orders: what orders the completions of its datasets; empty for pairs.
        computes_metrics: whether the trainer is given `compute_metrics`.
    """
    if not orders:
        changed = [name for name in LIST_OPTIONS if getattr(args, name) != DEFAULTS[name]]
        return [
            f"{name}={getattr(args, name)} has no effect: the data are pairs. Remove it, or set gather_lists to gather "
            "pairs that share a prompt."
            for name in changed
        ]
    weakest: Order = next(order for order in ORDERS if order in orders)
    problems = list_problems(mixture, weakest)
    unpaired = all(term.variant.reads == "lists" for term in mixture.terms)
    if unpaired and mixture.terms:
        problems += [
            f"{name}={getattr(args, name)} has no effect: no chosen loss reads pairs. Remove it."
            for name in ("list_pairs", "list_reduction")
            if getattr(args, name) != DEFAULTS[name]
        ]
    averaging = [term.variant.name for term in mixture.terms if term.variant.token_sums]
    if averaging:
        problems.append(
            f"loss_type {', '.join(averaging)} cannot train on lists yet: it averages over the tokens of all chosen "
            "sides of a batch. Choose a loss whose pairs are independent, or train on pairs."
        )
    return problems + [
        f"{name} cannot be used with lists yet: {why}. Remove it, or train on pairs."
        for name, chosen, why in _unsupported(args, computes_metrics)
        if chosen
    ]


def _unsupported(args: Any, computes_metrics: bool) -> list[tuple[str, Any, str]]:
    return [
        ("use_weighting=True", args.use_weighting, "it weights pairs by the probabilities of both sides"),
        (f"ld_alpha={args.ld_alpha}", args.ld_alpha is not None, "it compares the lengths of the two sides of a pair"),
        ("compute_metrics", computes_metrics, "it is given the logits of pairs"),
    ]


def list_columns(args: Any, mixture: LossMixture) -> dict[str, Column]:
    """The dataset columns that a run's losses read of lists: no columns of pairs but those that scores fill."""
    lists = {name for term in mixture.terms if term.variant.reads == "lists" for name in term.columns}
    lists |= {*COLUMNS_OF_SCORES, args.weight_column}
    return {name: column for name, column in loss_columns(args, mixture).items() if name in lists}


def without_scores(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns that losses read, without those that lists fill for each pair."""
    return {name: column for name, column in columns.items() if name not in COLUMNS_OF_SCORES}
