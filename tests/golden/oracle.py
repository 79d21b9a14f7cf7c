"""Every loss variant once more, in plain Python with 50 digits: what the package's tensors are compared with.

Written from the papers' formulas, without torch and without a line of the package. Notation, one row per pair:

    pi_w, pi_l    policy log-prob of the chosen and the rejected side, summed over the completion
    ref_w, ref_l  the same of the reference          n_w, n_l  completion tokens
    lr = pi - ref (log-ratio)    z = f-divergence score, lr for reverse KL    a = pi / n    D = lr_w - lr_l
    H  the reference's entropy over both sides, as a share of the largest possible one
    tokens_w, tokens_l  the tokens of a side: log-prob `pi` and log-ratio `lr` of each (made up by `oracle_tokens.py`)

`row.still` is the row as gradients see it through a stop-gradient: `cases.py` moves a row to differentiate and leaves
`still` where it was, so a detach rule is part of the formula here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from mpmath import exp, expm1, log, log1p, mp, mpf

mp.dps = 50

VARIANTS: dict[str, Callable[..., list]] = {}


class Row:
    """One pair; see the notation above."""

    def __init__(self, **numbers: Any) -> None:
        self.still = self
        self.__dict__.update({name: mpf(value) for name, value in numbers.items()})
        self.lr_w, self.lr_l = self.pi_w - self.ref_w, self.pi_l - self.ref_l
        self.z_w, self.z_l = self.lr_w, self.lr_l
        self.a_w, self.a_l = self.pi_w / self.n_w, self.pi_l / self.n_l
        self.D, self.Dpi, self.Dref = self.lr_w - self.lr_l, self.pi_w - self.pi_l, self.ref_w - self.ref_l

    @property
    def Dz(self) -> mpf:
        return self.z_w - self.z_l


def variant(formula: Callable[..., list]) -> Callable[..., list]:
    """Enter a formula, with every number turned into 50 digits before it is used."""
    signature = inspect.signature(formula)

    def precise(rows: Sequence[Row], **hyper: Any) -> list:
        bound = signature.bind(rows, **hyper)
        bound.apply_defaults()
        return formula(
            rows,
            **{
                name: mpf(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
                for name, value in bound.arguments.items()
                if name != "rows"
            },
        )

    hyper = {name: given.default for name, given in signature.parameters.items() if name not in ("rows", "earlier")}
    precise.defaults = {name: default for name, default in hyper.items() if default is not inspect.Parameter.empty}
    precise.shared = [name for name in hyper if name not in precise.defaults]
    precise.running = "earlier" in signature.parameters
    VARIANTS[formula.__name__] = precise
    return precise


def ls(x: mpf) -> mpf:
    """Log of the sigmoid."""
    return -log1p(exp(-x)) if x > 0 else x - log1p(exp(x))


def s(x: mpf) -> mpf:
    return exp(ls(x))


def mean(values: Sequence[mpf]) -> mpf:
    return sum(values) / len(values)


def relu(x: mpf) -> mpf:
    return max(mpf(0), x)


def token_mean_nll(rows: Sequence[Row]) -> mpf:
    """Over all chosen tokens of the batch, not per sequence."""
    return -sum(row.pi_w for row in rows) / sum(row.n_w for row in rows)


# --- TRL's fifteen --------------------------------------------------------------------------------------------------


@variant
def sigmoid(rows, *, beta):
    return [-ls(beta * r.Dz) for r in rows]


@variant
def hinge(rows, *, beta):
    return [relu(1 - beta * r.Dz) for r in rows]


@variant
def ipo(rows, *, beta):
    return [(r.z_w / r.n_w - r.z_l / r.n_l - 1 / (2 * beta)) ** 2 for r in rows]


@variant
def exo_pair(rows, *, beta, label_smoothing):
    e = label_smoothing
    return [
        s(x) * (ls(x) - log1p(-e)) + s(-x) * (ls(-x) - log(e)) for x in (beta * r.Dz for r in rows)
    ]  # q log(q / (1 - e)) + (1 - q) log((1 - q) / e)


@variant
def nca_pair(rows, *, beta):
    return [-ls(beta * r.lr_w) - ls(-beta * r.lr_w) / 2 - ls(-beta * r.lr_l) / 2 for r in rows]


@variant
def robust(rows, *, beta, label_smoothing):
    e = label_smoothing
    return [((1 - e) * -ls(beta * r.Dz) - e * -ls(-beta * r.Dz)) / (1 - 2 * e) for r in rows]


@variant
def bco_pair(rows, *, beta):
    return [-ls(beta * r.lr_w) - ls(-beta * r.lr_l) for r in rows]


@variant
def sppo_hard(rows, *, beta):
    return [(r.lr_w - 1 / (2 * beta)) ** 2 + (r.lr_l + 1 / (2 * beta)) ** 2 for r in rows]


def _smoothed(x, e):
    return -(1 - e) * ls(x) - e * ls(-x)


@variant
def aot(rows, *, beta, label_smoothing, aot_global=False):
    """All processes are one here."""
    policy, reference = sorted(r.Dpi for r in rows), sorted(r.Dref for r in rows)
    return [_smoothed(beta * (a - b), label_smoothing) for a, b in zip(policy, reference, strict=True)]


@variant
def aot_unpaired(rows, *, beta, label_smoothing, aot_global=False):
    chosen, rejected = sorted(r.lr_w for r in rows), sorted(r.lr_l for r in rows)
    return [_smoothed(beta * (a - b), label_smoothing) for a, b in zip(chosen, rejected, strict=True)]


@variant
def apo_zero(rows, *, beta):
    return [1 - s(beta * r.lr_w) + s(beta * r.lr_l) for r in rows]


@variant
def apo_down(rows, *, beta):
    return [s(beta * r.lr_w) + 1 - s(beta * r.D) for r in rows]


@variant
def discopop(rows, *, beta, discopop_tau):
    """The modulation is not detached; the exponent of exp(-x) stops at 80."""
    return [
        (1 - s(x / discopop_tau)) * -ls(x) + s(x / discopop_tau) * exp(min(-x, mpf(80)))
        for x in (beta * r.Dz for r in rows)
    ]


@variant
def sft(rows):
    return [token_mean_nll(rows) for _ in rows]


@variant
def sigmoid_norm(rows, *, beta):
    return [-ls(beta * (r.z_w / r.n_w - r.z_l / r.n_l)) for r in rows]


# --- noisy and soft labels ------------------------------------------------------------------------------------------


@variant
def cdpo(rows, *, beta, label_smoothing):
    return [_smoothed(beta * r.Dz, label_smoothing) for r in rows]


def _cross_entropy(p, x):
    return -p * ls(x) - (1 - p) * ls(-x)


@variant
def soft_dpo(rows, *, beta, soft_dpo_eta=1.0):
    return [_cross_entropy(s(soft_dpo_eta * (r.score_chosen - r.score_rejected)), beta * r.D) for r in rows]


@variant
def soft_dpo_p(rows, *, beta):
    return [_cross_entropy(r.p_chosen, beta * r.D) for r in rows]


def _kl(x, y):
    """KL between the coins sigmoid(x) and sigmoid(y)."""
    return s(x) * (ls(x) - ls(y)) + s(-x) * (ls(-x) - ls(-y))


@variant
def rpo_bwd(rows, *, beta, rpo_eta=1.0):
    return [_kl(rpo_eta * (r.score_chosen - r.score_rejected), beta * r.D) for r in rows]


@variant
def rpo_fwd(rows, *, beta, rpo_eta=1.0):
    return [_kl(beta * r.D, rpo_eta * (r.score_chosen - r.score_rejected)) for r in rows]


@variant
def rpo_sq(rows, *, beta, rpo_eta=1.0):
    return [(beta * r.D - rpo_eta * (r.score_chosen - r.score_rejected)) ** 2 for r in rows]


# --- regression on the reward ---------------------------------------------------------------------------------------


@variant
def ipo_sum(rows, *, beta):
    return [(r.D - 1 / (2 * beta)) ** 2 for r in rows]


@variant
def sppo(rows, *, sppo_beta=1e-3):
    targets = [(r.p_chosen - mpf(1) / 2) / sppo_beta for r in rows]
    return [((r.lr_w - t) ** 2 + (r.lr_l + t) ** 2) / 2 for r, t in zip(rows, targets, strict=True)]


@variant
def cal_dpo(rows, *, cal_dpo_beta=0.002):
    target = 1 / (2 * cal_dpo_beta)
    return [-ls(r.D) + ((r.lr_w - target) ** 2 + (r.lr_l + target) ** 2) / 2 for r in rows]


@variant
def qrpo(rows, *, qrpo_beta=0.003, qrpo_transform="identity", qrpo_error="mse"):
    b = qrpo_beta
    partition = b * (exp(1 / b) - 1) if qrpo_transform == "identity" else b / (1 + b)

    def error(quantile, lr):
        reward = quantile if qrpo_transform == "identity" else log(quantile)
        gap = abs(reward - b * log(partition) - b * lr)
        return gap**2 if qrpo_error == "mse" else gap

    return [(error(r.quantile_chosen, r.lr_w) + error(r.quantile_rejected, r.lr_l)) / 2 for r in rows]


# --- margins and penalties ------------------------------------------------------------------------------------------


@variant
def dpop(rows, *, beta, dpop_lambda=50.0):
    return [-ls(beta * (r.D - dpop_lambda * relu(-r.lr_w))) for r in rows]


@variant
def margin(rows, *, beta, margin_scale=1.0):
    return [-ls(beta * r.D - margin_scale * r.margin) for r in rows]


@variant
def odpo(rows, *, beta, odpo_alpha=1.0, odpo_transform="log"):
    gaps = [r.score_chosen - r.score_rejected for r in rows]
    offsets = [log(gap) for gap in gaps] if odpo_transform == "log" else gaps
    return [-ls(beta * r.D - odpo_alpha * offset) for r, offset in zip(rows, offsets, strict=True)]


@variant
def rdpo(rows, *, beta, rdpo_alpha=0.01):
    return [-ls(beta * r.D + rdpo_alpha * (r.n_w - r.n_l)) for r in rows]


# --- reference-free -------------------------------------------------------------------------------------------------


@variant
def simpo(
    rows,
    *,
    simpo_beta=2.0,
    simpo_gamma=None,
    simpo_gamma_beta_ratio=None,
    simpo_label_smoothing=0.0,
    simpo_link="sigmoid",
):
    if simpo_gamma_beta_ratio is not None:
        gamma = simpo_beta * simpo_gamma_beta_ratio
    else:
        gamma = mpf(1) / 2 if simpo_gamma is None else simpo_gamma
    margins = [simpo_beta * (r.a_w - r.a_l) - gamma for r in rows]
    if simpo_link == "hinge":  # smoothed too, where the authors' code ignores the smoothing
        return [(1 - simpo_label_smoothing) * relu(1 - x) + simpo_label_smoothing * relu(1 + x) for x in margins]
    return [_smoothed(x, simpo_label_smoothing) for x in margins]


@variant
def cpo(rows, *, beta, cpo_alpha=1.0):
    return [-ls(beta * r.Dpi) + cpo_alpha * token_mean_nll(rows) for r in rows]


@variant
def orpo(rows, *, orpo_lambda=0.1):
    """Log-odds with the mean log-prob held at or below -1e-7, where 1 - p is still a number."""

    def log_odds(a):
        a = min(a, mpf("-1e-7"))
        return a - log(-expm1(a))

    return [-r.a_w + orpo_lambda * -ls(log_odds(r.a_w) - log_odds(r.a_l)) for r in rows]


@variant
def slic_hf(rows, *, slic_hf_delta=1.0, slic_hf_lambda=0.1):
    return [relu(slic_hf_delta - r.Dpi) - slic_hf_lambda * r.pi_w for r in rows]


@variant
def repo(rows, *, repo_gamma=0.6):
    return [relu(repo_gamma - (r.a_w - r.a_l)) for r in rows]


@variant
def simper(rows):
    return [-exp(r.a_w) + exp(r.a_l) for r in rows]


@variant
def alphapo(rows, *, alphapo_beta=2.5, alphapo_alpha=0.25, alphapo_gamma=0.1):
    """The exponent of exp(-alpha * a) stops at 80; alpha 0 is the limit, SimPO."""

    def reward(a):
        return a if alphapo_alpha == 0 else -expm1(min(-alphapo_alpha * a, mpf(80))) / alphapo_alpha

    return [-ls(alphapo_beta * (reward(r.a_w) - reward(r.a_l)) - alphapo_gamma) for r in rows]


# --- with a likelihood term -----------------------------------------------------------------------------------------


@variant
def dpo_nll(rows, *, beta, dpo_nll_weight=1.0, dpo_nll_norm="seq_mean"):
    nll = {
        "seq_mean": [-r.a_w for r in rows],
        "seq_sum": [-r.pi_w for r in rows],
        "token_mean": [token_mean_nll(rows) for _ in rows],
    }[dpo_nll_norm]
    return [-ls(beta * r.D) + dpo_nll_weight * term for r, term in zip(rows, nll, strict=True)]


@variant
def arpo(rows, *, beta, arpo_alpha=1.0, arpo_detach=False, arpo_eta1=0.9, arpo_eta2=0.4):
    """The weight of the rejected side carries a gradient unless detached, and is below 0 for sides that are alike."""
    values = []
    for r in rows:
        read = r.still if arpo_detach else r
        weight = min(mpf(1), arpo_eta1 * exp(arpo_eta2 * abs(read.a_w - read.a_l)) - 1)
        values.append(-ls(beta * (r.pi_w - weight * r.pi_l)) + arpo_alpha * token_mean_nll(rows))
    return values
