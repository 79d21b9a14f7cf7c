"""Measures of sampled answers: how long they are, whether they end, how much they repeat. Token ids, not text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """A sampled answer."""

    ids: tuple[int, ...]
    """Its tokens, with the EOS that ended it."""
    ended: bool
    """Whether it ended with an EOS before the limit."""

    @classmethod
    def of(cls, generated: Sequence[int], eos_ids: Collection[int]) -> Answer:
        """Cut what was generated behind the first EOS."""
        end = next((place for place, token in enumerate(generated) if token in eos_ids), None)
        return cls(tuple(generated if end is None else generated[: end + 1]), end is not None)

    @property
    def content(self) -> tuple[int, ...]:
        """The tokens before the EOS."""
        return self.ids[:-1] if self.ended else self.ids

    @property
    def length(self) -> int:
        """Number of tokens before the EOS."""
        return len(self.content)

    @property
    def repetition(self) -> float:
        """1 - distinct / all sequences of four tokens; 0 with fewer tokens."""
        return 1.0 - _distinct(_windows(self.content, 4))


def summarize(answers: Sequence[Answer]) -> dict[str, float]:
    """Mean length, share of ended answers, mean repetition, and share of distinct pairs of tokens in all answers."""
    count = len(answers)
    pairs = [pair for answer in answers for pair in _windows(answer.content, 2)]
    return {
        "length": sum(answer.length for answer in answers) / count,
        "eos_rate": sum(answer.ended for answer in answers) / count,
        "repetition": sum(answer.repetition for answer in answers) / count,
        "distinct_2": _distinct(pairs),
    }


def _windows(tokens: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)]


def _distinct(windows: Sequence[tuple[int, ...]]) -> float:
    """Share of distinct sequences; 1 if there are none."""
    return len(set(windows)) / len(windows) if windows else 1.0
