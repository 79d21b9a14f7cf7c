"""From what was recorded of policy and reference on one batch to what loss variants read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .. import _trl
from ..config import DPOExtConfig
from ..core import transforms
from ..core.mixture import LossMixture
from ..core.pairs import Need, Side
from ..core.token_kl import Projection, token_kl


@dataclass(frozen=True, slots=True)
class ForwardOutputs:
    """One batch: what both models gave for it. Rows are 2 x pairs, chosen half first."""

    output: Any
    """The policy's scored output."""
    mask: torch.Tensor
    """(rows, tokens), true on completion tokens, in the positions of the log-probs."""
    ref_logps: tuple[torch.Tensor, torch.Tensor]
    """Summed reference log-probs of both sides, each (pairs,)."""
    ref_output: Any = None
    """The reference's scored output; None where its log-probs were stored or are not needed."""
    vocabulary: int = 0
    """Number of tokens that the reference chooses from; 0 where nobody asks."""
    projections: tuple[Projection, Projection] | None = None
    """What the logits of policy and reference are made of, where they are needed."""

    def tokens(self, name: str = "log_probs") -> torch.Tensor:
        """A field of the policy's output, (rows, tokens)."""
        return _trl.scored_tokens(self.output, self.mask.size(1), name)

    def ref_tokens(self, name: str = "log_probs") -> torch.Tensor:
        """A field of the reference's output, (rows, tokens)."""
        return _trl.scored_tokens(self.ref_output, self.mask.size(1), name)


def build_sides(batch: ForwardOutputs, mixture: LossMixture, args: DPOExtConfig) -> list[Side]:
    """The chosen and the rejected side of every pair, reduced and scored, with what the mixture needs."""
    token_logps = batch.tokens()
    logps, ref_logps = transforms.sum_logps(token_logps, batch.mask, args.ld_alpha), torch.cat(batch.ref_logps)
    fields = {
        "logps": logps,
        "ref_logps": ref_logps,
        "score": transforms.f_divergence_score(logps - ref_logps, args.f_divergence_type, args.f_alpha_divergence_coef),
        "lengths": batch.mask.sum(dim=1),
        "token_logps": token_logps,
        "mask": batch.mask,
    }
    if Need.TOKEN_REFERENCE in mixture.needs:
        fields["ref_token_logps"] = batch.ref_tokens()
    elif mixture.reference_free:
        fields["ref_token_logps"] = torch.zeros_like(token_logps)
    if Need.REF_ENTROPY in mixture.needs:
        fields["ref_entropy"] = transforms.relative_entropy(batch.ref_tokens("entropy"), batch.mask, batch.vocabulary)
    if batch.projections is not None:
        fields["token_kl"] = token_kl(*batch.projections, batch.mask)
    halves = {name: rows.chunk(2) for name, rows in fields.items()}
    return [Side(**{name: half[side] for name, half in halves.items()}) for side in range(2)]


def pair_weights(batch: ForwardOutputs, args: DPOExtConfig, columns: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The weight of each pair, (pairs,), without gradient; None where all weigh the same."""
    weights = columns[args.weight_column] if args.weight_column else None
    if args.use_weighting:
        wpo = transforms.wpo_weights(batch.tokens(), batch.tokens("log_sum_sq_probs"), batch.mask, clamp=args.wpo_clamp)
        weights = wpo if weights is None else wpo * weights
    return weights
