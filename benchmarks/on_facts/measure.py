"""What held-out lists say of a policy: how it orders their answers by implicit rewards, and what it answers itself."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from on_sentiment.language_model import padded

from .task import Row

BATCH = 32
MAX_NEW_TOKENS = 64


@torch.no_grad()
def logps(model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[list[float]]:
    """Summed log-probs of the completions of each row, the end-of-sequence token included."""
    flat = [(row.prompt, completion) for row in rows for completion in row.completions]
    found: list[float] = []
    for first in range(0, len(flat), BATCH):
        part = flat[first : first + BATCH]
        starts = [len(tokenizer(prompt)["input_ids"]) for prompt, _ in part]
        whole = [tokenizer(prompt + text + tokenizer.eos_token)["input_ids"] for prompt, text in part]
        ids, mask = padded(whole, tokenizer.pad_token_id, model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        taken = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        found += [
            line[start - 1 : len(each) - 1].sum().item() for line, start, each in zip(taken, starts, whole, strict=True)
        ]
    sizes = iter(found)
    return [[next(sizes) for _ in row.completions] for row in rows]


def orders(rows: Sequence[Row], rewards: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return how rewards order the answers: shares of right orders, where equal rewards count one half.

    `pairs` averages over all ordered pairs, `top1` over lists; `short` compares the best two answers, which differ
    in length alone, and `right` the best with the best that is wrong, which differ in the fact alone.

    >>> row = Row("q", ["a", "b", "c", "d"], [10.0, 7.0, 4.0, 1.0], "x", ())
    >>> orders([row], [[0.3, 0.4, 0.2, 0.1]])
    {'pairs': 0.8333333333333334, 'top1': 0.0, 'short': 0.0, 'right': 1.0}
    """
    pairs, top, short, right = [], [], [], []
    for row, found in zip(rows, rewards, strict=True):
        ranked = [reward for _, reward in sorted(zip(row.scores, found, strict=True), reverse=True)]
        won = {
            (better, worse): _won(ranked[better], ranked[worse])
            for better in range(len(ranked))
            for worse in range(better + 1, len(ranked))
        }
        pairs.append(statistics.fmean(won.values()))
        top.append((ranked[0] == max(ranked)) / ranked.count(max(ranked)))
        short.append(won[0, 1])
        right.append(won[0, 2])
    named = {"pairs": pairs, "top1": top, "short": short, "right": right}
    return {name: statistics.fmean(values) for name, values in named.items()}


def _won(better: float, worse: float) -> float:
    return 0.5 if better == worse else float(better > worse)


@torch.no_grad()
def answers(model: Any, tokenizer: Any, rows: Sequence[Row]) -> list[list[int]]:
    """Return the ids of the model's own answers, decoded greedily, without the end-of-sequence token."""
    prompts = [tokenizer(row.prompt)["input_ids"] for row in rows]
    longest = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(each)) + each for each in prompts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    end = tokenizer.eos_token_id
    return [line[: line.index(end)] if end in line else line for line in made[:, longest:].tolist()]


def own_answers(tokenizer: Any, rows: Sequence[Row], made: Sequence[list[int]]) -> dict[str, float]:
    """Return the mean length of own answers, and the shares that state the fact, and that do nothing else."""
    texts = [tokenizer.decode(ids).strip() for ids in made]
    stated = [
        bool(re.search(rf"(?<!\w){re.escape(row.answer)}(?!\w)", text, re.IGNORECASE))
        for row, text in zip(rows, texts, strict=True)
    ]
    return {
        "own_tokens": statistics.fmean(map(len, made)),
        "own_right": statistics.fmean(stated),
        "own_right_and_short": statistics.fmean(text in row.direct for row, text in zip(rows, texts, strict=True)),
    }
