"""The oracle's formulas for other links, other weights of the rejected side, and anchors. Notation: see `oracle.py`."""

from __future__ import annotations

from mpmath import atan, exp, log, mpf, pi

from .oracle import ls, relu, s, variant

# --- links: DPO's margin through another function -------------------------------------------------------------------


@variant
def gpo_exp(rows, *, beta):
    """The exponent stops at 30."""
    return [exp(min(-beta * r.Dz, mpf(30))) for r in rows]


@variant
def gpo_truncquad(rows, *, beta):
    return [relu(1 - beta * r.Dz) ** 2 for r in rows]


@variant
def gpo_savage(rows, *, beta):
    return [1 / (1 + exp(beta * r.Dz)) ** 2 for r in rows]


@variant
def chipo(rows, *, beta, chipo_clip=None):
    """The exponent stops at 20; the clip is at twice R_max."""

    def phi(lr):
        return exp(min(lr, mpf(20))) + lr

    margins = [beta * (phi(r.lr_w) - phi(r.lr_l)) for r in rows]
    if chipo_clip is not None:
        margins = [max(-2 * chipo_clip, min(2 * chipo_clip, x)) for x in margins]
    return [-ls(x) for x in margins]


@variant
def focalpo(rows, *, beta, focalpo_gamma=0.05):
    """The power of p is detached."""
    return [-(s(beta * r.still.Dz) ** focalpo_gamma) * ls(beta * r.Dz) for r in rows]


@variant
def ropo(rows, *, beta, ropo_alpha=14.0):
    a = ropo_alpha
    return [4 * a / (1 + a) ** 2 * (-ls(beta * r.Dz) + a * s(-beta * r.Dz)) for r in rows]


@variant
def cauchy(rows, *, beta):
    return [-log(atan(beta * r.Dz) / pi + mpf(1) / 2) for r in rows]


@variant
def sympo(rows, *, beta, sympo_link="sigmoid", sympo_clip=10.0):
    def clipped(reward):
        return reward if sympo_clip == 0 else max(-sympo_clip, min(sympo_clip, reward))

    margins = [clipped(beta * r.lr_w) - clipped(beta * r.lr_l) for r in rows]
    if sympo_link == "ramp":
        return [min(mpf(1), max(mpf(0), (1 - x) / 2)) for x in margins]
    return [s(-x) for x in margins]


@variant
def centered(rows, *, beta):
    return [-r.Dz / 2 if beta == 0 else (-ls(beta * r.Dz) - log(mpf(2))) / beta for r in rows]


@variant
def uni_dpo(
    rows,
    *,
    uni_dpo_beta=2.0,
    uni_dpo_eta=0.7,
    uni_dpo_tau_ref=0.8,
    uni_dpo_gamma=3.0,
    uni_dpo_lambda=0.001,
    uni_dpo_tau_good=3.2,
):
    """Neither weight is detached."""
    values = []
    for r in rows:
        quality = s(uni_dpo_eta * (r.score_chosen - r.score_rejected))
        performance = (1 - s(uni_dpo_beta * (r.a_w - r.a_l) - uni_dpo_tau_ref)) ** uni_dpo_gamma
        relative = r.lr_w / r.n_w - r.lr_l / r.n_l
        good = r.ref_w > r.pi_w and r.score_chosen >= uni_dpo_tau_good
        values.append(-quality * performance * ls(uni_dpo_beta * relative) - (uni_dpo_lambda * r.a_w if good else 0))
    return values


# --- the rejected side ----------------------------------------------------------------------------------------------


@variant
def dpo_shift(rows, *, beta, dpo_shift_lambda=0.75, dpo_shift_schedule="fixed", dpo_shift_min=0.75, dpo_shift_max=0.95):
    """At the start of training, where a schedule stands at one of its ends."""
    starts = {"fixed": dpo_shift_lambda, "increase_linear": dpo_shift_min, "decrease_linear": dpo_shift_max}
    return [-ls(beta * (r.lr_w - starts[dpo_shift_schedule] * r.lr_l)) for r in rows]


@variant
def mappo(rows, *, beta):
    return [-ls(beta * (r.lr_w - r.delta_r * r.lr_l)) for r in rows]


@variant
def minor_dpo(rows, *, beta):
    return [-ls(beta * (r.lr_w - relu(r.lr_l))) for r in rows]


@variant
def bdpo(rows, *, beta, bdpo_lambda=0.5):
    return [-ls(beta * (r.lr_w - log(bdpo_lambda * exp(r.lr_l) + 1 - bdpo_lambda))) for r in rows]


@variant
def bpo(rows, *, beta, bpo_alpha=0.3, bpo_link="hinge"):
    margins = [beta * min(r.lr_w, -bpo_alpha * r.lr_l) for r in rows]
    return [relu(1 - x) if bpo_link == "hinge" else -ls(x) for x in margins]


@variant
def hdpo(rows, *, beta, hdpo_alpha=0.95):
    return [-ls(beta * (hdpo_alpha * r.Dpi - r.Dref)) for r in rows]


@variant
def anc_dpo(rows, *, beta, anc_dpo_delta=0.0):
    return [-ls(beta * r.D) - ls(beta * r.lr_w - anc_dpo_delta) for r in rows]
