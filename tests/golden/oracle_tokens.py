"""The oracle's formulas that look at single tokens. Notation: see `oracle.py`.

The golden batches hold sums only. A completion's tokens are made up from them: the first has one part of the sum, the
next ones two, three, four, then one again, for policy and reference alike. Their weights are 1/2, 3/4, 1, then 1/2 again
on the chosen side, and 3/2 minus that on the rejected one. The KL at a token is half the square of its log-ratio.
"""

from __future__ import annotations

import random
from types import SimpleNamespace

from mpmath import exp, log, mpf

from .oracle import Row, ls, mean, variant


def parts(count):
    """The share of each of `count` tokens in its completion's sum."""
    given = [mpf(1 + place % 4) for place in range(int(count))]
    return [part / sum(given) for part in given]


def tokens_of(row, side):
    """The tokens of one side, with log-prob `pi` and log-ratio `lr`; a row of real tokens brings its own."""
    own = getattr(row, f"tokens_{side}", None)
    if own is not None:
        return own
    pi, lr, count = (getattr(row, f"{name}_{side}") for name in ("pi", "lr", "n"))
    weights = [mpf(2 + place % 3) / 4 for place in range(int(count))]
    if side == "l":
        weights = [mpf(3) / 2 - weight for weight in weights]
    return [
        SimpleNamespace(pi=pi * share, lr=lr * share, weight=weight, kl=(lr * share) ** 2 / 2)
        for share, weight in zip(parts(count), weights, strict=True)
    ]


def _kl(q, p):
    """KL(q || p) of two distributions."""
    return sum(mpf(a) * log(mpf(a) / mpf(b)) for a, b in zip(q, p, strict=True))


def row_of_tokens(fixture, weights):
    """One pair from full next-token distributions of policy and reference and the label of each position."""
    tokens, sums = {}, {}
    for side in ("w", "l"):
        policy, reference, labels = (fixture[side][name] for name in ("pi", "ref", "y"))
        places = list(zip(policy, reference, labels, weights[side], strict=True))
        tokens[side] = [
            SimpleNamespace(pi=log(mpf(p[y])), lr=log(mpf(p[y])) - log(mpf(q[y])), weight=mpf(weight), kl=_kl(q, p))
            for p, q, y, weight in places
        ]
        sums |= {
            f"pi_{side}": sum(token.pi for token in tokens[side]),
            f"ref_{side}": sum(token.pi - token.lr for token in tokens[side]),
            f"n_{side}": len(places),
        }
    entropies = [
        mean([-sum(mpf(q) * log(mpf(q)) for q in place) / log(len(place)) for place in fixture[side]["ref"]])
        for side in ("w", "l")
    ]
    row = Row(**sums, H=mean(entropies))
    row.tokens_w, row.tokens_l = tokens["w"], tokens["l"]
    return row


def rows_of_logps(logps):
    """Pairs from the log-probs of their tokens, without a reference."""
    rows = []
    for chosen, rejected in zip(logps["w"], logps["l"], strict=True):
        row = Row(pi_w=sum(chosen), pi_l=sum(rejected), ref_w=0, ref_l=0, n_w=len(chosen), n_l=len(rejected))
        row.tokens_w, row.tokens_l = ([SimpleNamespace(pi=mpf(t)) for t in side] for side in (chosen, rejected))
        rows.append(row)
    return rows


@variant
def d2po(rows, *, beta, d2po_gamma=0.98):
    def decayed(tokens):
        return sum(d2po_gamma**t * token.lr for t, token in enumerate(tokens))

    return [-ls(beta * (decayed(tokens_of(r, "w")) - decayed(tokens_of(r, "l")))) for r in rows]


@variant
def sampo(rows, *, beta, earlier=()):
    """Drawn with the standard library's generator, from a seed of batch, process and lengths."""
    values = []
    for r in rows:
        chosen, rejected = tokens_of(r, "w"), tokens_of(r, "l")
        few, many = sorted((len(chosen), len(rejected)))
        seed = f"{len(earlier) + 1} 0 {len(chosen)} {len(rejected)}"
        kept = random.Random(seed).sample(range(many), few)
        sides = [[side[k] for k in kept] if len(side) > few else side for side in (chosen, rejected)]
        values.append(-ls(beta * (sum(t.lr for t in sides[0]) - sum(t.lr for t in sides[1]))))
    return values


@variant
def tis_dpo(rows, *, beta):
    def weighted(tokens):
        return sum(token.weight * token.lr for token in tokens)

    return [-ls(beta * (weighted(tokens_of(r, "w")) - weighted(tokens_of(r, "l")))) for r in rows]


@variant
def unlikelihood(rows, *, unlikelihood_alpha=1.0):
    """A log-prob above -1e-7 counts as -1e-7 in 1 - p."""

    def log_not(pi):
        return log(1 - exp(min(pi, mpf("-1e-7"))))

    return [
        -mean([t.pi for t in tokens_of(r, "w")]) - unlikelihood_alpha * mean([log_not(t.pi) for t in tokens_of(r, "l")])
        for r in rows
    ]


@variant
def confpo(rows, *, confpo_beta=1.5, confpo_gamma=1.6):
    """Tokens less likely than the mean of their completion; which ones they are is detached."""

    def unsure(row, side):
        at_rest, tokens = tokens_of(row.still, side), tokens_of(row, side)
        threshold = mean([exp(t.pi) for t in at_rest]) * (1 - mpf("1e-6"))
        return [t.pi for t, still in zip(tokens, at_rest, strict=True) if exp(still.pi) < threshold]

    values = []
    for r in rows:
        chosen, rejected = unsure(r, "w"), unsure(r, "l")
        known = chosen and rejected
        values.append(-ls(confpo_beta * (mean(chosen) - mean(rejected)) - confpo_gamma) if known else mpf(0))
    return values


# --- how unsure the reference is ------------------------------------------------------------------------------------


def _dispersion(row, scale):
    """The entropy is kept within 0.001 and 0.999."""
    return -scale * log(min(max(row.H, mpf(1e-3)), 1 - mpf(1e-3)))


@variant
def mallows_dpo(rows, *, beta, mallows_dpo_mean=0.29):
    return [-ls(beta * r.Dz * _dispersion(r, mallows_dpo_mean)) for r in rows]


@variant
def rainbowpo(rows, *, rainbowpo_beta=10.0, rainbowpo_alpha=0.25, rainbowpo_home=0.1, rainbowpo_mean=0.29):
    """A mix of the policy's gap per token and the one against the reference."""
    values = []
    for r in rows:
        gap, ref_gap = r.a_w - r.a_l, r.ref_w / r.n_w - r.ref_l / r.n_l
        mixed = gap - rainbowpo_alpha * ref_gap - (1 - rainbowpo_alpha) * rainbowpo_home
        values.append(-ls(rainbowpo_beta * _dispersion(r, rainbowpo_mean) * mixed))
    return values


# --- whole distributions --------------------------------------------------------------------------------------------


def _drift(row, side):
    return sum(token.kl for token in tokens_of(row, side))


@variant
def tdpo1(rows, *, beta):
    return [-ls(beta * (r.D - (_drift(r, "l") - _drift(r, "w")))) for r in rows]


@variant
def tdpo2(rows, *, beta, tdpo2_alpha=0.5):
    """The chosen side's drift is detached."""
    return [-ls(beta * (r.D - tdpo2_alpha * (_drift(r, "l") - _drift(r.still, "w")))) for r in rows]
