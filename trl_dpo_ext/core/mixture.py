"""A weighted sum of loss variants, each with its own hyperparameters: what it needs, and what it is on a batch.

Terms of pairs and of lists mix, on batches of pairs (a pair is a list of two answers) and of lists alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .columns import SCORE_COLUMNS, Column
from .list_pairs import Draw, ListPairs, Reduction, pair_lists
from .lists import Lists
from .loss_spec import HOST_PREFIX
from .pairs import Need, Pairs, Side
from .variant import LossVariant


@dataclass(frozen=True, slots=True)
class Term:
    """One loss of a mixture, ready to run."""

    variant: LossVariant
    weight: float
    hyper: Mapping[str, Any]
    """The value of every hyperparameter, published defaults included."""
    label: str
    """The variant's name, or its spec where a mixture holds the variant more than once."""
    loss: Callable[..., torch.Tensor]

    @property
    def columns(self) -> dict[str, Column]:
        """Dataset columns of pairs that it reads with these hyperparameters, by name."""
        columns = {name: column.under(self.hyper) for name, column in self.variant.columns.items()}
        scores = self.score_bounds
        return columns if scores is None else columns | dict.fromkeys(SCORE_COLUMNS, scores)

    @property
    def score_bounds(self) -> Column | None:
        """Return what the scores of lists may hold with these hyperparameters; None where any number will do."""
        return self.variant.score_bounds and self.variant.score_bounds(**self.hyper)

    def describe(self) -> str:
        """Return weight, name and hyperparameters in one line."""
        inside = ", ".join(f"{name}={value}" for name, value in self.hyper.items() if value is not None)
        return f"{self.weight:g} x {self.variant.name}({inside})"


@dataclass(frozen=True, slots=True)
class LossMixture:
    """The losses of a run: our terms, and the names that TRL computes itself."""

    terms: tuple[Term, ...]
    host_names: tuple[str, ...] = ()
    host_weights: tuple[float, ...] = ()
    reference_free: bool = False
    """Read every reference log-prob as zero; no reference is loaded."""

    @property
    def needs(self) -> Need:
        """Union of the needs of all terms. A loss left to TRL needs a reference."""
        needs = Need.REFERENCE if self.host_names else Need.NONE
        for term in self.terms:
            needs |= term.variant.needs
        return needs & ~needs.of_reference if self.reference_free else needs

    @property
    def needs_reference(self) -> bool:
        """Return True if reference log-probs must be computed or read."""
        return bool(self.needs.of_reference)

    @property
    def columns(self) -> dict[str, Column]:
        """Dataset columns that the terms read, by name."""
        found: dict[str, Column] = {}
        for term in self.terms:
            for name, column in term.columns.items():
                found[name] = found[name].joined(column) if name in found else column
        return found

    @property
    def reads_lists(self) -> bool:
        """Return True if a term reads lists."""
        return any(term.variant.reads == "lists" for term in self.terms)

    def describe(self) -> str:
        """Return all terms in one line."""
        host = [f"{w:g} x {HOST_PREFIX}{n}" for n, w in zip(self.host_names, self.host_weights, strict=True)]
        return " + ".join([term.describe() for term in self.terms] + host)

    def __call__(
        self, pairs: Pairs, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | float, dict[str, torch.Tensor]]:
        """Compute the weighted loss, a scalar, and the mean of each term before its weight, detached.

        Args:
            pairs: the batch; the mean over no pairs is 0.
            weights: one weight per pair, shape (pairs,), for every term; None weights all pairs equally.
        """
        values = [(term, term.loss(term.variant.read(pairs), **term.hyper)) for term in self.terms]
        return _weighted_sum(values, weights)

    def on_lists(
        self,
        lists: Lists,
        which: ListPairs = "all",
        weights: torch.Tensor | None = None,
        generator: Draw = None,
        reduction: Reduction = "mean",
    ) -> tuple[torch.Tensor | float, dict[str, torch.Tensor]]:
        """Compute the weighted loss of lists, a scalar, and the mean of each term before its weight, detached.

        Terms of pairs see the same pairs of each list, and a prompt has the mean, or the sum, of their values.

        Args:
            lists: the batch; the mean over no prompts is 0.
            which: the pairs of a list that terms of pairs see.
            weights: one weight per prompt, shape (prompts,), for every term; None weights all prompts equally.
            generator: draws the pairs where `which` is a number; one, or one for each prompt.
            reduction: "mean" or "sum" of the values of a prompt's pairs.
        """
        of_pairs = any(term.variant.reads == "pairs" for term in self.terms)
        paired = pair_lists(lists, which, reduction, generator) if of_pairs else None

        def value(term: Term) -> torch.Tensor:
            if term.variant.reads == "lists" or paired is None:
                return term.loss(lists, **term.hyper)
            return paired.by_prompt(term.loss(paired.pairs, **term.hyper))

        return _weighted_sum([(term, value(term)) for term in self.terms], weights)

    def rewards(self, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the first term's own rewards of both sides, each (pairs,); None where the reference defines them."""
        chosen, rejected = self.answer_rewards(pairs.chosen), self.answer_rewards(pairs.rejected)
        return None if chosen is None or rejected is None else (chosen, rejected)

    def answer_rewards(self, answers: Side) -> torch.Tensor | None:
        """Return the first term's own reward of every answer, (answers,); None where the reference defines it."""
        if self.needs_reference or self.reference_free or not self.terms or self.terms[0].variant.reward is None:
            return None
        return self.terms[0].variant.reward(answers, **self.terms[0].hyper).detach()

    def token_sums(self, pairs: Pairs) -> dict[str, torch.Tensor]:
        """Return what each term averages over the batch's chosen tokens, summed by pair, (pairs,), by label.

        Terms without such a part are left out.
        """
        return {t.label: t.variant.token_sums(pairs, **t.hyper).detach() for t in self.terms if t.variant.token_sums}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the running state of every stateful term, by label, as plain numbers."""
        return {term.label: term.loss.state_dict() for term in self.terms if term.variant.stateful}  # type: ignore[attr-defined]

    def load_state_dict(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Restore a state that `state_dict` returned.

        Raises:
            ValueError: the state belongs to another mixture.
        """
        stateful = {term.label: term.loss for term in self.terms if term.variant.stateful}
        if set(state) != set(stateful):
            raise ValueError(
                f"The checkpoint has loss state for {sorted(state)}, but this run's losses keep state for "
                f"{sorted(stateful)}. Resume with the same loss_type."
            )
        for label, loss in stateful.items():
            loss.load_state_dict(state[label])  # type: ignore[attr-defined]


def _weighted_sum(
    values: Sequence[tuple[Term, torch.Tensor]], weights: torch.Tensor | None
) -> tuple[torch.Tensor | float, dict[str, torch.Tensor]]:
    """Sum of the terms' means, and each mean, from each term's values of pairs or of prompts."""
    total: torch.Tensor | float = 0.0
    per_term = {}
    for term, each in values:
        weighted = each if weights is None else each * weights
        # In evaluation a process may have been given nothing but repeated pairs, which are not in the batch.
        mean = weighted.mean() if weighted.numel() else weighted.sum()
        per_term[term.label] = mean.detach()
        total = total + mean * term.weight
    return total, per_term
