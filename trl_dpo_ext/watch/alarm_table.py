"""The alarms by name: what each needs, and the threshold at which it fires."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Alarm:
    """One alarm.

    Args:
        threshold: its default, in the unit that `meaning` gives.
        of: what it reads: "steps" (loss and gradients of every optimizer step), "pairs" (log-probs of pairs),
            "samples" or "kl" (sampled answers).
        meaning: when it fires, with {} for the threshold.
        stops: whether `stop_on` may name it.
        is_share: whether the threshold is a share, between 0 and 1.
    """

    threshold: float
    of: str
    meaning: str
    stops: bool = True
    is_share: bool = False


ALARMS = {
    "nan": Alarm(3, "steps", "loss or gradient norm is not finite in {} optimizer steps in a row; ends every run"),
    "no_gradient": Alarm(3, "steps", "the gradient norm is 0 in the first {} optimizer steps with a learning rate"),
    "grad_spike": Alarm(10, "steps", "the gradient norm is {} times the median of the last 50 steps", stops=False),
    "first_loss": Alarm(0.01, "steps", "the first loss is {} from the announced one (5 times that in half precision)"),
    "chosen_falls": Alarm(0.5, "pairs", "the chosen answers have lost {} nats per token"),
    "rejected_collapses": Alarm(3, "pairs", "the rejected answers have lost {} nats per token, and the chosen some"),
    "accuracy_saturated": Alarm(
        0.99, "pairs", "reward accuracy is {} on 64 pairs or more before 30 % of the steps", is_share=True
    ),
    "accuracy_stuck": Alarm(
        0.5, "pairs", "after a share {} of the steps, reward accuracy is no better than chance", is_share=True
    ),
    "kl_high": Alarm(0.5, "kl", "the KL divergence to the reference is {} nats per token"),
    "length_runaway": Alarm(2, "samples", "answers are {} times as long as at the start, or as short"),
    "eos_lost": Alarm(0.2, "samples", "the share of answers that end has fallen by {}", is_share=True),
    "repetition": Alarm(
        0.2, "samples", "the share of repeated 4-grams is {}, and 0.1 more than at the start", is_share=True
    ),
}
"""In the order in which they are checked and listed."""

ANY = "any"
"""In `stop_on`: every alarm that may end a run."""
