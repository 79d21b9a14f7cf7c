"""Estimate KL(policy || reference) on samples of the policy at temperature 1, without bias.

Neither greedy answers nor answers of a dataset are samples of the policy: on them, no estimator has the KL divergence
as its mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import _trl
from .generation import Runner, Sampling, Scored
from .measures import Answer

PROMPTS, TOKENS = 16, 64
"""The largest numbers of answers, and of tokens of each, that the KL divergence is estimated on."""
_SHARE_OF_FREE_MEMORY = 0.8


@dataclass(frozen=True)
class Kl:
    """An estimate from some answers."""

    estimator: str
    """`exact` or `k3`."""
    total: float
    """Sum over answers and tokens, in nats."""
    answers: int
    tokens: int

    @property
    def metrics(self) -> dict[str, float]:
        """The mean over tokens, and over answers, of which the latter estimates the divergence of sequences."""
        return {"kl_per_token": self.total / self.tokens, "kl_per_answer": self.total / self.answers}


def exact(logits: torch.Tensor, ref_logits: torch.Tensor) -> torch.Tensor:
    """KL(policy || reference) of the next token, in nats and float32, shape (...).

    On answers that the policy has sampled, the expected sum over their tokens is the divergence of the sequences.

    Args:
        logits, ref_logits: (..., vocabulary); what only one of the two has (padding of an embedding) is left out.
    """
    common = min(logits.size(-1), ref_logits.size(-1))
    logps, ref_logps = (F.log_softmax(each.float(), dim=-1)[..., :common] for each in (logits, ref_logits))
    return (logps.exp() * (logps - ref_logps)).sum(dim=-1)


def k3(logps: torch.Tensor, ref_logps: torch.Tensor) -> torch.Tensor:
    """exp(-d) - 1 + d with d = logps - ref_logps, of sampled tokens: at least 0, and unbiased for each token's KL.

    Source: Schulman, Approximating KL divergence (joschu.net).
    """
    difference = logps - ref_logps
    return torch.expm1(-difference) + difference


def choose(wanted: str, vocabulary: int, batch_size: int, device: torch.device) -> str:
    """Return the estimator: the wanted one, or for `auto` `exact` unless the logits of both models exceed the memory.

    Every process calls this.
    """
    if wanted != "auto":
        return wanted
    needed, free = 2 * 4 * vocabulary * (TOKENS + 1) * batch_size, math.inf
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
    return "exact" if all(_trl.gather_object(needed < _SHARE_OF_FREE_MEMORY * free)) else "k3"


def estimate(runner: Runner, estimator: str, max_new_tokens: int) -> Kl:
    """Sample answers at temperature 1 with seed 0, and estimate the divergence on them; see `Kl`.

    Args:
        runner: has the prompts and both models.
        estimator: `exact` or `k3`.
        max_new_tokens: of an answer.
    """
    sampled = runner.answers(Sampling(temperature=1.0, max_new_tokens=max_new_tokens, seed=0))
    answers = {number: list(Answer.of(ids, runner.eos_ids).ids) for number, ids in sampled.items()}
    counted = set(runner.share.numbers[: runner.share.real])
    reference = runner.reference
    assert reference is not None
    total, tokens = 0.0, 0

    def score(numbers: list[int], batch: Scored, turn: Callable[[], None]) -> None:
        nonlocal total, tokens
        read = batch.logits if estimator == "exact" else batch.token_logps
        turn()
        policy = read(runner.speaker.forward)
        turn()
        theirs = read(reference)
        for row, number in enumerate(numbers):
            if number not in counted:
                continue
            mask = batch.mask[row]
            found = (exact if estimator == "exact" else k3)(policy[row][mask], theirs[row][mask])
            total, tokens = total + found.double().sum().item(), tokens + int(mask.sum())

    runner.each_batch(answers, score)
    sums = _trl.gather_object((total, len(counted), tokens))
    return Kl(estimator, *(sum(part) for part in zip(*sums, strict=True)))
