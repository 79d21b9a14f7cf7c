"""Defines `Pairs`, the input of every loss variant: a batch of preference pairs, reduced to log-probabilities.

Words: a *pair* has a chosen and a rejected side; `logps` are summed log-probabilities of one completion, in nats;
`token_logps` are the same per token. Nothing here knows a trainer, a device or a configuration.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .numerics import clamp_min

# Optional tensors are typed as tensors: a variant's declared needs are checked before it runs, so it may rely on them.
_ABSENT: Any = None


class Need(enum.Flag):
    """What a loss variant reads beyond the policy's summed log-probs. A mixture's needs decide what is loaded."""

    NONE = 0
    REFERENCE = enum.auto()
    """Summed reference log-probs: from a live model or stored ones."""
    LENGTHS = enum.auto()
    """Completion lengths in tokens."""
    TOKENS = enum.auto()
    """The policy's log-prob of every completion token."""
    TOKEN_REFERENCE = enum.auto()
    """The reference's log-prob of every completion token."""
    BATCH = enum.auto()
    """Statistics over the batch, which are meaningless for a batch of one pair."""
    STATE = enum.auto()
    """A running state, saved with checkpoints and frozen in evaluation."""
    REF_ENTROPY = enum.auto()
    """Mean entropy of the reference's next-token distribution over a completion."""
    TOKEN_KL = enum.auto()
    """KL divergence between policy and reference over the vocabulary, at every completion token."""

    @property
    def of_reference(self) -> Need:
        """The part of these needs that comes from a reference model."""
        return self & (Need.REFERENCE | Need.TOKEN_REFERENCE | Need.REF_ENTROPY | Need.TOKEN_KL)


@dataclass(frozen=True, slots=True)
class NeedInfo:
    """Name of a need, and the tensor that serves it."""

    label: str
    """Short name, for tables."""
    tensor: str = ""
    """Field of `Side` that serves it; empty where no tensor does."""
    remedy: str = ""
    """What is missing and how to pass it, where `tensor` is None."""
    of_lists: str = ""
    """The same for lists, where it differs."""
    live: str = ""
    """What a reference model must be run for in every step, because no store holds it; empty otherwise."""


NEEDS: dict[Need, NeedInfo] = {
    Need.REFERENCE: NeedInfo(
        "reference",
        "ref_logps",
        "reference log-probs: pass ref_chosen= and ref_rejected=",
        of_lists="reference log-probs: pass ref_logps=",
    ),
    Need.LENGTHS: NeedInfo(
        "lengths",
        "lengths",
        "completion lengths: pass chosen_lengths= and rejected_lengths=",
        of_lists="completion lengths: pass lengths=",
    ),
    Need.TOKENS: NeedInfo("tokens", "token_logps", "log-probs per token: build Side with token_logps= and mask="),
    Need.TOKEN_REFERENCE: NeedInfo(
        "reference per token", "ref_token_logps", "reference log-probs per token: build Side with ref_token_logps="
    ),
    Need.BATCH: NeedInfo("batch"),
    Need.STATE: NeedInfo("state"),
    Need.REF_ENTROPY: NeedInfo(
        "reference entropy",
        "ref_entropy",
        "the reference's entropy: build Side with ref_entropy=",
        live="the reference's entropy",
    ),
    Need.TOKEN_KL: NeedInfo(
        "KL per token",
        "token_kl",
        "the divergence of every token: build Side with token_kl=",
        live="the reference's distribution over the vocabulary",
    ),
}
"""Information about every need, in the order of tables."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One side (chosen or rejected) of every pair.

    `token_logps`, `mask`, `ref_token_logps` and `token_kl` have shape (pairs, tokens), zero or False outside the
    completion; all other tensors have shape (pairs,). `lengths` counts completion tokens, EOS included.
    """

    logps: torch.Tensor
    ref_logps: torch.Tensor = _ABSENT
    score: torch.Tensor = _ABSENT
    """f'(policy / reference) of the chosen divergence; the log-ratio for reverse KL, which is the default."""
    lengths: torch.Tensor = _ABSENT
    token_logps: torch.Tensor = _ABSENT
    mask: torch.Tensor = _ABSENT
    ref_token_logps: torch.Tensor = _ABSENT
    ref_entropy: torch.Tensor = _ABSENT
    """Mean over the completion of the reference's token entropy, divided by log(vocabulary size): in [0, 1]."""
    token_kl: torch.Tensor = _ABSENT
    """KL(reference || policy) of the next token, in nats."""

    def __post_init__(self) -> None:
        if self.score is None and self.ref_logps is not None:
            object.__setattr__(self, "score", self.logratio)

    @property
    def logratio(self) -> torch.Tensor:
        """log(policy / reference), shape (pairs,).

        Raises:
            ValueError: no reference log-probs were given.
        """
        if self.ref_logps is None:
            raise ValueError(NEEDS[Need.REFERENCE].remedy)
        return self.logps - self.ref_logps

    @property
    def avg_logps(self) -> torch.Tensor:
        """Mean log-prob per completion token, shape (pairs,). An empty completion counts as one token."""
        return self.logps / clamp_min(self.lengths, 1)

    @property
    def avg_logratio(self) -> torch.Tensor:
        """Log-ratio per completion token, shape (pairs,). An empty completion counts as one token.

        Raises:
            ValueError: no reference log-probs were given.
        """
        return self.logratio / clamp_min(self.lengths, 1)

    @property
    def avg_score(self) -> torch.Tensor:
        """Score per completion token, shape (pairs,). An empty completion counts as one token."""
        return self.score / clamp_min(self.lengths, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """A batch of preference pairs, the input of a loss variant."""

    chosen: Side
    rejected: Side
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Extra dataset columns a variant asked for (`margin`, `score_chosen`, ...), each of shape (pairs,), or (pairs,
    tokens) where the column is declared per token."""
    gather: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach
    """Collects a detached (pairs,) tensor over all ranks, shape (pairs of all ranks,). Alone: the tensor itself."""
    training: bool = True
    """False in evaluation, where a running state is read but not updated."""
    rank: int = 0
    """Index of this process."""
    offset: int | None = None
    """Index of the first of this process's pairs among what `gather` returns; None for rank x pairs."""
    progress: float = 0.0
    """Share of the training steps that are done, from 0 to 1, for losses with a schedule."""

    @property
    def own(self) -> slice:
        """Where this process's pairs stand in what `gather` returns."""
        pairs = self.chosen.logps.numel()
        start = self.rank * pairs if self.offset is None else self.offset
        return slice(start, start + pairs)

    @property
    def margin(self) -> torch.Tensor:
        """Score of the chosen side minus score of the rejected side, shape (pairs,)."""
        return self.chosen.score - self.rejected.score

    @property
    def available(self) -> Need:
        """Needs that these pairs provide."""
        available = Need.NONE
        for need, info in NEEDS.items():
            if not info.tensor or all(getattr(side, info.tensor) is not None for side in (self.chosen, self.rejected)):
                available |= need
        return available

    def missing(self, needs: Need, columns: Sequence[str] = ()) -> list[str]:
        """Return one line for each need or column that these pairs do not provide."""
        absent = needs & ~self.available
        lines = [info.remedy for need, info in NEEDS.items() if need in absent]
        return lines + missing_columns(self.columns, columns)

    @classmethod
    def from_logps(
        cls,
        *,
        chosen: torch.Tensor | Sequence[float],
        rejected: torch.Tensor | Sequence[float],
        ref_chosen: torch.Tensor | Sequence[float] | None = None,
        ref_rejected: torch.Tensor | Sequence[float] | None = None,
        chosen_lengths: torch.Tensor | Sequence[int] | None = None,
        rejected_lengths: torch.Tensor | Sequence[int] | None = None,
        columns: Mapping[str, torch.Tensor | Sequence[float]] | None = None,
    ) -> Pairs:
        """Build pairs from summed log-probs, for notebooks and tests.

        Args:
            chosen, rejected: summed log-probs of the policy in nats, shape (pairs,).
            ref_chosen, ref_rejected: the same of the reference; not needed by reference-free variants.
            chosen_lengths, rejected_lengths: completion tokens, shape (pairs,); needed by averaging variants.
            columns: extra values per pair, such as `margin`.

        Raises:
            ValueError: the tensors do not have one common shape (pairs,).

        Example:
            >>> from trl_dpo_ext import Pairs, get_loss
            >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
            >>> get_loss("sigmoid")(pairs, beta=0.1)
            tensor([0.5981])
        """
        given = {
            "chosen": chosen,
            "rejected": rejected,
            "ref_chosen": ref_chosen,
            "ref_rejected": ref_rejected,
            "chosen_lengths": chosen_lengths,
            "rejected_lengths": rejected_lengths,
        }
        tensors: dict[str, Any] = {name: torch.as_tensor(value) for name, value in given.items() if value is not None}
        extra = {name: torch.as_tensor(value) for name, value in (columns or {}).items()}
        shape = tensors["chosen"].shape
        named = [*tensors.items(), *extra.items()]
        wrong = [f"{name} {tuple(t.shape)}" for name, t in named if t.dim() != 1 or t.shape != shape]
        if wrong:
            raise ValueError(f"Every tensor must have the shape (pairs,) = {tuple(shape)}; got {', '.join(wrong)}.")
        chosen_side, rejected_side = (
            Side(tensors[side], tensors.get(f"ref_{side}"), lengths=tensors.get(f"{side}_lengths"))  # type: ignore[arg-type]
            for side in ("chosen", "rejected")
        )
        return cls(chosen_side, rejected_side, columns=extra)


def missing_columns(given: Mapping[str, Any], wanted: Sequence[str]) -> list[str]:
    """Return one line for each wanted column that is not given."""
    return [f"column {name!r}: pass columns={{{name!r}: ...}}" for name in wanted if name not in given]


def implicit_reward(logps: torch.Tensor, ref_logps: torch.Tensor, *, beta: float) -> torch.Tensor:
    """Compute the reward implied by a DPO policy, up to a constant per prompt: `beta * (logps - ref_logps)`.

    Args:
        logps: summed log-probs of the policy in nats, shape (pairs,).
        ref_logps: the same of the reference.
        beta: strength of the KL constraint, the `beta` the policy is trained with.

    Returns:
        Rewards in nats times beta, shape (pairs,).

    References:
        arXiv 2305.18290, section 4 (the reparameterized reward).

    Example:
        >>> implicit_reward(torch.tensor([-50.0]), torch.tensor([-51.0]), beta=0.1)
        tensor([0.1000])
    """
    return beta * (logps - ref_logps)
