"""Measure a model on the held-out pairs: its preferences and its answers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

Record = dict[str, Any]
MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class Scores:
    """Summed log-probabilities and lengths of the answers, one entry per pair."""

    chosen_logps: torch.Tensor
    rejected_logps: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor


def read_pairs(path: Path) -> list[Record]:
    """Read a JSON Lines file of preference pairs."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _encode(tokenizer: Any, prompt: list[Record], completion: list[Record]) -> tuple[list[int], int]:
    """Return the token ids of prompt and answer, and how many of them are the prompt's."""
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(prompt + completion, return_dict=False)
    if whole[: len(start)] != start:
        raise ValueError("The chat template renders the prompt differently when an answer follows it.")
    return whole, len(start)


@torch.inference_mode()
def _logps(model: Any, rows: list[tuple[list[int], int]], batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log p(answer | prompt) and the answer's length for each row, batching rows of similar length."""
    logps, tokens = torch.zeros(len(rows)), torch.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    for first in tqdm(range(0, len(order), batch_size), desc="   scoring", leave=False):
        batch = order[first : first + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[index][0]) for index in batch], batch_first=True)
        hidden = model.model(input_ids=ids).last_hidden_state  # padding is on the right, so nothing attends to it
        for row, index in enumerate(batch):
            whole, prompt = rows[index]
            logits = model.lm_head(hidden[row, prompt - 1 : len(whole) - 1]).float()
            picked = logits.gather(-1, ids[row, prompt : len(whole), None]).squeeze(-1)
            logps[index] = (picked - logits.logsumexp(-1)).sum()
            tokens[index] = len(whole) - prompt
    return logps, tokens


def score(model: Any, tokenizer: Any, pairs: list[Record], batch_size: int = 8) -> Scores:
    """Score both answers of every pair under ``model``."""
    model.eval()
    rows = [_encode(tokenizer, pair["prompt"], pair[side]) for side in ("chosen", "rejected") for pair in pairs]
    logps, tokens = _logps(model, rows, batch_size)
    return Scores(logps[: len(pairs)], logps[len(pairs) :], tokens[: len(pairs)], tokens[len(pairs) :])


def preference_metrics(policy: Scores, reference: Scores, beta: float) -> dict[str, float]:
    """Return reward accuracy and margin, and how often the chosen answer has the higher average log-probability.

    The implicit reward of an answer is ``beta * (policy log-prob - reference log-prob)``. A tie counts one half, so
    that a policy that equals its reference has an accuracy of exactly 0.5.
    """
    margin = beta * (
        (policy.chosen_logps - reference.chosen_logps) - (policy.rejected_logps - reference.rejected_logps)
    )
    chosen = policy.chosen_logps / policy.chosen_tokens
    rejected = policy.rejected_logps / policy.rejected_tokens
    return {
        "reward_accuracy": ((margin > 0).float() + 0.5 * (margin == 0).float()).mean().item(),
        "reward_margin": margin.mean().item(),
        "avg_logp_accuracy": ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean().item(),
        "chosen_logp": policy.chosen_logps.mean().item(),
        "rejected_logp": policy.rejected_logps.mean().item(),
    }


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, prompts: list[list[Record]], batch_size: int = 16) -> list[str]:
    """Return the model's own answers, decoded greedily and truncated to ``MAX_NEW_TOKENS``."""
    model.eval()
    tokenizer.padding_side = "left"
    answers: list[str] = []
    for first in tqdm(range(0, len(prompts), batch_size), desc="   answering", leave=False):
        batch = tokenizer.apply_chat_template(
            prompts[first : first + batch_size],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in answers]


def answer_metrics(tokenizer: Any, answers: list[str], pairs: list[Record]) -> dict[str, float]:
    """Return the mean length of the answers, and the share of them that contain the fact asked for."""
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers]
    found = [
        bool(re.search(rf"(?<!\w){re.escape(pair['answer'])}(?!\w)", text))
        for text, pair in zip(answers, pairs, strict=True)
        if pair["topic"] != "definition"  # a definition can be right in other words
    ]
    return {"answer_tokens": sum(lengths) / len(lengths), "contains_fact": sum(found) / len(found)}
