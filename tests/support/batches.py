"""Batches of preference pairs with every field filled in, for any variant to read.

The policy's summed log-probs are the leaves: everything else that a variant may read of the policy depends on them, so
a gradient with respect to `pairs.chosen.logps` is the whole gradient.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trl_dpo_ext import Pairs, Side
from trl_dpo_ext.core.registry import LossVariant
from trl_dpo_ext.core.transforms import f_divergence_score

# These tensors hold a handful of numbers: waking other threads for them costs a hundred times the work.
torch.set_num_threads(1)

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "vectors.json").read_text())
PUBLISHED: dict[str, Any] = GOLDEN["inputs"]["published"]
AWKWARD: dict[str, Any] = GOLDEN["inputs"]["awkward"]

# No value here is where a loss has a kink.
SMOOTH = {
    "chosen": [-11.3, -20.9, -8.2, -30.1, -6.7],
    "rejected": [-15.8, -17.1, -9.4, -33.2, -12.6],
    "ref_chosen": [-13.1, -19.6, -8.9, -32.9, -7.0],
    "ref_rejected": [-14.4, -18.7, -9.1, -35.5, -9.8],
    "chosen_lengths": [6, 10, 4, 12, 3],
    "rejected_lengths": [8, 5, 4, 15, 7],
    "columns": {
        "score_chosen": [8.0, 7.0, 6.5, 9.0, 3.0],
        "score_rejected": [6.0, 6.5, 5.0, 3.0, 1.0],
        "p_chosen": [0.9, 0.6, 0.55, 0.99, 0.2],
        "delta_r": [0.04, 0.5, 0.25, 1.0, 0.3],
        "margin": [2.0, 0.5, 1.5, 6.0, -1.0],
        "quantile_chosen": [1.0, 0.75, 0.5, 0.9, 0.25],
        "quantile_rejected": [0.25, 0.5, 0.75, 0.125, 1.0],
    },
}


def make_pairs(
    inputs: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float64,
    chosen: torch.Tensor | None = None,
    rejected: torch.Tensor | None = None,
    f_divergence: dict[str, Any] | None = None,
    training: bool = True,
    gather: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach,
    rank: int = 0,
) -> Pairs:
    """A batch from named lists, as the golden file holds them; `chosen` and `rejected` take the leaves' place."""
    leaves = {"chosen": chosen, "rejected": rejected}
    for name, leaf in leaves.items():
        if leaf is None:
            leaves[name] = torch.tensor(inputs[name], dtype=dtype, requires_grad=True)
    sides = {name: _side(inputs, name, leaf, f_divergence) for name, leaf in leaves.items()}
    columns = {name: torch.tensor(values, dtype=dtype) for name, values in inputs["columns"].items()}
    weights = {name: (2 + _place(side.mask).remainder(3)).to(dtype) / 4 for name, side in sides.items()}
    columns["chosen_token_weights"] = weights["chosen"] * sides["chosen"].mask
    columns["rejected_token_weights"] = (1.5 - weights["rejected"]) * sides["rejected"].mask
    return Pairs(
        **sides,
        columns=columns,
        training=training,
        gather=gather,
        rank=rank,
    )


def _place(mask: torch.Tensor) -> torch.Tensor:
    """Place of every token in its completion, from 0 on."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _side(inputs: dict[str, Any], name: str, logps: torch.Tensor, f_divergence: dict[str, Any] | None) -> Side:
    lengths = torch.tensor(inputs[f"{name}_lengths"])
    ref_logps = torch.tensor(inputs[f"ref_{name}"], dtype=logps.dtype)
    # Completions start at different columns, as they do behind prompts of different lengths.
    start = torch.arange(len(lengths)).remainder(3).unsqueeze(1)
    column = torch.arange(int((start.squeeze(1) + lengths).max()) + 1).unsqueeze(0)
    mask = (column >= start) & (column < start + lengths.unsqueeze(1))
    # The rule by which the golden cases, too, make up tokens: log-probs in the ratio 1 : 2 : 3 : 4 : 1 : 2 ...
    share = mask * (1 + _place(mask).remainder(4))
    share = share.to(logps.dtype) / share.sum(dim=1, keepdim=True).clamp(min=1)
    # The golden batches know both sides' average; the sides differ.
    average = torch.tensor(inputs.get("ref_entropy", [0.35] * len(lengths)), dtype=logps.dtype)
    return Side(
        logps=logps,
        ref_logps=ref_logps,
        score=f_divergence_score(logps - ref_logps, **(f_divergence or {})),
        lengths=lengths,
        token_logps=logps.unsqueeze(1) * share,
        mask=mask,
        ref_token_logps=ref_logps.unsqueeze(1) * share,
        token_kl=0.5 * ((logps - ref_logps).unsqueeze(1) * share) ** 2,
        ref_entropy=average * (0.75 if name == "chosen" else 1.25),
    )


def take(inputs: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """Some pairs of a batch, in the given order."""
    picked = {name: [values[row] for row in rows] for name, values in inputs.items() if name != "columns"}
    return {**picked, "columns": {name: [values[row] for row in rows] for name, values in inputs["columns"].items()}}


def run_case(variant: LossVariant, case: dict[str, Any], dtype: torch.dtype) -> tuple[torch.Tensor, Pairs]:
    """Values of a golden case, and the pairs they were computed from; earlier batches train a running state first."""
    loss = variant.make()
    for batch in case.get("earlier", []):
        loss(make_pairs(GOLDEN["inputs"][batch], dtype=dtype), **case["hyper"])
    pairs = make_pairs(GOLDEN["inputs"][case["inputs"]], dtype=dtype, f_divergence=case.get("f_divergence"))
    return loss(pairs, **case["hyper"]), pairs


def gradients(loss: torch.Tensor, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of a scalar with respect to the policy's summed log-probs of both sides; zero where it is unused."""
    leaves = (pairs.chosen.logps, pairs.rejected.logps)
    return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


def required_hyper(variant: LossVariant) -> dict[str, Any]:
    """A value for every hyperparameter of a variant that has no default, such as a temperature."""
    return {parameter.name: 1.0 for parameter in variant.owned if parameter.required}


def hypers_of(variant: LossVariant) -> list[dict[str, Any]]:
    """Every set of hyperparameters that the golden cases use for a variant."""
    hypers: list[dict[str, Any]] = []
    for case in GOLDEN["cases"][variant.name]:
        if case["hyper"] not in hypers:
            hypers.append(case["hyper"])
    return hypers
