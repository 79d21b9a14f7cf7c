"""Every loss of lists once more, in plain Python with 50 digits, one prompt at a time; see `oracle.py`.

Notation, one answer each: pi, ref log-probs summed over the answer, n its tokens, u its score (higher is better), `still`
the answer as gradients see it through a stop-gradient. lr = pi - ref, a = pi / n.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from mpmath import exp, expm1, log, mpf

from .oracle import ls, s

VARIANTS: dict[str, Callable[..., mpf]] = {}


class Answer:
    """One answer; see the notation above."""

    def __init__(self, pi: Any, ref: Any, n: Any, u: Any) -> None:
        self.pi, self.ref, self.n, self.u = mpf(pi), mpf(ref), mpf(n), mpf(u)
        self.still = self
        self.lr, self.a = self.pi - self.ref, self.pi / self.n


def variant(formula: Callable[..., mpf]) -> Callable[..., mpf]:
    """Enter a formula, with every number turned into 50 digits before it is used, and 0 where all answers are tied."""
    signature = inspect.signature(formula)

    def precise(answers: Sequence[Answer], **hyper: Any) -> mpf:
        bound = signature.bind(answers, **hyper)
        bound.apply_defaults()
        given = {name: mpf(v) if isinstance(v, (int, float)) else v for name, v in bound.arguments.items()}
        if len({answer.u for answer in answers}) == 1:
            return mpf(0)
        return formula(**given)

    hyper = {name: given.default for name, given in signature.parameters.items() if name != "answers"}
    precise.defaults = {name: default for name, default in hyper.items() if default is not inspect.Parameter.empty}
    precise.shared = [name for name in hyper if name not in precise.defaults]
    VARIANTS[formula.__name__] = precise
    return precise


def best_of(answers: Sequence[Answer]) -> list[int]:
    top = max(answer.u for answer in answers)
    return [k for k, answer in enumerate(answers) if answer.u == top]


def pairs_of(answers: Sequence[Answer]) -> list[tuple[int, int]]:
    every = range(len(answers))
    return [(i, j) for i in every for j in every if answers[i].u > answers[j].u]


def ranking(answers: Sequence[Answer], r: Sequence[mpf], reduction: str) -> mpf:
    stages = []
    for k, answer in enumerate(answers):
        below = [j for j, other in enumerate(answers) if other.u < answer.u]
        if below:
            stages.append(log(exp(r[k]) + sum(exp(r[j]) for j in below)) - r[k])
    return sum(stages) / (len(stages) if reduction == "mean" else 1)


@variant
def pl(answers, beta, pl_reduction="sum"):
    return ranking(answers, [beta * k.lr for k in answers], pl_reduction)


@variant
def pl_reference_free(answers, pl_reference_free_beta=2.0, pl_reduction="sum"):
    return ranking(answers, [pl_reference_free_beta * k.a for k in answers], pl_reduction)


@variant
def top1(answers, beta):
    best = best_of(answers)
    others = [j for j in range(len(answers)) if j not in best]
    # the authors' form: -log s(-log sum_j exp(r_j - r_i))
    return sum(-ls(-log(sum(exp(beta * (answers[j].lr - answers[i].lr)) for j in others))) for i in best) / len(best)


def softmax(values: Sequence[mpf]) -> list[mpf]:
    total = sum(exp(v) for v in values)
    return [exp(v) / total for v in values]


@variant
def infonca(answers, beta, infonca_tau=None):
    targets = softmax([k.u / infonca_tau for k in answers])
    total = log(sum(exp(beta * k.lr) for k in answers))
    return -sum(t * (beta * k.lr - total) for t, k in zip(targets, answers, strict=True))


@variant
def nca(answers, beta, nca_tau=None):
    targets = softmax([k.u / nca_tau for k in answers])
    up = sum(t * ls(beta * k.lr) for t, k in zip(targets, answers, strict=True))
    return -up - sum(ls(-beta * k.lr) for k in answers) / len(answers)


def inverse_discounts(answers: Sequence[Answer], values: Sequence[mpf]) -> list[mpf]:
    order = sorted(range(len(answers)), key=lambda k: (-values[k], -answers[k].u, k))
    return [1 / log(mpf(2) + order.index(k)) for k in range(len(answers))]


@variant
def lipo(answers, beta, lipo_scale=None):
    gain = [mpf(2) ** (k.u / lipo_scale) - 1 for k in answers]
    inverse = inverse_discounts(answers, [k.still.lr for k in answers])
    return sum(
        abs(gain[i] - gain[j]) * abs(inverse[i] - inverse[j]) * -ls(beta * (answers[i].lr - answers[j].lr))
        for i, j in pairs_of(answers)
    )


@variant
def lipo_normalized(answers, beta, lipo_scale=None):
    gain = [mpf(2) ** (k.u / lipo_scale) - 1 for k in answers]
    inverse = inverse_discounts(answers, [k.u for k in answers])
    ideal = sum(g * d for g, d in zip(gain, inverse, strict=True))
    return lipo(answers, beta=beta, lipo_scale=lipo_scale) / ideal


@variant
def rrhf(answers, rrhf_nll_weight=1.0, rrhf_reduction="sum"):
    best, pairs = best_of(answers), pairs_of(answers)
    hinges = sum(max(mpf(0), answers[j].a - answers[i].a) for i, j in pairs)
    hinges /= len(pairs) if rrhf_reduction == "mean" else 1
    return hinges - rrhf_nll_weight * sum(answers[i].a for i in best) / len(best)


@variant
def sppo_list(answers, sppo_beta=1e-3, sppo_eta=1.0, sppo_list_scores="scores"):
    def wins(k):
        if sppo_list_scores == "win_rates":
            return answers[k].u
        others = [j for j in range(len(answers)) if j != k]
        return sum(s(sppo_eta * (answers[k].u - answers[j].u)) for j in others) / len(others)

    return sum((a.lr - (wins(k) - mpf(1) / 2) / sppo_beta) ** 2 for k, a in enumerate(answers)) / len(answers)


@variant
def qrpo_list(answers, qrpo_beta=0.003, qrpo_transform="identity", qrpo_error="mse", qrpo_list_scores="quantiles"):
    log_z = log(qrpo_beta * expm1(1 / qrpo_beta)) if qrpo_transform == "identity" else log(qrpo_beta / (1 + qrpo_beta))

    def error(answer):
        quantile = answer.u
        if qrpo_list_scores == "samples":
            quantile = mpf(sum(other.u <= answer.u for other in answers)) / len(answers)
        reward = log(quantile) if qrpo_transform == "log" else quantile
        gap = reward - qrpo_beta * log_z - qrpo_beta * answer.lr
        return abs(gap) if qrpo_error == "mae" else gap**2

    return sum(error(answer) for answer in answers) / len(answers)
