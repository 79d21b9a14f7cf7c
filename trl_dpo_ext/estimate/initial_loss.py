"""Expected loss of the first step, where the policy equals its reference and every log-ratio is zero."""

from __future__ import annotations

import torch

from ..core.mixture import LossMixture, Term
from ..core.pairs import Need, Pairs

# Two different batches: a loss that is equal on both depends neither on the model nor on the data.
_BATCHES = (
    {"chosen": [-50.0, -31.0], "rejected": [-70.0, -29.0], "chosen_lengths": [40, 20], "rejected_lengths": [60, 25]},
    {"chosen": [-3.0, -250.0], "rejected": [-90.0, -8.0], "chosen_lengths": [7, 300], "rejected_lengths": [90, 4]},
)


def expected_initial_loss(term: Term) -> float | None:
    """Return a loss's value at the first step, or None if it depends on the model or on the data.

    Example:
        >>> from trl_dpo_ext import DPOExtConfig
        >>> config = DPOExtConfig(output_dir="out", loss_type=["sigmoid", "sft"], bf16=False)
        >>> [expected_initial_loss(term) for term in config.loss_mixture().terms]
        [0.6931471805599453, None]
    """
    served = Need.REFERENCE | Need.LENGTHS | Need.BATCH
    if term.variant.needs & ~served or term.variant.columns:
        return None
    values = [_value(term, batch) for batch in _BATCHES]
    same = abs(values[0] - values[1]) < 1e-9 * max(1.0, abs(values[0]))
    return values[0] if same else None


def _value(term: Term, batch: dict[str, list[float]]) -> float:
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in batch.items()}
    pairs = Pairs.from_logps(
        chosen=tensors["chosen"],
        rejected=tensors["rejected"],
        ref_chosen=tensors["chosen"],
        ref_rejected=tensors["rejected"],
        chosen_lengths=tensors["chosen_lengths"],
        rejected_lengths=tensors["rejected_lengths"],
    )
    return float(term.variant.make()(pairs, **term.hyper).mean())


def announced_loss(mixture: LossMixture) -> float | None:
    """Return the whole loss of the first step, or None if a part of it depends on the model or on the data.

    Example:
        >>> from trl_dpo_ext import DPOExtConfig
        >>> announced_loss(DPOExtConfig(output_dir="out", loss_type="sigmoid", bf16=False).loss_mixture())
        0.6931471805599453
    """
    values = [None if mixture.reference_free else expected_initial_loss(term) for term in mixture.terms]
    if mixture.host_names or not values or any(value is None for value in values):
        return None
    return sum(term.weight * value for term, value in zip(mixture.terms, values, strict=True) if value is not None)


def describe_initial_loss(mixture: LossMixture) -> str:
    """Describe the loss of the first step: a number, plus the terms that cannot be computed in advance.

    Example:
        >>> from trl_dpo_ext import DPOExtConfig
        >>> config = DPOExtConfig(
        ...     output_dir="out", loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2], bf16=False
        ... )
        >>> describe_initial_loss(config.loss_mixture())
        '0.6931 + 0.2 x loss/sft'
    """
    known, rest = 0.0, []
    any_known = False
    for term in mixture.terms:
        value = None if mixture.reference_free else expected_initial_loss(term)
        if value is None:
            rest.append(f"{term.weight:g} x loss/{term.label}")
        else:
            known, any_known = known + term.weight * value, True
    rest += [f"{weight:g} x {name}" for name, weight in zip(mixture.host_names, mixture.host_weights, strict=True)]
    if len(rest) == 1 and not any_known:
        return "depends on model and data"
    return " + ".join(([f"{known:.4f}"] if any_known else []) + rest)
