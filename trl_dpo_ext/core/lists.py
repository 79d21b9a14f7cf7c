"""Defines `Lists`, the input of a loss over the answers to one prompt: ragged lists of scored answers, as log-probs.

Words: a *list* is one prompt with K >= 2 *answers*, K different from prompt to prompt; `scores` order the answers of a
prompt, higher is better. Answers stand flat, one prompt's after another's, with the index of their prompt.

Tests in tests/unit/core/test_lists.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import torch

from .pairs import NEEDS, Need, Pairs, Side, missing_columns
from .segments import segment_logsumexp, segment_max, segment_mean, segment_sizes, segment_sum

Order = Literal["best", "ranks", "scores"]
"""What is known of the answers to a prompt, each more than the one before: which are best; their ranks; or scores,
whose differences mean something, too."""
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """A batch of lists of answers, the input of a loss variant that reads lists."""

    answers: Side
    """Every answer; the tensors have shape (answers,) or (answers, tokens)."""
    prompt: torch.Tensor
    """Index of each answer's prompt in the batch, ascending from 0 without gaps, int64, shape (answers,)."""
    scores: torch.Tensor
    """How good each answer is, higher is better, shape (answers,): a score; minus the rank; or 1 for the best answer
    and 0 for the others."""
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Extra dataset columns, each of shape (prompts,)."""
    gather: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach
    """Collects a detached (prompts,) tensor over all ranks, shape (prompts of all ranks,). Alone: the tensor itself."""
    training: bool = True
    """False in evaluation."""
    rank: int = 0
    """Index of this process."""
    progress: float = 0.0
    """Share of the training steps that are done, from 0 to 1, for losses with a schedule."""

    count: int | None = None
    """Number of prompts, where it is known: to read it from `prompt` waits for the GPU."""

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        if self.count is None:  # read once
            object.__setattr__(self, "count", int(self.prompt[-1]) + 1 if self.prompt.numel() else 0)
        return self.count  # type: ignore[return-value]

    @property
    def sizes(self) -> torch.Tensor:
        """Number of answers to each prompt, int64, shape (prompts,)."""
        return segment_sizes(self.prompt, self.prompts)

    @property
    def same_prompt(self) -> torch.Tensor:
        """Whether two answers are to one prompt, bool, shape (answers, answers)."""
        return self.prompt.unsqueeze(1) == self.prompt

    @property
    def better(self) -> torch.Tensor:
        """Whether an answer (row) is better than another one (column) to its prompt, bool, (answers, answers).

        A batch has few answers, so that this is small, and unlike a list of pairs its shape is known without waiting
        for the GPU.
        """
        return self.same_prompt & (self.scores.unsqueeze(1) > self.scores)

    @property
    def tied(self) -> torch.Tensor:
        """Whether all answers of a prompt have one score, bool, shape (prompts,): it has no order to learn."""
        return self._largest(self.scores) == -self._largest(-self.scores)

    @property
    def best(self) -> torch.Tensor:
        """Whether each answer has the highest score of its prompt, bool, shape (answers,); several may."""
        return self.scores == self._largest(self.scores)[self.prompt]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum values of answers by prompt: (answers,) to (prompts,)."""
        return segment_sum(values, self.prompt, self.prompts)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average values of answers by prompt: (answers,) to (prompts,)."""
        return segment_mean(values, self.prompt, self.prompts)

    def _largest(self, values: torch.Tensor) -> torch.Tensor:
        return segment_max(values, self.prompt, self.prompts)

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Return the largest value of each prompt, without gradient: (answers,) to (prompts,)."""
        return self._largest(values)

    def zero_if_tied(self, values: torch.Tensor) -> torch.Tensor:
        """Return values of prompts with 0, and no gradient, for those whose answers are all tied: (prompts,)."""
        return values.masked_fill(self.tied, 0)

    def logsumexp(self, values: torch.Tensor) -> torch.Tensor:
        """Return log(sum(exp(values))) of each prompt: (answers,) to (prompts,)."""
        return segment_logsumexp(values, self.prompt, self.prompts)

    @property
    def available(self) -> Need:
        """Needs that these lists provide."""
        available = Need.NONE
        for need, info in NEEDS.items():
            if not info.tensor or getattr(self.answers, info.tensor) is not None:
                available |= need
        return available

    def missing(self, needs: Need, columns: Sequence[str] = ()) -> list[str]:
        """Return one line for each need or column that these lists do not provide."""
        absent = needs & ~self.available
        lines = [info.of_lists or info.remedy for need, info in NEEDS.items() if need in absent]
        return lines + missing_columns(self.columns, columns)

    @classmethod
    def from_logps(
        cls,
        *,
        logps: torch.Tensor | Sequence[float],
        prompt: torch.Tensor | Sequence[int],
        scores: torch.Tensor | Sequence[float],
        ref_logps: torch.Tensor | Sequence[float] | None = None,
        lengths: torch.Tensor | Sequence[int] | None = None,
        columns: Mapping[str, torch.Tensor | Sequence[float]] | None = None,
    ) -> Lists:
        """Build lists from summed log-probs, for notebooks and tests.

        Args:
            logps: summed log-probs of the policy in nats, shape (answers,).
            prompt: index of each answer's prompt, ascending from 0, shape (answers,).
            scores: how good each answer is, higher is better, shape (answers,).
            ref_logps: summed log-probs of the reference; not needed by reference-free variants.
            lengths: completion tokens, shape (answers,); needed by averaging variants.
            columns: extra values per prompt, shape (prompts,).

        Raises:
            ValueError: the tensors do not have one common shape, or `prompt` does not ascend from 0 in steps of 1.

        Example:
            >>> from trl_dpo_ext import Lists, get_loss
            >>> lists = Lists.from_logps(logps=[-20.0, -18.0, -25.0], ref_logps=[-19.5, -19.0, -22.0],
            ...                          prompt=[0, 0, 0], scores=[7.0, 7.0, 4.0])
            >>> get_loss("pl")(lists, beta=0.1)
            tensor([1.0890])
        """
        given = {"logps": logps, "prompt": prompt, "scores": scores, "ref_logps": ref_logps, "lengths": lengths}
        tensors: dict[str, Any] = {name: torch.as_tensor(value) for name, value in given.items() if value is not None}
        tensors |= {name: t.float() for name in ("logps", "scores") if not (t := tensors[name]).is_floating_point()}
        shape = tensors["logps"].shape
        wrong = [f"{name} {tuple(t.shape)}" for name, t in tensors.items() if t.dim() != 1 or t.shape != shape]
        if wrong:
            raise ValueError(f"Every tensor must have the shape (answers,) = {tuple(shape)}; got {', '.join(wrong)}.")
        index = tensors["prompt"].long()
        steps = index.diff(prepend=index.new_tensor([-1]))
        if index.numel() and (steps[0] != 1 or not bool(((steps == 0) | (steps == 1)).all())):
            raise ValueError(
                f"prompt must ascend from 0 in steps of 0 or 1; got {index.tolist()}. "
                "Give the answers of a prompt one after another."
            )
        side = Side(tensors["logps"], tensors.get("ref_logps"), lengths=tensors.get("lengths"))  # type: ignore[arg-type]
        lists = cls(side, index, tensors["scores"], {n: torch.as_tensor(v) for n, v in (columns or {}).items()})
        wrong = [f"{name} {tuple(t.shape)}" for name, t in lists.columns.items() if t.shape != (lists.prompts,)]
        if wrong:
            raise ValueError(
                f"Every column must have the shape (prompts,) = ({lists.prompts},); got {', '.join(wrong)}."
            )
        return lists

    @classmethod
    def of_pairs(cls, pairs: Pairs, *, scored: bool = False) -> Lists:
        """Build one list of two answers from each pair, the chosen one first.

        Args:
            pairs: the batch.
            scored: take the columns `score_chosen` and `score_rejected` for the scores, which are 1 and 0 otherwise.
        """
        count = pairs.chosen.logps.numel()
        columns = pairs.columns
        if scored:
            scores = interleave(columns["score_chosen"], columns["score_rejected"])
        else:
            scores = 1.0 - torch.arange(2 * count, device=pairs.chosen.logps.device) % 2
        return cls(
            merge_sides(pairs.chosen, pairs.rejected),
            torch.arange(count, device=scores.device).repeat_interleave(2),
            scores,
            columns,
            gather=pairs.gather,
            training=pairs.training,
            rank=pairs.rank,
            progress=pairs.progress,
            count=count,
        )


def interleave(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the rows of two tensors in turn; of two widths, the narrower tensor is filled up with zeros."""
    if first.dim() > 1 and first.shape[1] != second.shape[1]:
        width = max(first.shape[1], second.shape[1])
        first, second = (torch.nn.functional.pad(t, (0, width - t.shape[1])) for t in (first, second))
    return torch.stack((first, second), dim=1).flatten(0, 1)


def merge_sides(chosen: Side, rejected: Side) -> Side:
    """Return both sides of every pair as answers, in turn, of what both sides have."""
    both = {f.name: (getattr(chosen, f.name), getattr(rejected, f.name)) for f in fields(Side)}
    return Side(**{name: interleave(a, b) for name, (a, b) in both.items() if a is not None and b is not None})


def take_answers(answers: Side, index: torch.Tensor) -> Side:
    """Return the answers of that index, (pairs,) or (pairs, tokens), as one side of pairs."""
    return Side(
        **{f.name: t.index_select(0, index) for f in fields(Side) if (t := getattr(answers, f.name)) is not None}
    )
