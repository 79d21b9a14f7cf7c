"""Values and gradients of the registered losses at log-ratios, for the curves of the documentation.

Every point is one pair of completions of `TOKENS` tokens, over which log-probs are spread in the ratio 1 : 2 : 3 : 4;
whatever else a loss reads is held at `COLUMNS`, `TOKEN_KL` and `REF_ENTROPY`. A loss that looks at its whole batch sees
the pair among `COMPANIONS`, and a running state is that after one batch of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trl_dpo_ext import LossVariant, Need, Pairs, Side
from trl_dpo_ext.config import DPOExtConfig
from trl_dpo_ext.core.hyperparameters import DeclaredHyper

torch.set_num_threads(1)  # the tensors are small, and Sphinx forks

TOKENS = 100
"""Tokens of each completion."""
REF_LOGPS = -200.0
"""The reference's log-prob of each completion, in nats."""
COLUMNS = {
    "score_chosen": 8.0,
    "score_rejected": 6.0,
    "p_chosen": 0.8,
    "delta_r": 0.2,
    "margin": 1.0,
    "quantile_chosen": 0.8,
    "quantile_rejected": 0.3,
}
"""The dataset's columns; weights of tokens are 1."""
_IN_UNITS_OF_SCORES = {"infonca_tau": 2.0, "nca_tau": 2.0, "lipo_scale": 10.0}
"""Hyperparameters without a default."""
TOKEN_KL = {"chosen": 0.02, "rejected": 0.05}
"""KL divergence at every token, in nats."""
REF_ENTROPY = 0.3
COMPANIONS = ((8.0, -8.0), (2.0, 4.0), (-6.0, 1.0))
"""Log-ratios of the other pairs of a batch, chosen and rejected."""
POINTS, POINTS_OF_BATCH = 81, 41
"""Points of a curve; a loss that looks at its batch is evaluated at one after the other."""
SETTINGS = {
    "anc_dpo": ("anc_dpo_delta", (0.0, 1.0, 3.0)),
    "d2po": ("d2po_gamma", (0.95, 0.98, 1.0)),
    "dpo_shift": ("dpo_shift_lambda", (0.5, 0.75, 1.0)),
    "exo_pair": ("label_smoothing", (0.001, 0.01, 0.1)),
    "lipo": ("lipo_scale", (8.0, 10.0, 20.0)),
    "lipo_normalized": ("lipo_scale", (8.0, 10.0, 20.0)),
    "sigmoid_norm": ("beta", (0.1, 2.0, 5.0)),
}
"""Values of the main hyperparameter where half the default and twice the default would show little."""
_RANGES = (40.0, 100.0, 180.0, 400.0, 1000.0, 4000.0)
_LAST_LOG_PROB = 180.0
"""The last of them at which log-probs stay negative."""
_PREFERRED = ("label_smoothing", "discopop_tau", "beta")
"""Shared hyperparameters, that which matters most first."""
_SHARED_OTHERWISE = {("exo_pair", "label_smoothing"): 0.001}
"""Where TRL's default is out of a loss's bounds, as for TRL's own loss of that name, what is taken in its place."""


@dataclass(frozen=True)
class Sample:
    """A loss at some points, each of shape (points,)."""

    values: torch.Tensor
    by_chosen: torch.Tensor
    """Derivative with respect to the chosen side's log-prob, as the optimizer sees it."""
    by_rejected: torch.Tensor

    @property
    def by_margin(self) -> torch.Tensor:
        """Derivative with respect to the margin where both sides move apart equally."""
        return (self.by_chosen - self.by_rejected) / 2

    def is_close_to(self, other: Sample) -> bool:
        """Whether values and derivatives are the same up to rounding."""
        scale = max(1.0, float(self.values.abs().max() + other.values.abs().max()))
        return all(
            torch.allclose(getattr(self, name), getattr(other, name), rtol=1e-6, atol=1e-9 * scale)
            for name in ("values", "by_chosen", "by_rejected")
        )


def defaults(variant: LossVariant) -> dict[str, Any]:
    """The hyperparameters of a run that sets none."""
    shared = DPOExtConfig.__dataclass_fields__
    return {
        p.name: _SHARED_OTHERWISE.get((variant.name, p.name), shared[p.name].default)
        if p.shared
        else _IN_UNITS_OF_SCORES.get(p.name, p.default)
        for p in variant.hyperparameters
    }


def columns_of(variant: LossVariant) -> dict[str, float]:
    """The dataset's columns as a loss reads them: scores that must be shares are quantiles."""
    scores = variant.score_bounds and variant.score_bounds(**defaults(variant))
    if not scores or scores.le != 1:
        return COLUMNS
    return COLUMNS | {f"score_{side}": COLUMNS[f"quantile_{side}"] for side in ("chosen", "rejected")}


def sample(variant: LossVariant, chosen: torch.Tensor, rejected: torch.Tensor, hyper: Mapping[str, Any]) -> Sample:
    """Evaluate a loss at log-ratios of shape (points,) in nats.

    The value is that of the pair; for a loss that sorts its batch, the mean of the batch. Derivatives are those of the
    sum over the batch.
    """
    if variant.independent_pairs:
        return _evaluated(variant, chosen, rejected, hyper, pick=slice(None))
    others = tuple(zip(*COMPANIONS, strict=True))
    points = [
        _evaluated(variant, _column(c, others[0]), _column(r, others[1]), hyper, pick=slice(1))
        for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)
    ]
    names = ("values", "by_chosen", "by_rejected")
    return Sample(*(torch.cat([getattr(point, name) for point in points]) for name in names))


def _column(own: float, others: Sequence[float]) -> torch.Tensor:
    return torch.tensor([own, *others], dtype=torch.float64)


def _evaluated(
    variant: LossVariant, chosen: torch.Tensor, rejected: torch.Tensor, hyper: Mapping[str, Any], pick: slice
) -> Sample:
    loss = variant.make()
    if variant.stateful:
        others = torch.tensor(COMPANIONS, dtype=torch.float64).T
        loss(pairs_of(others[0], others[1]), **hyper)
    pairs = pairs_of(chosen, rejected, columns_of(variant), training=not variant.stateful)
    values = loss(variant.read(pairs), **hyper)
    total = values.sum()
    leaves = [pairs.chosen.logps, pairs.rejected.logps]
    gradients = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None, None]
    by = [
        torch.zeros_like(leaf) if gradient is None else gradient
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
    shown = values if variant.order_preserving else values.mean().expand_as(values)
    return Sample(shown.detach()[pick], by[0][pick], by[1][pick])


def pairs_of(
    chosen: torch.Tensor, rejected: torch.Tensor, held: Mapping[str, float] = COLUMNS, training: bool = True
) -> Pairs:
    """Pairs with everything that a loss may read, from log-ratios of shape (pairs,)."""
    base = min(REF_LOGPS, -float(torch.cat([chosen, rejected]).max()) - 1)
    columns = {name: torch.full((len(chosen),), value, dtype=torch.float64) for name, value in held.items()}
    columns |= {f"{name}_token_weights": torch.ones(len(chosen), TOKENS, dtype=torch.float64) for name in TOKEN_KL}
    sides = (_side("chosen", chosen, base), _side("rejected", rejected, base))
    return Pairs(*sides, columns=columns, training=training)


def _side(name: str, logratios: torch.Tensor, base: float) -> Side:
    pairs = len(logratios)
    share = (1 + torch.arange(TOKENS).remainder(4)).double()
    share /= share.sum()
    logps = (base + logratios.double()).requires_grad_()
    reference = torch.full((pairs,), base, dtype=torch.float64)
    return Side(
        logps,
        reference,
        lengths=torch.full((pairs,), TOKENS),
        token_logps=logps.unsqueeze(1) * share,
        mask=torch.ones(pairs, TOKENS, dtype=torch.bool),
        ref_token_logps=reference.unsqueeze(1) * share,
        ref_entropy=torch.full((pairs,), REF_ENTROPY, dtype=torch.float64),
        token_kl=torch.full((pairs, TOKENS), TOKEN_KL[name], dtype=torch.float64),
    )


_DONE: dict[Any, Sample] = {}
"""What was evaluated already, for the page of a loss, its picture in the table, and the overlay."""


class Study:
    """Where a loss shows its shape, and what changes it.

    Args:
        variant: the loss.
    """

    def __init__(self, variant: LossVariant) -> None:
        self.variant = variant
        self.defaults = defaults(variant)

    def along_margin(self, margins: torch.Tensor, **hyper: Any) -> Sample:
        """The loss at margins of shape (points,), of which each side has half."""
        key = (self.variant.name, tuple(margins.tolist()), tuple(sorted(hyper.items())))
        if key not in _DONE:
            _DONE[key] = sample(self.variant, margins / 2, -margins / 2, self.defaults | hyper)
        return _DONE[key]

    @functools.cached_property
    def reach(self) -> float:
        """The margin up to which the gradient changes by nine tenths of its largest value."""
        for limit in _RANGES:
            gradient = self.along_margin(torch.linspace(-limit, limit, 21)).by_margin
            if float(gradient.max() - gradient.min()) >= 0.9 * float(gradient.abs().max()):
                return limit
            if limit == _LAST_LOG_PROB and not self.variant.needs_reference:
                return limit
        return _RANGES[0]

    @functools.cached_property
    def margins(self) -> torch.Tensor:
        """The margins at which the loss is drawn, shape (points,)."""
        points = POINTS if self.variant.independent_pairs else POINTS_OF_BATCH
        return torch.linspace(-self.reach, self.reach, points)

    @functools.cached_property
    def is_of_margin(self) -> bool:
        """Whether value and gradient stay when both log-ratios move by the same amount."""
        limit = self.reach / 4
        grid = torch.linspace(-limit, limit, 7, dtype=torch.float64) + 0.0137 * limit  # between kinks
        chosen, rejected = (axis.flatten() for axis in torch.meshgrid(grid, grid, indexing="ij"))
        here, there = (sample(self.variant, chosen + by, rejected + by, self.defaults) for by in (0.0, limit))
        return here.is_close_to(there)

    @functools.cached_property
    def main(self) -> tuple[str, tuple[float, ...]] | None:
        """The number that changes the shape, with its default and two other values in ascending order.

        It is the first of the loss's own that does, else one that losses share; None if there is none.
        """
        if self.variant.name in SETTINGS:
            return SETTINGS[self.variant.name]
        shared = {p.name: p for p in self.variant.hyperparameters if p.shared}
        candidates = [p for p in self.variant.owned if p.type in (int, float)]
        candidates += [shared[name] for name in _PREFERRED if name in shared]
        found = ((p.name, self._settings(p)) for p in candidates)
        return next((one for one in found if len(one[1]) == 3), None)

    def _settings(self, parameter: DeclaredHyper) -> tuple[float, ...]:
        """The default and two other values at which the loss differs; fewer if there are none."""
        default = self.defaults[parameter.name]
        if default is None:
            return ()
        tried = [default * factor for factor in (0.5, 2.0, 0.25, 0.75, 4.0)] if default else [0.1, 0.3, 1.0, 2.0]
        margins = torch.linspace(-self.reach, self.reach, 9)
        seen = {default: self.along_margin(margins)}
        for value in tried:
            if len(seen) == 3 or parameter.problem(value, self.variant.name):
                continue
            found = self.along_margin(margins, **{parameter.name: value})
            if not any(found.is_close_to(one) for one in seen.values()):
                seen[value] = found
        return tuple(sorted(seen))


def held_fixed(variant: LossVariant) -> list[str]:
    """What was held fixed for the curves of a loss, as phrases."""
    phrases = []
    if variant.needs & (Need.LENGTHS | Need.TOKENS | Need.TOKEN_REFERENCE) or not variant.needs_reference:
        phrases.append(f"completions of {TOKENS} tokens, with log-probs in the ratio 1 : 2 : 3 : 4")
    if variant.needs & Need.TOKEN_KL:
        phrases.append("KL per token {chosen} (chosen) and {rejected} (rejected)".format(**TOKEN_KL))
    if variant.needs & Need.REF_ENTROPY:
        phrases.append(f"reference entropy {REF_ENTROPY}")
    held = columns_of(variant)
    phrases += [f"{name} = {held[name]:g}" for name in variant.columns if name in held]
    phrases += ["lists of two answers"] if variant.reads == "lists" else []
    if any(name.endswith("_token_weights") for name in variant.columns):
        phrases.append("token weights of 1")
    if not variant.independent_pairs:
        phrases.append(f"a batch with {len(COMPANIONS)} other pairs, of log-ratios {_listed(COMPANIONS)}")
    if variant.stateful:
        phrases.append(
            "a running state after one batch of them" if not variant.independent_pairs else "no tokens left out"
        )
    if variant.f_divergence:
        phrases.append("reverse KL")
    return phrases


def _listed(pairs: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"({chosen:g}, {rejected:g})" for chosen, rejected in pairs)
