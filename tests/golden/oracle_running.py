"""The oracle's formulas that look at the whole batch, or at earlier ones. Notation: see `oracle.py`.

`earlier` holds the training batches before this one, oldest first.
"""

from __future__ import annotations

from mpmath import exp, log, mpf, sqrt

from .oracle import ls, mean, relu, s, variant

# --- one batch ------------------------------------------------------------------------------------------------------


@variant
def kto_pair(rows, *, beta):
    """Where the other side stands on average is detached."""
    z_w, z_l = relu(mean([r.still.lr_w for r in rows])), relu(mean([r.still.lr_l for r in rows]))
    return [1 - s(beta * (r.lr_w - z_l)) / 2 - s(beta * (z_w - r.lr_l)) / 2 for r in rows]


@variant
def dr_dpo(rows, *, beta, dr_dpo_beta=1.0):
    """The paper's scalar, times the weight of each pair in its gradient, which is 1 on average."""
    likelihoods = [exp(ls(beta * r.Dz) / dr_dpo_beta) for r in rows]
    scalar = -dr_dpo_beta * log(mean(likelihoods))
    return [scalar * likelihood / mean(likelihoods) for likelihood in likelihoods]


@variant
def kldpo(rows, *, beta, kldpo_tau=0.05):
    """The weights are detached."""
    at_rest = [-ls(beta * r.still.Dz) for r in rows]
    weights = [min(mpf(10), exp((value - mean(at_rest)) / kldpo_tau)) for value in at_rest]
    return [weight * -ls(beta * r.Dz) for weight, r in zip(weights, rows, strict=True)]


@variant
def gamma_po(rows, *, gamma_po_beta=10.0, gamma_po_ratio=0.4, gamma_po_tau=10.0):
    """Twenty steps of exponentiated gradient; the margins are detached, and those of the start of the last step."""
    n, g0, tau = len(rows), gamma_po_beta * gamma_po_ratio, gamma_po_tau
    gaps = [gamma_po_beta * (r.still.a_w - r.still.a_l) for r in rows]
    p = [mpf(1) / n] * n
    for _ in range(20):
        g = [g0 * n * p_i for p_i in p]
        slopes = [
            tau * (1 + log(n * (p_i + mpf(1e-10)))) + g0 / (1 + exp(gap - g_i))
            for p_i, gap, g_i in zip(p, gaps, g, strict=True)
        ]
        grown = [p_i * exp(-min(mpf(1) / 2 / tau, mpf(1)) * slope) for p_i, slope in zip(p, slopes, strict=True)]
        p = [value / sum(grown) for value in grown]
    return [-ls(gamma_po_beta * (r.a_w - r.a_l) - g_i) for r, g_i in zip(rows, g, strict=True)]


@variant
def amapo(rows, *, amapo_beta=2.0, amapo_label_smoothing=0.0):
    """The margins are detached; the standard deviation has one degree of freedom less than pairs."""
    gaps = [r.still.a_w - r.still.a_l for r in rows]
    center, values = mean(gaps), []
    for r, gap in zip(rows, gaps, strict=True):
        exponent = (center - gap) / _spread(gaps) * center if gap < center else None
        m = 0 if exponent is None else amapo_beta * exp(min(exponent, mpf(20)))
        x = amapo_beta * (r.a_w - r.a_l) - m
        values.append(-(1 - amapo_label_smoothing) * ls(x) - amapo_label_smoothing * ls(-x))
    return values


# --- a running state ------------------------------------------------------------------------------------------------


@variant
def bco_pair_delta(rows, *, beta, earlier=()):
    """The shift is the detached mean of every reward so far, both sides, this batch included."""
    seen = [*(r for batch in earlier for r in batch), *(r.still for r in rows)]
    delta = mean([beta * lr for r in seen for lr in (r.lr_w, r.lr_l)])
    return [-ls(beta * r.lr_w - delta) - ls(-(beta * r.lr_l - delta)) for r in rows]


def _spread(values):
    return sqrt(sum((value - mean(values)) ** 2 for value in values) / (len(values) - 1))


def _running(batches, corrected=True):
    """Exponential averages (momentum 0.9) of mean and standard deviation, corrected for their start at zero."""
    old = [mpf(0), mpf(0)]
    for batch in batches:
        old = [mpf(9) / 10 * a + b / 10 for a, b in zip(old, (mean(batch), _spread(batch)), strict=True)]
    correction = 1 - (mpf(9) / 10) ** len(batches) if corrected else 1
    return old[0] / correction, old[1] / correction


def _gap(r):
    return r.lr_w / r.n_w - r.lr_l / r.n_l


def _alpha_dpo(rows, center, spread, beta, ratio, alpha):
    margins = [ratio + alpha * (_gap(r.still) - center) / max(spread, mpf(1e-6)) for r in rows]
    return [-ls(beta * (r.a_w - r.a_l - m)) for r, m in zip(rows, margins, strict=True)]


@variant
def alpha_dpo(rows, *, alpha_dpo_beta=2.5, alpha_dpo_gamma_ratio=0.6, alpha_dpo_alpha=0.2, earlier=()):
    """The whole margin is detached; the averages hold this batch."""
    gaps = [[_gap(r.still) for r in batch] for batch in (*earlier, rows)]
    return _alpha_dpo(rows, *_running(gaps), alpha_dpo_beta, alpha_dpo_gamma_ratio, alpha_dpo_alpha)


def _beta_dpo(rows, center, beta, alpha):
    used = max(mpf(1e-3), beta * (1 + alpha * (mean([r.still.Dz for r in rows]) - center)))
    return [-ls(used * r.Dz) for r in rows]


@variant
def beta_dpo(rows, *, beta, beta_dpo_alpha=0.6, beta_dpo_rho=0.2, earlier=()):
    """Without the random choice of pairs, which is for other tests: rho has to be 0. Beta is detached."""
    assert beta_dpo_rho == 0
    gaps = [[r.still.Dz for r in batch] for batch in (*earlier, rows)]
    return _beta_dpo(rows, _running(gaps)[0], beta, beta_dpo_alpha)


def cold_start(name, rows, hyper):
    """What the authors' code gives for a first batch, where the averages start at zero and are not corrected."""
    hyper = {key: mpf(value) for key, value in hyper.items()}
    if name == "alpha_dpo":
        averages = _running([[_gap(r) for r in rows]], corrected=False)
        return _alpha_dpo(
            rows, *averages, hyper["alpha_dpo_beta"], hyper["alpha_dpo_gamma_ratio"], hyper["alpha_dpo_alpha"]
        )
    center, _ = _running([[r.Dz for r in rows]], corrected=False)
    return _beta_dpo(rows, center, hyper["beta"], hyper["beta_dpo_alpha"])
