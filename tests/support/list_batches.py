"""Batches of lists of answers, as the golden file of lists holds them, with every field that a loss may read.

The policy's summed log-probs are the leaves, as in `batches.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trl_dpo_ext import Lists, Side
from trl_dpo_ext.core.transforms import f_divergence_score
from trl_dpo_ext.core.variant import LossVariant

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN_LISTS: dict[str, Any] = json.loads((FOLDER / "list_vectors.json").read_text())
PUBLISHED_LISTS: dict[str, Any] = json.loads((FOLDER / "published_lists.json").read_text())
PROMPTS: list[dict[str, list[float]]] = GOLDEN_LISTS["inputs"]["published"]

Prompt = dict[str, list[float]]

# Scores between 0 and 1, which every loss takes; no value here is where a loss has a kink.
SMOOTH_PROMPTS: list[Prompt] = [
    {"pi": [-11.3, -15.8], "ref": [-13.1, -14.4], "n": [6, 8], "u": [0.8, 0.6]},
    {"pi": [-20.9, -17.1, -26.2], "ref": [-19.6, -18.7, -22.4], "n": [10, 5, 11], "u": [0.7, 0.7, 0.4]},
    {"pi": [-8.2, -9.4, -30.1, -6.7], "ref": [-8.9, -9.1, -32.9, -7.0], "n": [4, 5, 12, 3], "u": [0.2, 0.9, 0.5, 0.5]},
    {
        "pi": [-12.6, -33.2, -7.7, -21.4, -5.9],
        "ref": [-9.8, -35.5, -7.2, -20.1, -6.6],
        "n": [7, 15, 3, 9, 4],
        "u": [0.1, 0.3, 1.0, 0.6, 0.25],
    },
]


def make_lists(
    prompts: Sequence[Prompt],
    *,
    dtype: torch.dtype = torch.float64,
    logps: torch.Tensor | None = None,
    f_divergence: dict[str, Any] | None = None,
) -> Lists:
    """A batch of prompts; `logps` takes the place of the leaves, shape (answers,)."""

    def flat(name: str) -> torch.Tensor:
        return torch.tensor([value for prompt in prompts for value in prompt[name]], dtype=dtype)

    logps = flat("pi").requires_grad_() if logps is None else logps
    ref_logps = flat("ref")
    lengths = flat("n").long()
    column = torch.arange(int(lengths.max()) if len(lengths) else 0)
    mask = column < lengths.unsqueeze(1)
    share = mask.to(dtype) / lengths.clamp(min=1).unsqueeze(1)
    answers = Side(
        logps,
        ref_logps,
        f_divergence_score(logps - ref_logps, **(f_divergence or {})),
        lengths,
        logps.unsqueeze(1) * share,
        mask,
        ref_logps.unsqueeze(1) * share,
        ref_entropy=(1 + lengths.remainder(3)).to(dtype) / 5,
        token_kl=0.5 * ((logps - ref_logps).unsqueeze(1) * share) ** 2,
    )
    sizes = torch.tensor([len(prompt["pi"]) for prompt in prompts], dtype=torch.long)
    return Lists(answers, torch.arange(len(prompts)).repeat_interleave(sizes), flat("u"))


def slopes(values: torch.Tensor, lists: Lists) -> torch.Tensor:
    """Gradient of the sum of the prompts' values with respect to the policy's log-probs, (answers,)."""
    return torch.autograd.grad(values.sum(), lists.answers.logps, allow_unused=True, materialize_grads=True)[0]


def list_hypers_of(variant: LossVariant) -> list[dict[str, Any]]:
    """Every set of hyperparameters that the golden cases use for a variant."""
    hypers: list[dict[str, Any]] = []
    for case in GOLDEN_LISTS["cases"][variant.name]:
        if case["hyper"] not in hypers:
            hypers.append(case["hyper"])
    return hypers


def some_list_hyper(variant: LossVariant) -> dict[str, Any]:
    """One set of hyperparameters, with every required one."""
    return list_hypers_of(variant)[0]


def permuted(prompt: Prompt, order: Sequence[int]) -> Prompt:
    """The answers to a prompt in another order."""
    return {name: [values[place] for place in order] for name, values in prompt.items()}
