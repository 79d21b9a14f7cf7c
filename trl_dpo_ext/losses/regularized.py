"""DPO together with the likelihood of the chosen side."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta, Hyper
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss
from .numerics import token_mean_nll

DpoNllWeight = Annotated[float, Hyper("Weight of the likelihood term.", ge=0)]
DpoNllNorm = Annotated[
    Literal["seq_mean", "seq_sum", "token_mean"],
    Hyper("Likelihood per token of each answer, of the whole answer, or per token of the batch."),
]


@register_loss(
    paper="2404.19733",
    needs=Need.REFERENCE | Need.LENGTHS,
    per_pair=False,
    f_divergence=True,
    aliases=("irpo",),
    evidence="framework",
)
def dpo_nll(
    p: Pairs, *, beta: Beta, dpo_nll_weight: DpoNllWeight = 1.0, dpo_nll_norm: DpoNllNorm = "seq_mean"
) -> torch.Tensor:
    """DPO plus the negative log-likelihood of the chosen side, which keeps it from becoming unlikely.

        -log sigmoid(beta * margin) + weight * NLL

        seq_mean    NLL = -logps_chosen / length_chosen                                     (IRPO)
        seq_sum     NLL = -logps_chosen                                                     (RPO of Liu et al.)
        token_mean  NLL = -sum of logps_chosen / sum of length_chosen, over the micro-batch (TRL's ["sigmoid", "sft"])

    For reasoning and for noisy pairs, where DPO lowers both sides. IRPO trains with weight 1, Llama 3 with 0.2; with
    `seq_sum`, Liu et al. use beta * 0.005.

    Returns:
        One value per pair, shape (pairs,).

    Reference: IRPO, arXiv 2404.19733; Llama 3, arXiv 2407.21783; Liu et al., arXiv 2405.16436.

    Note:
        The three normalizations differ by a factor of the length: a weight for one is not a weight for another.
        `seq_sum` was checked by reading the authors' code only. Llama 3's weight is from memory.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          chosen_lengths=[6], rejected_lengths=[8])
        >>> get_loss("dpo_nll")(pairs, beta=0.1, dpo_nll_weight=1.0)
        tensor([2.5981])
    """
    if dpo_nll_norm == "seq_mean":
        nll = -p.chosen.avg_logps
    elif dpo_nll_norm == "seq_sum":
        nll = -p.chosen.logps
    else:
        nll = token_mean_nll(p.chosen)
    return -F.logsigmoid(beta * p.margin) + dpo_nll_weight * nll
