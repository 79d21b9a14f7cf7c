"""Losses that weight a pair by the policy's confidence in it.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_identities.py and test_special_cases.py for this family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F

from ..core.columns import SCORE_COLUMNS, Doubt
from ..core.hyperparameters import Beta, Hyper
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss
from .soft_labels import score_gap

FocalpoGamma = Annotated[float, Hyper("Exponent of the weight q^gamma; 0 is DPO.", ge=0)]


@register_loss(paper="2501.06645", needs=Need.REFERENCE, f_divergence=True, verification="third_party")
def focalpo(p: Pairs, *, beta: Beta, focalpo_gamma: FocalpoGamma = 0.05) -> torch.Tensor:
    """FocalPO: down-weights pairs that the policy ranks wrongly, which DPO rarely corrects.

        -q^gamma * log q,  q = sigmoid(beta * margin), no gradient through q^gamma

    The opposite of focal loss in vision, which looks at the hard examples. For noisy or too difficult pairs.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2501.06645.

    Note:
        Checked against third-party code only; the authors' repository has no code for it. The paper fixes one gamma,
        which could not be confirmed: 0.05 is mild, and summaries tabulate 1 to 3. The paper differentiates q^gamma too,
        which turns the gradient around where q < exp(-1 / gamma).

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("focalpo")(pairs, beta=0.1, focalpo_gamma=0.05)
        tensor([0.5805])
    """
    log_q = F.logsigmoid(beta * p.margin)
    return -torch.exp(focalpo_gamma * log_q).detach() * log_q


RopoAlpha = Annotated[float, Hyper("Weight of the bounded, noise-tolerant term relative to DPO's.", gt=0)]


@register_loss(paper="2404.04102", needs=Need.REFERENCE, f_divergence=True, verification="framework")
def ropo(p: Pairs, *, beta: Beta, ropo_alpha: RopoAlpha = 14.0) -> torch.Tensor:
    """ROPO: DPO mixed with a bounded loss, so that pairs the policy confidently contradicts lose influence.

        4 alpha / (1 + alpha)^2 * [-log sigmoid(beta * margin) + alpha * sigmoid(-beta * margin)]

    For noisy labels when the noise rate is not known; with a known rate, see `robust` and `cdpo`.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2404.04102, equation 9.

    Note:
        Equal to the code of another paper that compares with it, whose alpha is 14, too; the authors' code is not
        public. The paper's method also filters and re-samples the data between rounds, which is not part of a loss.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("ropo")(pairs, beta=0.1, ropo_alpha=14.0)
        tensor([1.7174])
    """
    x = beta * p.margin
    scale = 4 * ropo_alpha / (1 + ropo_alpha) ** 2
    return scale * (-F.logsigmoid(x) + ropo_alpha * torch.sigmoid(-x))


UniDpoBeta = Annotated[float, Hyper("Scale of the gap per token; larger than DPO's beta.", gt=0)]
UniDpoEta = Annotated[float, Hyper("Scale of the score gap in the quality weight.", ge=0)]
UniDpoTauRef = Annotated[float, Hyper("Policy's scaled gap at which the performance weight is (1/2)^gamma.", ge=0)]
UniDpoGamma = Annotated[float, Hyper("Exponent of the performance weight; 0 switches it off.", ge=0)]
UniDpoLambda = Annotated[float, Hyper("Weight of the likelihood of good chosen answers.", ge=0)]
UniDpoTauGood = Annotated[float, Hyper("Score from which a chosen answer is good, in units of the scores.")]


def _all_alike(lowest: float, highest: float, hyper: Mapping[str, Any]) -> Doubt | None:
    threshold = hyper["uni_dpo_tau_good"]
    if lowest < threshold <= highest or hyper["uni_dpo_lambda"] == 0:
        return None
    sentence = (
        f"no score_chosen reaches uni_dpo_tau_good={threshold:g} (the highest is {highest:g}), so the likelihood term "
        "of uni_dpo has no effect"
        if highest < threshold
        else f"every score_chosen reaches uni_dpo_tau_good={threshold:g} (the lowest is {lowest:g}), so uni_dpo takes "
        "all chosen answers for good ones"
    )
    return sentence, "Set uni_dpo_tau_good in units of the scores, or uni_dpo_lambda=0."


UNI_DPO_COLUMNS = {**SCORE_COLUMNS, "score_chosen": replace(SCORE_COLUMNS["score_chosen"], doubts=(_all_alike,))}


@register_loss(paper="2506.10054", needs=Need.REFERENCE | Need.LENGTHS, columns=UNI_DPO_COLUMNS, verification="authors")
def uni_dpo(
    p: Pairs,
    *,
    uni_dpo_beta: UniDpoBeta = 2.0,
    uni_dpo_eta: UniDpoEta = 0.7,
    uni_dpo_tau_ref: UniDpoTauRef = 0.8,
    uni_dpo_gamma: UniDpoGamma = 3.0,
    uni_dpo_lambda: UniDpoLambda = 0.001,
    uni_dpo_tau_good: UniDpoTauGood = 3.2,
) -> torch.Tensor:
    """Uni-DPO: weights a pair by the quality of its labels and by how far the policy is from having learned it.

        -w_quality * w_performance * log sigmoid(beta * (avg_logratio_chosen - avg_logratio_rejected))
          - lambda * [policy below reference on chosen, score_chosen >= tau_good] * avg_logps_chosen

        w_quality = sigmoid(eta * score gap)
        w_performance = (1 - sigmoid(beta * (avg_logps_chosen - avg_logps_rejected) - tau_ref))^gamma

    Everything is per token. For scored pairs of mixed quality. Scores have the scale of the authors' 3.2 out of 5 or
    so: adapt tau_good and eta to other ones.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2506.10054.

    Note:
        The performance weight carries a gradient, as in the authors' code. They train text models with beta 2 to 10 and
        tau_ref 0.8 to 1, math with beta 2, tau_ref 2, lambda 0.2, and tau_good 8.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0],
        ...                          chosen_lengths=[6], rejected_lengths=[8],
        ...                          columns={"score_chosen": [8.0], "score_rejected": [6.0]})
        >>> get_loss("uni_dpo")(pairs, uni_dpo_beta=2.0)
        tensor([0.1446])
    """
    quality = torch.sigmoid(uni_dpo_eta * score_gap(p))
    learned = uni_dpo_beta * (p.chosen.avg_logps - p.rejected.avg_logps)
    performance = torch.exp(uni_dpo_gamma * F.logsigmoid(uni_dpo_tau_ref - learned))  # 1 - sigmoid loses its digits
    preference = -quality * performance * F.logsigmoid(uni_dpo_beta * (p.chosen.avg_logratio - p.rejected.avg_logratio))
    good = (p.chosen.logratio < 0) & (p.columns["score_chosen"] >= uni_dpo_tau_good)
    return preference - uni_dpo_lambda * p.chosen.avg_logps.masked_fill(~good, 0.0)
