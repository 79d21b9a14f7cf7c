"""Random token ids with the lengths of real preference data."""

from __future__ import annotations

import math
import random
from typing import Any

# Median and mean of a log-normal distribution, in tokens. Anthropic's HH harmless test split with SmolLM2's tokenizer
# has prompts of median 122, mean 149 and at most 880, completions of mean 42 and 52; their medians here follow from an
# assumed sigma of 0.8. UltraFeedback's medians are about 170 and 240; its means here are assumed.
LENGTHS: dict[str, dict[str, tuple[float, float]]] = {
    "hh": {"prompt": (122, 149), "chosen": (30, 42), "rejected": (38, 52)},
    "ultrafeedback": {"prompt": (170, 220), "chosen": (240, 290), "rejected": (240, 290)},
    "short-prompts": {"prompt": (8, 9), "chosen": (350, 380), "rejected": (350, 380)},
}
LONGEST = {"prompt": 880, "chosen": 1024, "rejected": 1024}
TURN = (25, 30)
"""Of a user's further turn in a conversation; median and mean, assumed."""

Row = dict[str, list[int]]
SIDES = ("chosen_ids", "rejected_ids")


class Tokens:
    """Draws random tokens."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        self.vocabulary, self.random = vocabulary, random.Random(seed)

    def exactly(self, length: int) -> list[int]:
        """So many tokens."""
        return [self.random.randrange(5, self.vocabulary) for _ in range(length)]

    def about(self, quantiles: tuple[float, float], longest: int) -> list[int]:
        """As many tokens as a log-normal distribution of this median and mean gives, between 1 and `longest`."""
        median, mean = quantiles
        length = self.random.lognormvariate(math.log(median), math.sqrt(2 * math.log(mean / median)))
        return self.exactly(min(max(round(length), 1), longest))

    def part(self, lengths: str, part: str) -> list[int]:
        """A prompt, or a chosen or rejected answer."""
        return self.about(LENGTHS[lengths][part], LONGEST[part])


def pairs(lengths: str, count: int, vocabulary: int, seed: int, answers: int = 2) -> list[Row]:
    """`count` prompts with `answers` answers each: one pair for two of them, so rows repeat a prompt beyond two."""
    draw, rows = Tokens(vocabulary, seed), []
    for _ in range(count):
        prompt = draw.part(lengths, "prompt")
        for _ in range(answers // 2):
            rows.append({"prompt_ids": prompt, **{s: draw.part(lengths, s.removesuffix("_ids")) for s in SIDES}})
    return rows


def lists(lengths: str, count: int, answers: int, vocabulary: int, seed: int) -> list[dict[str, Any]]:
    """Tokenized lists of `answers` answers each, the best first. No two answers of a list begin with the same token."""
    draw, rows = Tokens(vocabulary, seed), []
    for number in range(count):
        prompt = draw.part(lengths, "prompt")
        firsts = draw.random.sample(range(5, vocabulary), answers)
        drawn = [draw.part(lengths, "rejected" if place else "chosen") for place in range(answers)]
        ids = [[first, *rest[1:]] for first, rest in zip(firsts, drawn, strict=True)]
        scores = [float(answers - place) for place in range(answers)]
        rows.append({"prompt_ids": prompt, "list_ids": ids, "list_scores": scores, "list_row": number})
    return rows


def conversations(lengths: str, count: int, turns: int, vocabulary: int, seed: int) -> list[Row]:
    """Pairs of each turn of `count` conversations: a prompt continues the one before it and its chosen answer."""
    draw, rows = Tokens(vocabulary, seed), []
    for _ in range(count):
        prompt = draw.part(lengths, "prompt")
        for _ in range(turns):
            row = {"prompt_ids": prompt, **{s: draw.part(lengths, s.removesuffix("_ids")) for s in SIDES}}
            rows.append(row)
            prompt = [*prompt, *row["chosen_ids"], *draw.about(TURN, LONGEST["prompt"])]
    return rows


def with_system_prompt(rows: list[Row], length: int, vocabulary: int) -> list[Row]:
    """The same rows behind one system prompt of `length` tokens."""
    system = Tokens(vocabulary, seed=-1).exactly(length)
    return [{**row, "prompt_ids": [*system, *row["prompt_ids"]]} for row in rows]
