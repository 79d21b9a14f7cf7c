"""Optimal-transport losses, which compare the distributions of rewards in a batch instead of pairs.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_running_statistics.py, test_special_cases.py and test_ties.py for this family.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta, Hyper, LabelSmoothing
from ..core.numerics import sort
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss

AotGlobal = Annotated[bool, Hyper("Sort the pairs of all processes together instead of each process's own.")]


@register_loss(
    paper="2406.05882",
    needs=Need.REFERENCE | Need.BATCH,
    independent_pairs=False,
    order_preserving=False,
    prefix="aot",
    verification="framework",
    from_trl=True,
    shift_invariant=True,
)
def aot(p: Pairs, *, beta: Beta, label_smoothing: LabelSmoothing, aot_global: AotGlobal = False) -> torch.Tensor:
    """AOT, paired: makes the sorted policy margins dominate the sorted reference margins.

        d_(k) = sort(logps_chosen - logps_rejected)_k - sort(ref_logps_chosen - ref_logps_rejected)_k
        -(1 - e) * log sigmoid(beta * d_(k)) - e * log sigmoid(-beta * d_(k))

    Returns:
        One value per rank k of the sorted batch, shape (pairs,); value k does not belong to pair k.

    References:
        arXiv 2406.05882, section 4.

    Note:
        As in TRL, the batch is the micro-batch of one process, unless `aot_global` makes it that of all processes.
        With one pair in it, this is DPO. Pairs of equal margins are ranked in the order of the batch.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          ref_chosen=[-13.0, -19.5], ref_rejected=[-14.0, -19.0])
        >>> get_loss("aot")(pairs, beta=0.1, label_smoothing=0.0)
        tensor([0.7710, 0.5981])
    """
    policy = p.chosen.logps - p.rejected.logps
    reference = p.chosen.ref_logps - p.rejected.ref_logps
    return _smoothed(beta * _sorted_difference(p, policy, reference, aot_global), label_smoothing)


@register_loss(
    paper="2406.05882",
    needs=Need.REFERENCE | Need.BATCH,
    independent_pairs=False,
    order_preserving=False,
    prefix="aot",
    verification="framework",
    from_trl=True,
    shift_invariant=True,
)
def aot_unpaired(
    p: Pairs, *, beta: Beta, label_smoothing: LabelSmoothing, aot_global: AotGlobal = False
) -> torch.Tensor:
    """AOT, unpaired: makes the sorted chosen log-ratios dominate the sorted rejected ones.

        d_(k) = sort(logratio_chosen)_k - sort(logratio_rejected)_k
        -(1 - e) * log sigmoid(beta * d_(k)) - e * log sigmoid(-beta * d_(k))

    Works where chosen and rejected answers come from different prompts.

    Returns:
        One value per rank k of the sorted batch, shape (pairs,); value k does not belong to pair k.

    References:
        arXiv 2406.05882, section 4.

    Note:
        As in TRL, the batch is the micro-batch of one process, unless `aot_global` makes it that of all processes.
        TRL called this `aot_pair` once. Equal log-ratios are ranked in the order of the batch.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          ref_chosen=[-13.0, -19.5], ref_rejected=[-14.0, -19.0])
        >>> get_loss("aot_unpaired")(pairs, beta=0.1, label_smoothing=0.0)
        tensor([0.6685, 0.6931])
    """
    chosen, rejected = p.chosen.logratio, p.rejected.logratio
    if not aot_global:
        return _smoothed(beta * _sorted_difference(p, chosen, rejected, False), label_smoothing)
    ours = _smoothed(beta * _sorted_difference(p, chosen, rejected, True), label_smoothing)
    # This process's rejected sides meet chosen ones of any process: their value is counted there, their gradient here.
    theirs = _smoothed(-beta * _sorted_difference(p, rejected, chosen, True), label_smoothing)
    return ours + theirs - theirs.detach()


def _sorted_difference(p: Pairs, ours: torch.Tensor, theirs: torch.Tensor, everywhere: bool) -> torch.Tensor:
    """Sorted minus sorted, (pairs,), at the ranks that `ours` take; over all processes `theirs` carry no gradient."""
    ours = sort(ours)
    if not everywhere:
        return ours - sort(theirs)
    places = p.gather(ours).argsort(stable=True).argsort()[p.own]
    return ours - sort(p.gather(theirs))[places]


def _smoothed(x: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    return -F.logsigmoid(x) * (1 - label_smoothing) - F.logsigmoid(-x) * label_smoothing
