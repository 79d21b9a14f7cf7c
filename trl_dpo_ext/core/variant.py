"""Defines `LossVariant`: one declared loss, what it reads, and its hyperparameters.

`register_loss` in registry.py makes them; flags, validation, tables and parametrized tests derive from them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .columns import COLUMNS_OF_SCORES, Column
from .hyperparameters import DeclaredHyper
from .lists import Lists, Order
from .pairs import Need, Pairs
from .verification import EXPERIMENTAL, Verification

Reads = Literal["pairs", "lists"]
"""What a variant is a function of: `Pairs`, with one value per pair, or `Lists`, with one value per prompt."""

Reward = Callable[..., torch.Tensor]
"""`reward(side, **hyperparameters) -> (pairs,)`: the reward a variant implies for one side."""

TokenSums = Callable[..., torch.Tensor]
"""`sums(pairs, **hyperparameters) -> (pairs,)`: what a variant averages over the chosen tokens of its batch, summed by
pair."""

ScoreBounds = Callable[..., Column]
"""`bounds(**hyperparameters) -> Column`: what the scores of lists mean to a variant and which values they may hold."""


@dataclass(frozen=True, slots=True)
class LossVariant:
    """One declared loss variant. Calling it gives one value per pair, or per prompt for a variant that reads lists.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-50.0], rejected=[-52.0], ref_chosen=[-51.0], ref_rejected=[-51.0])
        >>> get_loss("dpop")(pairs, beta=0.1, dpop_lambda=50.0)
        tensor([0.5981])
    """

    name: str
    function: Callable[..., Any]
    """`f(pairs, **hyper) -> (pairs,)`, or a class whose instances are such functions and hold a running state; for a
    variant that reads lists, `f(lists, **hyper) -> (prompts,)`."""
    paper: str | None
    """arXiv id, or a URL for a formula that was published elsewhere."""
    needs: Need
    columns: Mapping[str, Column]
    """Dataset columns of pairs that it reads, with their meaning and bounds. On lists, the scores of the answers take
    the place of `score_chosen`, `score_rejected`, and `margin`."""
    independent_pairs: bool
    """The value of a pair depends on that pair alone."""
    order_preserving: bool
    """Value i belongs to pair i. A loss that sorts its batch does not preserve the order and takes no pair weights."""
    f_divergence: bool
    """Reads the score of an f-divergence instead of the plain log-ratio."""
    shift_invariant: bool
    """A shift of the reference log-probs that both sides share, per completion or per token, does not change it."""
    hyperparameters: tuple[DeclaredHyper, ...]
    aliases: tuple[str, ...]
    verification: Verification
    reward: Reward | None
    token_sums: TokenSums | None
    """For a variant with a part that is a mean over the chosen tokens of the batch, the same for every pair."""
    from_trl: bool
    reads: Reads = "pairs"
    order: Order | None = None
    """What a variant that reads lists must know of the order of the answers; None for one that reads pairs."""
    score_bounds: ScoreBounds | None = None
    fewest_pairs: int = 2
    """Pairs of a batch below which its statistics say little, for a variant that declares `Need.BATCH`."""

    @property
    def stateful(self) -> bool:
        """Return True if it keeps a running state; `make` creates a fresh one for every run."""
        return Need.STATE in self.needs

    @property
    def needs_reference(self) -> bool:
        """Return True if it reads anything of a reference model."""
        return bool(self.needs.of_reference)

    @property
    def experimental(self) -> bool:
        """Return True if neither its paper nor its authors' code was seen."""
        return self.verification in EXPERIMENTAL

    @property
    def doc(self) -> str:
        """Full docstring: what it does, formula, when to use it, notes."""
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.split("\n", 1)[0]

    @property
    def owned(self) -> tuple[DeclaredHyper, ...]:
        """Hyperparameters that belong to the variant and become flags."""
        return tuple(parameter for parameter in self.hyperparameters if not parameter.shared)

    def make(self) -> Callable[..., torch.Tensor]:
        """Return the loss as a function of pairs; for a stateful variant, a new instance with a fresh state."""
        return self.function() if self.stateful else self.function

    def __call__(self, batch: Pairs | Lists, **hyper: Any) -> torch.Tensor:
        """Compute one value per pair, shape (pairs,), or per prompt, shape (prompts,), in the dtype of the log-probs.

        A variant that reads lists takes each pair as a list of two answers.

        Raises:
            ValueError: the batch lacks something the variant needs, or is of lists where the variant reads pairs; or a
                hyperparameter is missing, unknown or out of range.
        """
        if isinstance(batch, Lists) and self.reads == "pairs":
            raise ValueError(f"loss_type {self.name!r} reads pairs: make them of the lists with pairs_of(lists).")
        of_scores = isinstance(batch, Lists)
        columns = [name for name in self.columns if not (of_scores and name in COLUMNS_OF_SCORES)]
        missing = batch.missing(self.needs, columns)
        if missing:
            raise ValueError(f"loss_type {self.name!r} needs {'; '.join(missing)}.")
        problems = self.check(hyper)
        if problems:
            raise ValueError(" ".join(problems))
        return self.make()(self.read(batch), **hyper)

    def read(self, batch: Pairs | Lists) -> Pairs | Lists:
        """Return the batch as the variant reads it: pairs as lists of two answers, for one that reads lists."""
        if self.reads == "lists" and not isinstance(batch, Lists):
            return Lists.of_pairs(batch, scored=self.order == "scores")
        return batch

    def check(self, hyper: dict[str, Any]) -> list[str]:
        """Return every problem of these hyperparameters: missing, unknown, out of range, or mutually exclusive."""
        declared = {parameter.name: parameter for parameter in self.hyperparameters}
        problems = [
            f"loss_type {self.name!r} has no hyperparameter {name!r}; it has "
            f"{', '.join(declared) or 'none'}. Remove it."
            for name in hyper
            if name not in declared
        ]
        for name, parameter in declared.items():
            if name not in hyper:
                meaning = "" if parameter.shared else f": {parameter.hyper.meaning}"
                problems += (
                    [f"loss_type {self.name!r} needs {name}{meaning}. Pass it by keyword."]
                    if parameter.required
                    else []
                )
                continue
            problem = parameter.problem(hyper[name], self.name)
            problems += [problem] if problem else []
            other = declared.get(parameter.hyper.excludes or "")
            if other and hyper[name] != parameter.default and hyper.get(other.name, other.default) != other.default:
                problems.append(
                    f"{name} and {other.name} are mutually exclusive for loss_type {self.name!r}. Remove one of them."
                )
        return problems
