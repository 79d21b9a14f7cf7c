"""The conditions of the alarms: pure functions of the values of a step and of the start."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..statistics import wilson

FEWEST_PAIRS = 64
"""Reward accuracy of fewer pairs raises no alarm."""
EARLY = 0.3
"""`accuracy_saturated` only fires if accuracy is that high before this share of the steps."""
NORMS = 50
"""Number of gradient norms whose median `grad_spike` compares with."""
FEWEST_NORMS = 20
MORE_REPETITION = 0.1
LONGER_BY = 16
"""Tokens by which the mean length has to change for `length_runaway`."""


@dataclass(frozen=True)
class Moment:
    """What an alarm sees at one time.

    Args:
        values: metrics now.
        start: the same at the start of the run, as far as they are known.
        threshold: of the alarm.
        step, max_steps: optimizer steps done, and of the whole run.
        since: step since which the condition has held without a break; None if it did not hold last time.
    """

    values: Mapping[str, float]
    start: Mapping[str, float]
    threshold: float
    step: int
    max_steps: int
    since: int | None = None


@dataclass(frozen=True)
class Reading:
    """What an alarm has found.

    Args:
        holds: whether its condition holds.
        value: of the metric that it reads.
        start: the same at the start; None where it compares with no start.
        message: what to tell the user.
    """

    holds: bool
    value: float
    start: float | None
    message: str


Check = Callable[[Moment], Reading | None]
"""Returns None where the values that an alarm reads are not known."""


def chosen_falls(m: Moment) -> Reading | None:
    """Whether the chosen answers have become less likely than a little."""
    change = _change(m, "watch/chosen_logp_per_token")
    if change is None:
        return None
    now, start = change
    return Reading(
        now < start - m.threshold,
        now,
        start,
        f"the chosen answers have become less likely: {now:.2f} nats per token, {start:.2f} at the start. Some fall is "
        "normal in DPO; less of it: dpop, dpo_nll, or a lower learning rate.",
    )


def rejected_collapses(m: Moment) -> Reading | None:
    """Whether the margin comes from pushing the rejected answers down only."""
    change, chosen = _change(m, "watch/rejected_logp_per_token"), _change(m, "watch/chosen_logp_per_token")
    if change is None or chosen is None:
        return None
    now, start = change
    return Reading(
        now < start - m.threshold and chosen[0] < chosen[1],
        now,
        start,
        f"the margin comes from pushing down: rejected {start:.2f} -> {now:.2f} nats per token, and chosen "
        f"{chosen[1]:.2f} -> {chosen[0]:.2f}. Raise beta, lower the learning rate, or stop earlier.",
    )


def kl_high(m: Moment) -> Reading | None:
    """Whether the policy has moved far from the reference."""
    now = _known(m.values, "watch/kl_per_token")
    if now is None:
        return None
    return Reading(
        now > m.threshold,
        now,
        None,
        f"the KL divergence to the reference is {now:.2f} nats per token. Raise beta or lower the learning rate.",
    )


def accuracy_saturated(m: Moment) -> Reading | None:
    """Whether almost all pairs are ranked right early in the run."""
    accuracy, pairs = _known(m.values, "accuracy"), _known(m.values, "pairs")
    if accuracy is None or pairs is None:
        return None
    early = m.since is not None or m.step < EARLY * m.max_steps
    steps = f"steps {m.since} and {m.step}" if m.since is not None else f"step {m.step}"
    return Reading(
        accuracy >= m.threshold and pairs >= FEWEST_PAIRS and early,
        accuracy,
        None,
        f"reward accuracy is {accuracy:.3f} at {steps} of {m.max_steps}: the pairs are easy or have a shortcut. "
        f"{_length_rule(m.values)}",
    )


def accuracy_stuck(m: Moment) -> Reading | None:
    """Whether the pairs are ranked no better than by chance late in the run."""
    accuracy, pairs = _known(m.values, "accuracy"), _known(m.values, "pairs")
    if accuracy is None or pairs is None:
        return None
    interval = wilson(accuracy * pairs, round(pairs)) or [0.0, 1.0]
    return Reading(
        pairs >= FEWEST_PAIRS and m.step >= m.threshold * m.max_steps and interval[0] <= 0.5,
        accuracy,
        None,
        f"reward accuracy is {accuracy:.3f} (95 % interval {interval[0]:.2f} to {interval[1]:.2f}, {pairs:g} pairs) at "
        f"step {m.step} of {m.max_steps}, no better than chance. Check the labels, the reference, and the learning "
        "rate.",
    )


def length_runaway(m: Moment) -> Reading | None:
    """Whether sampled answers have become much longer or shorter."""
    change = _change(m, "watch/length")
    if change is None:
        return None
    now, start = change
    apart = now > m.threshold * start or now < start / m.threshold
    return Reading(
        apart and abs(now - start) > LONGER_BY,
        now,
        start,
        f"sampled answers have {now:.0f} tokens on average, {start:.0f} at the start. `trl-dpo-ext inspect` shows the "
        "lengths of both sides of the data; losses such as simpo, rdpo or sigmoid_norm take lengths into account.",
    )


def eos_lost(m: Moment) -> Reading | None:
    """Whether fewer sampled answers end."""
    change = _change(m, "watch/eos_rate")
    if change is None:
        return None
    now, start = change
    return Reading(
        now < start - m.threshold,
        now,
        start,
        f"{percent(now)} of the sampled answers end within watch_max_new_tokens, {percent(start)} at the start. "
        "`trl-dpo-ext inspect` tells whether truncation removes EOS from one side (eos_cut).",
    )


def repetition(m: Moment) -> Reading | None:
    """Whether sampled answers repeat themselves."""
    change = _change(m, "watch/repetition")
    if change is None:
        return None
    now, start = change
    return Reading(
        now > m.threshold and now > start + MORE_REPETITION,
        now,
        start,
        f"{percent(now)} of the 4-grams of sampled answers are repeated, {percent(start)} at the start. Raise beta, "
        "lower the learning rate, or stop earlier.",
    )


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        *(chosen_falls, rejected_collapses, accuracy_saturated, accuracy_stuck),
        *(kl_high, length_runaway, eos_lost, repetition),
    )
}
"""Alarms that are checked at every time of watching, by name."""


def grad_spike(norm: float, before: Sequence[float], threshold: float) -> Reading:
    """Whether a gradient norm is far above those before, of which the last `NORMS` count."""
    recent = list(before)[-NORMS:]
    median = statistics.median(recent) if len(recent) >= FEWEST_NORMS else math.inf
    return Reading(
        norm > threshold * median,
        norm,
        median,
        f"the gradient norm is {norm:.3g}, {norm / median if median else math.inf:.0f} times the median of the last "
        f"{len(recent)} steps ({median:.3g}). max_grad_norm clips it; a smaller learning rate or a larger batch makes "
        "spikes rarer.",
    )


def no_gradient(norms: Sequence[float], threshold: float) -> Reading:
    """Whether the gradient norms of the first steps with a learning rate are 0."""
    first = list(norms)[: math.ceil(threshold)]
    return Reading(
        len(first) >= threshold and not any(first),
        0.0,
        None,
        f"nothing is trained: the gradient norm is 0 in the first {len(first)} optimizer steps. Check that beta is not "
        "0, that the losses depend on the policy, and which weights are frozen.",
    )


def first_loss(loss: float, announced: float, threshold: float) -> Reading:
    """Whether the loss of the first step is another one than that of a policy that equals its reference."""
    return Reading(
        not abs(loss - announced) <= threshold,
        loss,
        announced,
        f"the first loss is {loss:.4f}, and {announced:.4f} was announced: the reference is not the policy's start. "
        "Check ref_model and the store's reference.",
    )


def not_finite(in_a_row: int, threshold: float, what: str) -> Reading:
    """Whether loss or gradients were not finite in too many steps in a row.

    Args:
        in_a_row: number of these steps.
        threshold: number of steps at which it fires.
        what: what was found at the last one.
    """
    return Reading(
        in_a_row >= threshold,
        float(in_a_row),
        None,
        f"{what}, for {in_a_row} optimizer steps in a row. Lower the learning rate, or compute in bf16 or float32.",
    )


def percent(share: float) -> str:
    """A share as text."""
    return f"{100 * share:.0f} %"


def _known(values: Mapping[str, float], name: str) -> float | None:
    value = values.get(name)
    return value if value is not None and math.isfinite(value) else None


def _change(m: Moment, name: str) -> tuple[float, float] | None:
    """A metric now and at the start."""
    now, start = _known(m.values, name), _known(m.start, name)
    return None if now is None or start is None else (now, start)


def _length_rule(values: Mapping[str, float]) -> str:
    longer, shorter = values.get("longer_is_chosen", 0.0), values.get("shorter_is_chosen", 0.0)
    word, share = ("longer", longer) if longer > shorter else ("shorter", shorter)
    return f"The chosen answer is the {word} one in {percent(share)} of these pairs."
