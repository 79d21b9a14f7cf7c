"""One batch on its way through a step: what was collated, what both models gave for it, and what losses read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .. import _trl
from ..core import transforms
from ..core.mixture import LossMixture
from ..core.pairs import Need, Side
from ..core.token_kl import Projection, token_kl
from .list_rows import ListRows

REF_TOKEN_LOGPS = "ref_token_logps"
"""The batch key of stored reference log-probs, (rows, tokens - 1) float32, in the positions of the policy's."""


class ScoreSettings(Protocol):
    """The options of the configuration that change how log-probs become scores and weights."""

    ld_alpha: float | None
    f_divergence_type: str
    f_alpha_divergence_coef: float
    use_weighting: bool
    wpo_clamp: bool
    weight_column: str | None


@dataclass(frozen=True, slots=True)
class PairBatch:
    """A collated batch, taken apart. Rows are 2 x pairs, chosen half first."""

    inputs: dict[str, Any]
    """What TRL and the models are given."""
    columns: dict[str, torch.Tensor]
    """Dataset columns that losses read."""
    stored: torch.Tensor | None
    """Stored reference log-probs, (rows, tokens); None unless a store serves this batch."""
    mask: torch.Tensor
    """(rows, tokens) bool, true on completion tokens, in the positions of the log-probs."""
    lists: ListRows | None = None
    """Which rows are the answers of lists; None for pairs."""

    @classmethod
    def take(cls, inputs: Mapping[str, Any], columns: Collection[str]) -> PairBatch:
        """Separate the dataset columns, lists, and stored log-probs from what the models are given."""
        inputs = dict(inputs)
        lists = ListRows.take(inputs)
        stored = inputs.pop(REF_TOKEN_LOGPS, None)
        taken = {name: inputs.pop(name) for name in columns if name in inputs}
        return cls(inputs, taken, stored, inputs[_trl.COMPLETION_MASK][..., 1:].bool(), lists)

    @property
    def prompts(self) -> int:
        """Number of pairs, or of lists."""
        return len(self.mask) // 2 if self.lists is None else self.lists.prompts


@dataclass(frozen=True, slots=True)
class RefLogps:
    """Reference log-probs of one batch."""

    chosen: torch.Tensor
    """Summed, (pairs,)."""
    rejected: torch.Tensor
    output: Any = None
    """The reference's scored output, or stored log-probs in that form; None when only sums are known."""
    projection: Projection | None = None
    """What the reference's logits are made of, if a loss needs them."""

    @property
    def sums(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both sides, each (pairs,)."""
        return self.chosen, self.rejected


@dataclass(frozen=True, slots=True)
class ForwardOutputs:
    """What policy and reference gave for one batch."""

    policy: _trl.HostLoss
    reference: RefLogps
    mask: torch.Tensor
    """(rows, tokens) bool, true on completion tokens."""
    vocabulary: int = 0
    """Number of tokens that the reference chooses from; 0 unless a loss needs it."""

    def tokens(self, name: str = "log_probs") -> torch.Tensor:
        """A field of the policy's output, (rows, tokens)."""
        return _trl.scored_tokens(self.policy.scored, self.mask.size(1), name)

    def ref_tokens(self, name: str = "log_probs") -> torch.Tensor:
        """A field of the reference's output, (rows, tokens)."""
        return _trl.scored_tokens(self.reference.output, self.mask.size(1), name)


def build_sides(outputs: ForwardOutputs, mixture: LossMixture, settings: ScoreSettings) -> list[Side]:
    """The chosen and the rejected side of every pair, summed and scored, with what the mixture needs."""
    halves = {name: rows.chunk(2) for name, rows in _row_fields(outputs, mixture, settings).items()}
    return [Side(**{name: half[side] for name, half in halves.items()}) for side in range(2)]


def build_answers(outputs: ForwardOutputs, mixture: LossMixture, settings: ScoreSettings, lists: ListRows) -> Side:
    """Every answer of the lists, as `build_sides` gives sides."""
    fields = _row_fields(outputs, mixture, settings)
    return Side(**{name: rows.index_select(0, lists.answers) for name, rows in fields.items()})


def _row_fields(outputs: ForwardOutputs, mixture: LossMixture, settings: ScoreSettings) -> dict[str, torch.Tensor]:
    """The fields of `Side` for every row of a batch."""
    token_logps = outputs.tokens()
    logps = transforms.sum_logps(token_logps, outputs.mask, settings.ld_alpha)
    ref_logps = torch.cat(outputs.reference.sums)
    fields = {
        "logps": logps,
        "ref_logps": ref_logps,
        "score": transforms.f_divergence_score(
            logps - ref_logps, settings.f_divergence_type, settings.f_alpha_divergence_coef
        ),
        "lengths": outputs.mask.sum(dim=1),
        "token_logps": token_logps,
        "mask": outputs.mask,
    }
    if Need.TOKEN_REFERENCE in mixture.needs:
        fields["ref_token_logps"] = outputs.ref_tokens()
    elif mixture.reference_free:
        fields["ref_token_logps"] = torch.zeros_like(token_logps)
    if Need.REF_ENTROPY in mixture.needs:
        entropy = outputs.ref_tokens("entropy")
        fields["ref_entropy"] = transforms.relative_entropy(entropy, outputs.mask, outputs.vocabulary)
    if Need.TOKEN_KL in mixture.needs:
        policy, reference = outputs.policy.projection, outputs.reference.projection
        assert policy is not None
        assert reference is not None
        fields["token_kl"] = token_kl(policy, reference, outputs.mask)
    return fields


def pair_weights(
    outputs: ForwardOutputs, settings: ScoreSettings, columns: Mapping[str, torch.Tensor]
) -> torch.Tensor | None:
    """The weight of each pair, (pairs,), without gradient; None when all weigh the same."""
    weights = columns[settings.weight_column] if settings.weight_column else None
    if settings.use_weighting:
        wpo = transforms.wpo_weights(
            outputs.tokens(), outputs.tokens("log_sum_sq_probs"), outputs.mask, clamp=settings.wpo_clamp
        )
        weights = wpo if weights is None else wpo * weights
    return weights
