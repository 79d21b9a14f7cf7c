"""Generate answers to prompts and score them, the work split over the processes of a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor

from .. import _trl
from ..distributed.agreement import Agreement

UNSCORED = -100
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """How answers are chosen."""

    temperature: float
    """0 takes the most likely token."""
    max_new_tokens: int
    seed: int
    """With the number of a prompt, of the random numbers for its answer."""


@dataclass(frozen=True)
class Share:
    """The prompts of one process, by number, from the longest to the shortest.

    Every process has equally many, and runs equally many batches: what is missing is filled up with other prompts,
    whose answers are dropped.
    """

    prompts: Sequence[Ids]
    """All prompts of the run."""
    numbers: list[int]
    real: int
    """How many of `numbers` come first that are no fillers."""

    @classmethod
    def of(cls, prompts: Sequence[Ids], rank: int, processes: int) -> Share:
        """Split prompts over processes so that each has long ones and short ones."""
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        mine = order[rank::processes]
        size = -(-len(prompts) // processes)
        return cls(prompts, mine + order[:1] * (size - len(mine)), len(mine))

    def batches(self, size: int) -> Iterator[list[int]]:
        """The numbers of the prompts of each batch."""
        for start in range(0, len(self.numbers), size):
            yield self.numbers[start : start + size]


@dataclass(frozen=True)
class Runner:
    """Runs the policy and its reference on one share of the prompts.

    Args:
        speaker: the policy.
        reference: what to call for a forward of a live reference; None without.
        agreement: of all processes.
        share: the prompts of this process.
        batch_size: rows of a forward.
        eos_ids: tokens that end an answer.
        pad_id: the token that fills rows up.
        sharded: whether the forwards of policy or reference gather weights.
    """

    speaker: _trl.Speaker
    reference: Callable[..., Any] | None
    agreement: Agreement
    share: Share
    batch_size: int
    eos_ids: Sequence[int]
    pad_id: int
    sharded: bool

    @property
    def device(self) -> torch.device:
        """Where the inputs of the models are."""
        return self.agreement.device

    def answers(self, sampling: Sampling) -> dict[int, list[int]]:
        """Generate an answer to each prompt of the share, by the prompt's number; what follows an EOS is padding."""

        def work(turn: Callable[[], None]) -> dict[int, list[int]]:
            found: dict[int, list[int]] = {}
            for numbers in self.share.batches(self.batch_size):
                found |= dict(zip(numbers, self._generate(numbers, sampling, turn), strict=True))
            return found

        if self.speaker.in_lockstep:
            return self.agreement.run_in_lockstep(work, self._idle)
        return self.agreement.run(lambda: work(_no_turn))

    def each_batch(
        self, answers: dict[int, list[int]], score: Callable[[list[int], Scored, Callable[[], None]], None]
    ) -> None:
        """Score the answers of the share, a batch at a time; `score` is given numbers, inputs, and the turn to take."""

        def work(turn: Callable[[], None]) -> None:
            for numbers in self.share.batches(self.batch_size):
                rows = [(self.share.prompts[number], answers[number]) for number in numbers]
                score(numbers, Scored.of(rows, self.pad_id, self.device, self.speaker.causal), turn)

        if self.sharded:
            self.agreement.run_in_lockstep(work, self._idle)
        else:
            self.agreement.run(lambda: work(_no_turn))

    def _generate(self, numbers: list[int], sampling: Sampling, turn: Callable[[], None]) -> list[list[int]]:
        ids, mask = pad_left([self.share.prompts[number] for number in numbers], self.pad_id, self.device)
        settings = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=list(self.eos_ids) or None,
            pad_token_id=self.pad_id,
        )
        noise = [GumbelNoise(sampling, numbers, self.device)] if sampling.temperature > 0 else []
        found = self.speaker.generate(settings, noise, turn, input_ids=ids, attention_mask=mask)
        return found[:, ids.size(1) :].tolist()

    def _idle(self) -> None:
        token = torch.tensor([[self.pad_id]], device=self.device)
        self.speaker.forward(input_ids=token, attention_mask=torch.ones_like(token), use_cache=False)


def _no_turn() -> None:
    """Nothing to wait for."""


class GumbelNoise(LogitsProcessor):
    """Makes the most likely token a sample from the softmax of logits / temperature.

    Each prompt has random numbers of its own, so an answer depends neither on the batch nor on the other processes, and
    no generator of the run is touched. Unlike `torch.multinomial` it does not raise on NaN, which on a GPU would end
    the run.
    """

    def __init__(self, sampling: Sampling, numbers: Sequence[int], device: torch.device) -> None:
        self.temperature = sampling.temperature
        seeds = [((sampling.seed << 20) + number) % (1 << 63) for number in numbers]
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Add noise to logits, (rows, vocabulary)."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        tiny = torch.finfo(torch.float32).tiny
        return scores.float() / self.temperature - noise.clamp(min=tiny).log()


@dataclass(frozen=True)
class Scored:
    """Prompts and answers as one batch; prompts end, and answers begin, in the same column of all rows."""

    inputs: dict[str, torch.Tensor]
    """`input_ids` and `attention_mask`, each (rows, tokens), and `position_ids` where the model takes them."""
    mask: torch.Tensor
    """(rows, answer tokens) bool, true on the tokens of answers."""
    keeps_logits: bool
    """Whether the model can be asked for the last logits alone."""

    @classmethod
    def of(cls, rows: Sequence[tuple[Ids, Sequence[int]]], pad_id: int, device: torch.device, causal: Any) -> Scored:
        """Lay out rows of a prompt and an answer, at least one token each."""
        prompts, prompt_mask = pad_left([prompt for prompt, _ in rows], pad_id, device)
        width = max(len(answer) for _, answer in rows)
        answers = torch.full((len(rows), width), pad_id, device=device)
        for row, (_, answer) in zip(answers, rows, strict=True):
            row[: len(answer)] = torch.tensor(answer, device=device)
        lengths = torch.tensor([len(answer) for _, answer in rows], device=device)
        mask = torch.arange(width, device=device) < lengths.unsqueeze(1)
        attention = torch.cat([prompt_mask, mask.long()], dim=1)
        inputs = {"input_ids": torch.cat([prompts, answers], dim=1), "attention_mask": attention}
        taken = inspect.signature(causal.forward).parameters
        if "position_ids" in taken:
            inputs["position_ids"] = (attention.cumsum(dim=1) - 1).clamp(min=0)
        return cls(inputs, mask, "logits_to_keep" in taken)

    @property
    def answers(self) -> torch.Tensor:
        """The tokens of answers, (rows, answer tokens)."""
        return self.inputs["input_ids"][:, -self.mask.size(1) :]

    def token_logps(self, forward: Callable[..., Any]) -> torch.Tensor:
        """Log-probs of the answers' tokens, (rows, answer tokens) float32, 0 on padding.

        Args:
            forward: calls a model with TRL's fused head.
        """
        labels = torch.full_like(self.inputs["input_ids"], UNSCORED)
        labels[:, -self.mask.size(1) :] = self.answers.masked_fill(~self.mask, UNSCORED)
        output = forward(**self.inputs, labels=labels, fused_lm_head=True, use_cache=False)
        return output.log_probs[:, -self.mask.size(1) :].float() * self.mask

    def logits(self, forward: Callable[..., Any]) -> torch.Tensor:
        """The logits that answers were chosen from, (rows, answer tokens, vocabulary)."""
        width = self.mask.size(1)
        keep = {"logits_to_keep": width + 1} if self.keeps_logits else {}
        return forward(**self.inputs, use_cache=False, **keep).logits[:, -width - 1 : -1]


def pad_left(rows: Sequence[Ids], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids as one tensor, padded on the left, and its attention mask, each (rows, tokens)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
