"""Losses that compare each pair with the running mean and standard deviation of earlier batches.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_adaptive.py, test_running_statistics.py and test_special_cases.py for this family.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta, Hyper
from ..core.numerics import clamp_min
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss
from ..core.running_state import RunningState, restored, saved

_MOMENTUM = 0.9

# Where the policy equals the reference, as at the first step, every gap is 0 and so is their spread.
_MIN_STD = 1e-6


class _RunningMoments:
    """Exponential averages of the batches' mean and standard deviation, corrected for having started at zero."""

    def __init__(self) -> None:
        self._mean: torch.Tensor | float = 0.0
        self._std: torch.Tensor | float = 0.0
        self.batches = 0

    def update(self, values: torch.Tensor) -> None:
        """Take in one batch over all processes; a single pair has no spread and is left out."""
        if values.numel() < 2:
            return
        self._mean = _MOMENTUM * self._mean + (1 - _MOMENTUM) * values.mean()
        self._std = _MOMENTUM * self._std + (1 - _MOMENTUM) * values.std()
        self.batches += 1

    def centered(self, values: torch.Tensor) -> torch.Tensor:
        """Distance from the running mean; zeros as long as nothing is known."""
        if self.batches == 0:
            return torch.zeros_like(values)
        return values - self._mean / (1 - _MOMENTUM**self.batches)

    def standardized(self, values: torch.Tensor) -> torch.Tensor:
        """Distance from the running mean in running standard deviations; zeros as long as nothing is known."""
        if self.batches == 0:
            return torch.zeros_like(values)
        std = torch.zeros_like(values) + self._std / (1 - _MOMENTUM**self.batches)
        return self.centered(values) / clamp_min(std, _MIN_STD)

    def state_dict(self) -> RunningState:
        return {**saved(mean=self._mean, std=self._std), "batches": self.batches}

    def load_state_dict(self, state: RunningState) -> None:
        self._mean, self._std = restored(state, "mean", "std")
        self.batches = int(state["batches"])


AlphaDpoBeta = Annotated[float, Hyper("Scale of the mean log-prob per token; far larger than DPO's beta.", gt=0)]
AlphaDpoRatio = Annotated[float, Hyper("Mean target margin as a fraction of alpha_dpo_beta.")]
AlphaDpoAlpha = Annotated[
    float, Hyper("How strongly a pair's target margin follows its gap to the reference; 0 is SimPO.", ge=0)
]


@register_loss(
    paper="2410.10148",
    needs=Need.REFERENCE | Need.LENGTHS | Need.BATCH | Need.STATE,
    independent_pairs=False,
    name="alpha_dpo",
    verification="authors",
    shift_invariant=True,
)
class AlphaDpo:
    """α-DPO: SimPO with a per-pair target margin, larger where the policy has already moved away from the reference.

        -log sigmoid(beta * (avg_logps_chosen - avg_logps_rejected - ratio - alpha * z))

        z = (gap - mean) / std,  gap = logratio_chosen / length_chosen - logratio_rejected / length_rejected

    Mean and std are exponential averages (momentum 0.9) over the batches of all processes, the current one included;
    the margin carries no gradient. The authors train with beta 2.5 to 10, ratio 0.15 to 0.6, alpha 0.05 to 0.2.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2410.10148.

    Note:
        As in the authors' code, beta scales alpha * z too; in the paper as remembered it does not. Two deviations: the
        averages are corrected for their start at zero, where theirs makes z about ten times too large at first, and the
        std is at least 1e-6, where theirs is NaN if the policy equals the reference. Batches of one pair have no
        spread: they leave the averages alone, and until others came z is 0. Evaluation uses the averages as they stand.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          ref_chosen=[-13.0, -19.5], ref_rejected=[-14.0, -19.0],
        ...                          chosen_lengths=[6, 10], rejected_lengths=[8, 5])
        >>> loss = get_loss("alpha_dpo").make()
        >>> loss(pairs, alpha_dpo_beta=2.5, alpha_dpo_gamma_ratio=0.6, alpha_dpo_alpha=0.2)
        tensor([2.2746, 0.0560])
        >>> loss.state_dict()["batches"]
        1
    """

    def __init__(self) -> None:
        self._moments = _RunningMoments()

    def __call__(
        self,
        p: Pairs,
        *,
        alpha_dpo_beta: AlphaDpoBeta = 2.5,
        alpha_dpo_gamma_ratio: AlphaDpoRatio = 0.6,
        alpha_dpo_alpha: AlphaDpoAlpha = 0.2,
    ) -> torch.Tensor:
        """One value per pair; in training, the averages are moved first."""
        gaps = (p.chosen.avg_logratio - p.rejected.avg_logratio).detach()
        if p.training:
            self._moments.update(p.gather(gaps))
        target = alpha_dpo_gamma_ratio + alpha_dpo_alpha * self._moments.standardized(gaps)
        return -F.logsigmoid(alpha_dpo_beta * (p.chosen.avg_logps - p.rejected.avg_logps - target))

    def state_dict(self) -> RunningState:
        """The averages before correction, and the number of batches in them."""
        return self._moments.state_dict()

    def load_state_dict(self, state: RunningState) -> None:
        """Continue from a saved state."""
        self._moments.load_state_dict(state)


# The authors' floor: a beta at or below zero would turn the preference around.
_MIN_BETA = 1e-3

BetaDpoAlpha = Annotated[float, Hyper("How strongly beta follows the batch's mean margin; 0 keeps it fixed.", ge=0)]
BetaDpoRho = Annotated[float, Hyper("Fraction of the batch left out as outliers.", ge=0, lt=1)]


@register_loss(
    paper="2407.08639",
    needs=Need.REFERENCE | Need.BATCH | Need.STATE,
    independent_pairs=False,
    f_divergence=True,
    name="beta_dpo",
    verification="authors",
)
class BetaDpo:
    """β-DPO: DPO with a per-batch beta, larger where pairs are clearer than usual, that leaves out outliers.

        -log sigmoid(beta_used * margin) over the pairs kept,  beta_used = beta * (1 + alpha * (mean of kept - mean))

    A share 1 - rho of the pairs of all processes is drawn without replacement, a pair with probability proportional to
    exp(-z^2 / 2), z = (margin - mean) / std. Mean and std are exponential averages (momentum 0.9) over the batches, the
    current one included. For data of mixed quality and large micro-batches.

    Returns:
        One value per pair, 0 for those left out, scaled up so that the mean over pairs and then over processes is the
        mean over the pairs kept; shape (pairs,).

    References:
        arXiv 2407.08639.

    Note:
        Alpha and rho are the README's; the authors' configuration file has alpha 0. Deviations from their code: the
        averages are corrected for their start at zero, so the first batch trains at beta itself; the std is at least
        1e-6, where theirs is NaN if the policy equals the reference; the draw has its own seed, the number of batches
        seen, so that all processes draw alike; the kept pairs of all processes weigh the same. Evaluation keeps every
        pair and leaves the averages alone. Batches of one pair have no spread and are DPO until others came.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          ref_chosen=[-13.0, -19.5], ref_rejected=[-14.0, -19.0])
        >>> loss = get_loss("beta_dpo").make()
        >>> loss(pairs, beta=0.1, beta_dpo_alpha=0.6, beta_dpo_rho=0.0)
        tensor([0.5981, 0.7710])
        >>> loss.state_dict()["batches"]
        1
    """

    def __init__(self) -> None:
        self._moments = _RunningMoments()

    def __call__(
        self, p: Pairs, *, beta: Beta, beta_dpo_alpha: BetaDpoAlpha = 0.6, beta_dpo_rho: BetaDpoRho = 0.2
    ) -> torch.Tensor:
        """One value per pair; in training, the averages are moved first."""
        margins = p.margin
        everyone = p.gather(margins)
        if p.training:
            self._moments.update(everyone)
        kept = self._draw(everyone, beta_dpo_rho if p.training else 0.0)
        weights = kept / kept.mean()
        shift = (weights * self._moments.centered(everyone)).mean()
        beta_used = clamp_min(beta * (1 + beta_dpo_alpha * shift), _MIN_BETA)
        return -weights[p.own] * F.logsigmoid(beta_used * margins)

    def _draw(self, everyone: torch.Tensor, rho: float) -> torch.Tensor:
        """1 for the pairs that are kept and 0 for the others, the same on every process."""
        count = max(1, int(everyone.numel() * (1 - rho)))
        generator = torch.Generator().manual_seed(self._moments.batches)
        uniform = torch.rand(everyone.numel(), generator=generator, dtype=torch.float64)
        # The largest of log-weight + Gumbel noise are a draw without replacement, also where every weight underflows.
        gumbel = -torch.log(-torch.log(uniform))
        keys = (
            gumbel.to(everyone.device, everyone.dtype, non_blocking=True)
            - 0.5 * self._moments.standardized(everyone) ** 2
        )
        return torch.zeros_like(everyone).scatter(0, keys.topk(count).indices, 1.0)

    def state_dict(self) -> RunningState:
        """The averages before correction, and the number of batches in them, which seeds the next draw."""
        return self._moments.state_dict()

    def load_state_dict(self, state: RunningState) -> None:
        """Continue from a saved state."""
        self._moments.load_state_dict(state)
