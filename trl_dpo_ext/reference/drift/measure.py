"""How far a reference is from what it stands for, and a calibration that removes the shift.

A quantized reference gives every answer a lower log-prob than the model it was made of, roughly by a constant per
token, and adds noise. Difference losses see the noise and, where answers differ in length, some of the shift; losses of
absolute rewards see all of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ...core import transforms
from ...errors import InputError

FILE = "reference_drift.json"
NOISE_WARNING_THRESHOLD = 0.5
"""Beta times the spread of the margin's error, from which on a run is warned: a fair pair's preference moves by 12%."""

Gather = Callable[[torch.Tensor], torch.Tensor]

TOKENS, SHIFT, SQUARES = range(3)
"""What `answer_errors` gives for an answer: its tokens, the sum of their errors, the sum of their squared errors."""


@dataclass(frozen=True)
class Drift:
    """Error of a reference's log-probs against the model it stands for, in nats: reference minus that model."""

    pairs: int
    tokens: int
    token_mean: float
    token_std: float
    sequence_mean: float
    sequence_std: float
    margin_mean: float
    """Error of the reference's log-prob of chosen minus that of rejected."""
    margin_std: float
    beta: float
    """Largest beta of the run's losses: beta times the margin's error is its error in units of the loss."""
    shift_per_token: float | None = None
    """What calibration takes from the log-prob of every token; None where the run is not calibrated."""
    calibrated_sequence_mean: float | None = None
    calibrated_margin_mean: float | None = None
    calibrated_margin_std: float | None = None
    correction_rank: int | None = None
    """Rank of the terms that correct the reference; None where nothing does. They are fitted on other pairs."""
    bias_error: float | None = None
    """Standard error of `sequence_mean`, which counts pairs."""

    @property
    def metrics(self) -> dict[str, float]:
        """Values to log, by name."""
        values = {f"reference/drift_{name}": value for name, value in asdict(self).items() if name not in _NOT_LOGGED}
        values["reference/drift_beta_margin_mean"] = self.beta * self.margin_mean
        values["reference/drift_beta_margin_std"] = self.beta * self.margin_std
        return {name: value for name, value in values.items() if value is not None}

    @property
    def is_unbiased(self) -> bool:
        """Whether the mean error of an answer is within its 95 % interval of zero."""
        return self.bias_error is not None and abs(self.sequence_mean) <= 1.96 * self.bias_error

    @property
    def noise(self) -> float:
        """Beta times the spread of the margin's error that is left."""
        left = self.margin_std if self.calibrated_margin_std is None else self.calibrated_margin_std
        return self.beta * left

    def describe(self) -> str:
        """The measurement in a few lines."""
        corrected = ""
        if self.correction_rank is not None:
            corrected = f" after a correction of rank {self.correction_rank}, on pairs that it was not fitted on"
        lines = [
            f"Reference drift vs. unquantized model{corrected} ({self.pairs} pairs, {self.tokens} tokens, nats, mean ± "
            "std):",
            f"  per token {self.token_mean:+.4f} ± {self.token_std:.4f}, per answer {self.sequence_mean:+.2f} ± "
            f"{self.sequence_std:.2f}, margin {self.margin_mean:+.2f} ± {self.margin_std:.2f} "
            f"(times beta {self.beta:g}: {self.beta * self.margin_mean:+.3f} ± {self.beta * self.margin_std:.3f})",
        ]
        if self.shift_per_token is not None:
            lines.append(
                f"  calibrated by {-self.shift_per_token:+.4f} per token; on these pairs that leaves per answer "
                f"{self.calibrated_sequence_mean:+.2f}, margin {self.calibrated_margin_mean:+.2f} ± "
                f"{self.calibrated_margin_std:.2f}"
            )
        return "\n".join(lines)

    def save(self, folder: str | Path) -> None:
        """Write the measurement into a folder, as JSON."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Drift | None:
        """The measurement that a folder holds, if any.

        Raises:
            InputError: the file is not one of ours.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            return None
        try:
            return cls(**json.loads(file.read_text()))
        except (TypeError, ValueError) as error:
            raise InputError(f"{file} holds no measurement of a reference: {error}") from error

    def corrected(
        self, ref_logps: torch.Tensor, ref_token_logps: torch.Tensor | None, mask: torch.Tensor, ld_alpha: float | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Reference log-probs without the measured shift.

        Args:
            ref_logps: (rows,), reduced with `ld_alpha`.
            ref_token_logps: (rows, tokens), zero outside the completion, or None where nobody reads them.
            mask: (rows, tokens) bool, true on completion tokens.
            ld_alpha: as in `transforms.sum_logps`.
        """
        if not self.shift_per_token:
            return ref_logps, ref_token_logps
        shift = self.shift_per_token * mask.to(ref_logps.dtype)
        tokens = None if ref_token_logps is None else ref_token_logps - shift.to(ref_token_logps.dtype)
        return ref_logps - transforms.sum_logps(shift, mask, ld_alpha), tokens


_NOT_LOGGED = ("pairs", "tokens", "beta", "correction_rank", "bias_error")


def answer_errors(reference: torch.Tensor, start: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Tokens, summed errors and summed squared errors of each answer, (pairs, sides, 3) in float64.

    Args:
        reference: token log-probs of the reference, (rows, tokens), rows = 2 x pairs with the chosen half first.
        start: the same of the model that the reference stands for.
        mask: (rows, tokens) bool.
    """
    errors = (reference.double() - start.double()) * mask
    rows = torch.stack([mask.sum(dim=1).double(), errors.sum(dim=1), errors.square().sum(dim=1)], dim=1)
    return torch.stack(list(rows.chunk(2)), dim=1)


def summarize(errors: torch.Tensor, beta: float, calibrate: bool = False, correction_rank: int | None = None) -> Drift:
    """The measurement of a run.

    Args:
        errors: what `answer_errors` gave, (pairs, sides, 3).
        beta: the largest of the losses.
        calibrate: whether to find the shift to remove.
        correction_rank: of the terms that correct the reference; None for none.

    Raises:
        InputError: the reference's log-probs are not finite.
    """
    if not errors.isfinite().all():
        raise InputError(
            "The reference gives log-probs that are not finite, probably because a number of its forward leaves "
            "float16. Set ref_compute_dtype (or ref_dtype) to bfloat16, or ref_quantization to nf4."
        )
    tokens, sums, squares = (errors[..., which] for which in (TOKENS, SHIFT, SQUARES))
    count = tokens.sum().clamp(min=1)
    mean = sums.sum() / count
    measured = {
        "pairs": errors.size(0),
        "tokens": int(count),
        "token_mean": float(mean),
        "token_std": float((squares.sum() / count - mean.square()).clamp(min=0).sqrt()),
        **_spread("sequence", sums.flatten()),
        **_spread("margin", sums[:, 0] - sums[:, 1]),
        "beta": beta,
        "correction_rank": correction_rank,
    }
    if correction_rank is not None and errors.size(0) > 1:
        measured["bias_error"] = float(sums.mean(dim=1).std() / math.sqrt(errors.size(0)))
    if calibrate:
        shift = shift_per_token(errors)
        left = sums - shift * tokens
        after = {**_spread("sequence", left.flatten()), **_spread("margin", left[:, 0] - left[:, 1])}
        measured["shift_per_token"] = shift
        measured |= {f"calibrated_{key}": after[key] for key in ("sequence_mean", "margin_mean", "margin_std")}
    return Drift(**measured)


def _spread(name: str, values: torch.Tensor) -> dict[str, float]:
    std = float(values.std()) if values.numel() > 1 else 0.0
    return {f"{name}_mean": float(values.mean()), f"{name}_std": std}


def shift_per_token(errors: torch.Tensor) -> float:
    """The shift of a token's log-prob, shrunk towards zero by how uncertain it is.

    The mean error per token, times 1 - (its standard error / it)^2, at least 0, where the standard error counts pairs,
    not tokens: a shift that the pairs do not agree on is noise, and removing it would add noise.

    Args:
        errors: (pairs, sides, 3), from `answer_errors`.
    """
    tokens, sums = errors[..., TOKENS].sum(dim=1), errors[..., SHIFT].sum(dim=1)
    mean = sums.sum() / tokens.sum().clamp(min=1)
    pairs = tokens.numel()
    if pairs < 2 or not mean:
        return 0.0
    residuals = sums - mean * tokens
    variance = residuals.square().sum() * pairs / (pairs - 1) / tokens.sum().square()
    return float(mean * (1 - variance / mean.square()).clamp(min=0))


def max_beta(terms: Iterable[Any], default: float) -> float:
    """The largest beta among the terms of a mixture that have one."""
    betas = [term.hyper.get("beta", term.hyper.get(f"{term.variant.name}_beta")) for term in terms]
    return max((float(beta) for beta in betas if beta is not None), default=default)


def measure(
    rows: Sequence[Any],
    errors_of: Callable[[list[Any]], torch.Tensor],
    gather: Gather,
    *,
    batch_size: int,
    rank: int,
    processes: int,
) -> torch.Tensor:
    """`answer_errors` of all rows, (rows, sides, 3), each process computing its part, all equally many batches.

    Args:
        rows: dataset rows, the same on every process.
        errors_of: from a list of rows to their `answer_errors`.
        gather: concatenates a tensor over processes, in their order.
        batch_size: rows at a time.
        rank, processes: which part is this process's.
    """
    share = math.ceil(len(rows) / processes)
    mine = [rows[index % len(rows)] for index in range(rank * share, (rank + 1) * share)]
    parts = [errors_of(mine[at : at + batch_size]) for at in range(0, share, batch_size)]
    return gather(torch.cat(parts))[: len(rows)].double().cpu()


def first_rows(dataset: Any, count: int) -> list[Any]:
    """The first rows of a dataset, streamed or not."""
    return list(islice(iter(dataset), count))
