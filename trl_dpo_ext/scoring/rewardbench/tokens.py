"""Token ids as RewardBench makes them: template as text, BOS and EOS always, a cut of prompt and answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import _trl
from ...data.row_problems import RowError, RowProblems
from ...errors import InputError
from ...reference.precompute.sequences import TokenSequence
from .rows import BenchRow, messages_of

MAX_LENGTH = 2048
PROMPT_KEPT = 128
"""Tokens at the end of a prompt that stay where the sequence is too long."""


@dataclass(frozen=True)
class BenchSequences:
    """The sequences of one row, one per answer.

    Attributes:
        sequences: prompt and completion ids; prompts may differ where the tokenizer merges across their end.
        cut: whether tokens were removed.
    """

    sequences: tuple[TokenSequence, ...]
    cut: bool


class BenchTokenizer:
    """Tokenizes rows as RewardBench's `DPOInference.tokenize_row` does.

    Args:
        processing_class: tokenizer or processor of the policy, with a chat template and an EOS token.

    Raises:
        InputError: it lacks one of them.
    """

    def __init__(self, processing_class: Any) -> None:
        problems, tokenizer = [], _trl.tokenizer_of(processing_class)
        self.template = getattr(processing_class, "chat_template", None)
        if self.template is None:
            problems.append(
                "--protocol rewardbench renders conversations with the tokenizer's chat template, and it has none. Use "
                "that of an instruction-tuned model, or set its chat_template."
            )
        eos: int | None = tokenizer.eos_token_id
        if eos is None:
            problems.append(
                "--protocol rewardbench ends answers with the EOS token, and the tokenizer has "
                "none. Set tokenizer.eos_token, and save it."
            )
        if problems or eos is None:
            raise InputError(*problems)
        self.tokenizer = tokenizer
        bos: int | None = tokenizer.bos_token_id
        self.eos, self.bos = eos, eos if bos is None else bos
        # RewardBench sets these tokens, and templates can print them.
        self._named = {"pad_token": tokenizer.eos_token}
        if tokenizer.bos_token is None:
            self._named["bos_token"] = tokenizer.eos_token

    def __call__(self, row: BenchRow) -> BenchSequences:
        """Tokenize a prompt with each of its answers.

        RewardBench compares two answers; of more, the longest decides whether something is cut.

        Raises:
            RowError: tokens of prompt and answer merge so that RewardBench stops.
        """
        prompt = self._rendered(row.prompt)
        alone = self._ids(prompt)
        # Where an answer repeats the whole prompt, the repetition goes, too.
        texts = [self._rendered((*row.prompt, answer)).replace(prompt, "") for answer in row.answers]
        pairs = [_split(alone, self._ids(prompt + text)) for text in texts]
        whole = [([self.bos, *before], [*after, self.eos]) for before, after in pairs]
        longest = max((len(after) for _, after in whole), default=0)
        kept = [_truncated(before, after, longest) for before, after in whole]
        return BenchSequences(tuple(_sequence(*each) for each in kept), kept != whole)

    def _rendered(self, contents: tuple[str, ...]) -> str:
        return self.tokenizer.apply_chat_template(
            messages_of(contents), chat_template=self.template, tokenize=False, **self._named
        )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def tokenize_rows(tokenizer: Any, rows: list[BenchRow]) -> list[BenchSequences]:
    """Tokenize all rows.

    Raises:
        InputError: listing the rows that RewardBench would stop at.
    """
    tokenize, problems, found = BenchTokenizer(tokenizer), RowProblems(), []
    for at, row in enumerate(rows):
        try:
            found.append(tokenize(row))
        except RowError as error:
            problems.add(at, error)
    problems.raise_all(len(rows))
    return found


def _split(prompt: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """Split the ids of prompt and answer; the last token of the prompt belongs to the answer if it has merged."""
    if len(whole) < len(prompt):
        raise RowError("the answer makes the prompt's tokens fewer, which RewardBench refuses")
    middle = len(prompt) if whole[: len(prompt)] == prompt else len(prompt) - 1
    return whole[:middle], whole[middle:]


def _truncated(prompt: list[int], answer: list[int], longest: int) -> tuple[list[int], list[int]]:
    """Cut the prompt to its end, and if that does not suffice, the answer to its start.

    Args:
        prompt: with BOS.
        answer: with EOS.
        longest: tokens of the longest answer to this prompt.
    """
    if len(prompt) + longest > MAX_LENGTH:
        prompt = prompt[-PROMPT_KEPT:]
    if len(prompt) + longest > MAX_LENGTH:
        answer = answer[: MAX_LENGTH - PROMPT_KEPT]
    return prompt, answer


def _sequence(prompt: list[int], answer: list[int]) -> TokenSequence:
    return TokenSequence(np.array(prompt, np.int32), np.array(answer, np.int32), len(prompt) - 1)
