"""Expected loss of the first step, where the policy equals its reference and every log-ratio is zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.list_pairs import ListPairs
from ..core.lists import Lists
from ..core.mixture import LossMixture, Term
from ..core.pairs import Need, Pairs

# Two different batches: a loss that is equal on both depends neither on the model nor on the data.
_BATCHES = (
    {"chosen": [-50.0, -31.0], "rejected": [-70.0, -29.0], "chosen_lengths": [40, 20], "rejected_lengths": [60, 25]},
    {"chosen": [-3.0, -250.0], "rejected": [-90.0, -8.0], "chosen_lengths": [7, 300], "rejected_lengths": [90, 4]},
)


def expected_initial_loss(term: Term) -> float | None:
    """Return a loss's value at the first step, or None if it depends on the model or on the data.

    What depends on how many answers a list has, such as `pl`, depends on the data.

    Example:
        >>> from trl_dpo_ext import DPOExtConfig
        >>> config = DPOExtConfig(output_dir="out", loss_type=["sigmoid", "sft"], bf16=False)
        >>> [expected_initial_loss(term) for term in config.loss_mixture().terms]
        [0.6931471805599453, None]
    """
    served = Need.REFERENCE | Need.LENGTHS | Need.BATCH
    of_lists = term.variant.reads == "lists"
    if term.variant.needs & ~served or (term.variant.columns and not of_lists):
        return None
    values = [_value_of_lists(term, batch) if of_lists else _value(term, batch) for batch in _BATCHES]
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


def _value_of_lists(term: Term, batch: dict[str, list[float]]) -> float:
    """The value of the batch's answers as lists: of four in the first batch, of two in the second."""
    sizes = (4,) if batch is _BATCHES[0] else (2, 2)
    lists = _at_the_reference(
        [*batch["chosen"], *batch["rejected"]], 4, [(1.0, 0.6, 0.3, 0.2)[:size] for size in sizes]
    )
    return float(term.loss(lists, **term.hyper).mean())


def _at_the_reference(logps: Sequence[float], lengths: int, scores: Sequence[Sequence[float]]) -> Lists:
    """Lists of such log-probs, with so many different lengths."""
    values = torch.tensor(logps, dtype=torch.float64)
    return Lists.from_logps(
        logps=values,
        ref_logps=values,
        lengths=[1 + place % lengths for place in range(len(logps))],
        prompt=[place for place, own in enumerate(scores) for _ in own],
        scores=torch.tensor([score for own in scores for score in own], dtype=torch.float64),
    )


def expected_loss_of_lists(
    mixture: LossMixture, scores: Sequence[Sequence[float]], which: ListPairs = "all"
) -> float | None:
    """Return the whole loss of the first step on lists, or None if a part of it depends on the model.

    Args:
        mixture: the losses of the run.
        scores: of the answers to each prompt, higher is better.
        which: the pairs of a list that terms of pairs see.

    Example:
        >>> from trl_dpo_ext import DPOExtConfig
        >>> mixture = DPOExtConfig(output_dir="out", loss_type="pl", bf16=False).loss_mixture()
        >>> round(expected_loss_of_lists(mixture, [[8, 6], [7, 5, 4, 1]]), 4)  # (log 2 + log 2 + log 3 + log 4) / 2
        1.9356
    """
    served = Need.REFERENCE | Need.LENGTHS
    if mixture.host_names or mixture.reference_free or mixture.needs & ~served:
        return None
    count = sum(map(len, scores))
    drawn = (([-3.0 - 7.0 * (k % 5) for k in range(count)], 4), ([-50.0 - 11.0 * (k % 3) for k in range(count)], 3))
    values = [
        float(mixture.on_lists(_at_the_reference(*each, scores), which, generator=torch.Generator())[0])
        for each in drawn
    ]
    return values[0] if abs(values[0] - values[1]) < 1e-9 * max(1.0, abs(values[0])) else None


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
