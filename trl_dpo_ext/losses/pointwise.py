"""Pointwise losses, which score each side by its own reward relative to the reference.

Tests in tests/unit/losses: test_golden.py, test_gradients.py and test_properties.py for every variant,
test_running_statistics.py and test_special_cases.py for this family.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..core.hyperparameters import Beta
from ..core.numerics import relu
from ..core.pairs import Need, Pairs
from ..core.registry import register_loss
from ..core.running_state import RunningState, restored, saved


@register_loss(paper="2402.05369", needs=Need.REFERENCE, verification="framework", from_trl=True)
def nca_pair(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """NCA: noise-contrastive alignment of both sides, which keeps the chosen likelihood from falling.

        -log sigmoid(r_chosen) - 1/2 log sigmoid(-r_chosen) - 1/2 log sigmoid(-r_rejected),  r = beta * logratio

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2402.05369, the two-response case.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("nca_pair")(pairs, beta=0.1)
        tensor([1.3388])
    """
    chosen, rejected = beta * p.chosen.logratio, beta * p.rejected.logratio
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


@register_loss(paper="2404.04656", needs=Need.REFERENCE, verification="framework", from_trl=True)
def bco_pair(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """BCO without its reward shift: classifies chosen against rejected, with the reference as the threshold.

        -log sigmoid(beta * logratio_chosen) - log sigmoid(-beta * logratio_rejected)

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2404.04656.

    Note:
        The paper subtracts a running mean of the rewards, which TRL dropped; that form is `bco_pair_delta`.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("bco_pair")(pairs, beta=0.1)
        tensor([1.2888])
    """
    return -F.logsigmoid(beta * p.chosen.logratio) - F.logsigmoid(-(beta * p.rejected.logratio))


@register_loss(
    paper="2404.04656",
    needs=Need.REFERENCE | Need.BATCH | Need.STATE,
    independent_pairs=False,
    name="bco_pair_delta",
    verification="framework",
    shift_invariant=True,
)
class BcoPairDelta:
    """BCO with its reward shift: classifies chosen against rejected, with the running mean reward as the threshold.

        -log sigmoid(r_chosen - delta) - log sigmoid(-(r_rejected - delta)),  r = beta * logratio

    delta is the mean of all rewards seen in training, of both sides and all processes, the current batch included. It
    carries no gradient. The form of the paper; use it where rewards drift to one side of zero and `bco_pair` saturates.

    Returns:
        One value per pair, shape (pairs,).

    References:
        arXiv 2404.04656; the running mean as in TRL before 0.29.

    Note:
        Every pair weighs the same in the mean, where TRL weighed every batch the same. Before the first training batch
        delta is 0, the reference's own reward; evaluation uses delta as it stands.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          ref_chosen=[-13.0, -19.5], ref_rejected=[-14.0, -19.0])
        >>> loss = get_loss("bco_pair_delta").make()
        >>> loss(pairs, beta=0.1)
        tensor([1.2888, 1.4627])
        >>> round(loss.state_dict()["delta"], 4)
        0.0125
    """

    def __init__(self) -> None:
        self._delta: torch.Tensor | float = 0.0
        self._pairs = 0

    def __call__(self, p: Pairs, *, beta: Beta) -> torch.Tensor:
        """One value per pair; in training, the mean is moved first."""
        chosen, rejected = beta * p.chosen.logratio, beta * p.rejected.logratio
        if p.training:
            rewards = p.gather((chosen + rejected) / 2)
            self._pairs += rewards.numel()
            self._delta = self._delta + (rewards.mean() - self._delta) * (rewards.numel() / self._pairs)
        return -F.logsigmoid(chosen - self._delta) - F.logsigmoid(-(rejected - self._delta))

    def state_dict(self) -> RunningState:
        """The running mean and the number of pairs in it."""
        return {**saved(delta=self._delta), "pairs": self._pairs}

    def load_state_dict(self, state: RunningState) -> None:
        """Continue from a saved state."""
        (self._delta,) = restored(state, "delta")
        self._pairs = int(state["pairs"])


@register_loss(paper="2408.06266", needs=Need.REFERENCE, verification="framework", from_trl=True)
def apo_zero(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """APO-zero: raises the chosen side and lowers the rejected one, each towards saturation.

        1 - sigmoid(beta * logratio_chosen) + sigmoid(beta * logratio_rejected)

    For answers better than what the model says today. Saturating: a pair far on either side stops moving.

    Returns:
        One value per pair in (0, 2), shape (pairs,).

    References:
        arXiv 2408.06266, equation 7.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("apo_zero")(pairs, beta=0.1)
        tensor([0.9500])
    """
    return 1 - torch.sigmoid(beta * p.chosen.logratio) + torch.sigmoid(beta * p.rejected.logratio)


@register_loss(paper="2408.06266", needs=Need.REFERENCE, verification="framework", from_trl=True)
def apo_down(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """APO-down: lowers both sides, the rejected one more.

        sigmoid(beta * logratio_chosen) + 1 - sigmoid(beta * (logratio_chosen - logratio_rejected))

    For chosen answers that are worse than what the model says today.

    Returns:
        One value per pair in (0, 2), shape (pairs,).

    References:
        arXiv 2408.06266, equation 8.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])
        >>> get_loss("apo_down")(pairs, beta=0.1)
        tensor([0.9751])
    """
    chosen, rejected = p.chosen.logratio, p.rejected.logratio
    return torch.sigmoid(beta * chosen) + (1 - torch.sigmoid(beta * (chosen - rejected)))


@register_loss(paper="2402.01306", needs=Need.REFERENCE | Need.BATCH, independent_pairs=False, verification="framework")
def kto_pair(p: Pairs, *, beta: Beta) -> torch.Tensor:
    """KTO on pairs: moves each side away from the batch's average log-ratio of the other side.

        1 - 1/2 sigmoid(beta * (logratio_chosen - z_rejected)) - 1/2 sigmoid(beta * (z_chosen - logratio_rejected))

        z_side = max(0, mean of logratio_side over the batch), without gradient

    For old recipes. The authors of KTO advise against this form: with unpaired data, use TRL's KTO trainer.

    Returns:
        One value per pair in (0, 1), shape (pairs,).

    References:
        arXiv 2402.01306; the pair form is TRL's before 0.29.

    Note:
        z is over all processes and detached, as in the paper; TRL's was of one process and carried a gradient. With
        z = 0 this is half of `apo_zero`.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-12.0, -20.0], rejected=[-15.0, -18.0],
        ...                          ref_chosen=[-13.0, -19.5], ref_rejected=[-14.0, -19.0])
        >>> get_loss("kto_pair")(pairs, beta=0.1)
        tensor([0.4719, 0.5156])
    """
    chosen, rejected = p.chosen.logratio, p.rejected.logratio
    z_chosen, z_rejected = (relu(p.gather(side).mean()) for side in (chosen, rejected))
    # 1 - sigmoid(x) is sigmoid(-x), which keeps its digits where x is large.
    return 0.5 * (torch.sigmoid(beta * (z_rejected - chosen)) + torch.sigmoid(beta * (rejected - z_chosen)))
