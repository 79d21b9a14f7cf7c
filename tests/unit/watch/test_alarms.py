"""Every condition on series of numbers: what fires, what does not, and how often it is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from trl_dpo_ext.watch.alarm_table import ALARMS
from trl_dpo_ext.watch.alarms import CHECKS
from trl_dpo_ext.watch.book import AlarmBook, Event
from trl_dpo_ext.watch.training_sums import SUMS, Step

Values = Mapping[str, float]


def settings(**changes: Any) -> Any:
    given = changes.pop("thresholds", {})
    known = {"ignore_alarms": [], "stop_on": [], "watch_patience": 2}
    return SimpleNamespace(threshold=lambda name: given.get(name, ALARMS[name].threshold), **{**known, **changes})


def observed(series: list[Values], max_steps: int = 100, every: int = 10, **changes: Any) -> list[Event]:
    """The alarms that a series raises, whose first values are those of step 0."""
    book, args = AlarmBook(), settings(**changes)
    return [
        event
        for index, values in enumerate(series)
        for event in book.observe(args, values, index * every, None, max_steps)
    ]


def pairs(accuracy: float, number: int = 100, **more: float) -> Values:
    return {"accuracy": accuracy, "pairs": number, "shorter_is_chosen": 1.0, "longer_is_chosen": 0.0, **more}


def sides(chosen: float, rejected: float) -> Values:
    return {"watch/chosen_logp_per_token": chosen, "watch/rejected_logp_per_token": rejected}


FIRES: dict[str, list[list[Values]]] = {
    "chosen_falls": [[sides(-1.0, -2.0), sides(-1.51, -2.0), sides(-1.51, -2.0)]],
    "rejected_collapses": [[sides(-1.0, -2.0), sides(-1.1, -5.01), sides(-1.1, -5.01)]],
    "accuracy_saturated": [[pairs(0.5), pairs(0.99), pairs(1.0)], [pairs(1.0), pairs(1.0)]],
    "accuracy_stuck": [[pairs(0.9)] * 5 + [pairs(0.55)] * 2, [pairs(0.9)] * 5 + [pairs(0.1)] * 2],
    "kl_high": [[{"watch/kl_per_token": 0.51}] * 2],
    "length_runaway": [
        [{"watch/length": 20.0}, {"watch/length": 41.0}, {"watch/length": 41.0}],
        [{"watch/length": 40.0}, {"watch/length": 19.0}, {"watch/length": 19.0}],
    ],
    "eos_lost": [[{"watch/eos_rate": 0.9}, {"watch/eos_rate": 0.69}, {"watch/eos_rate": 0.69}]],
    "repetition": [[{"watch/repetition": 0.05}, {"watch/repetition": 0.21}, {"watch/repetition": 0.21}]],
}
QUIET: dict[str, list[list[Values]]] = {
    "chosen_falls": [[sides(-1.0, -2.0)] + [sides(-1.5, -2.0)] * 3, [{}, sides(-9.0, -9.0), sides(-9.0, -9.0)]],
    "rejected_collapses": [
        [sides(-1.0, -2.0)] + [sides(-0.9, -6.0)] * 3,  # the chosen have risen
        [sides(-1.0, -2.0)] + [sides(-1.1, -4.9)] * 3,
    ],
    "accuracy_saturated": [
        [pairs(0.5), pairs(0.8), pairs(0.9), pairs(1.0), pairs(1.0)],  # from 30 % on
        [pairs(0.5), *[pairs(1.0, number=63)] * 4],
        [pairs(0.5), pairs(0.98), pairs(0.98)],
    ],
    "accuracy_stuck": [
        [pairs(0.5)] * 5,  # before the half
        [pairs(0.9)] * 5 + [pairs(0.61)] * 2,
        [pairs(0.9)] * 5 + [pairs(0.55, number=63)] * 2,
    ],
    "kl_high": [[{"watch/kl_per_token": 0.49}] * 4, [{"watch/kl_per_token": math.nan}] * 4],
    "length_runaway": [
        [{"watch/length": 20.0}, *[{"watch/length": 39.0}] * 2],
        [{"watch/length": 5.0}, *[{"watch/length": 20.0}] * 2],  # four times, but 15 tokens
    ],
    "eos_lost": [[{"watch/eos_rate": 0.9}, *[{"watch/eos_rate": 0.71}] * 2]],
    "repetition": [
        [{"watch/repetition": 0.15}, *[{"watch/repetition": 0.24}] * 2],
        [{"watch/repetition": 0.0}, *[{"watch/repetition": 0.19}] * 2],
    ],
}


def test_every_alarm_of_observations_has_cases() -> None:
    of_steps = {name for name, alarm in ALARMS.items() if alarm.of == "steps"}
    assert set(FIRES) == set(QUIET) == set(CHECKS) == set(ALARMS) - of_steps


@pytest.mark.parametrize(("name", "series"), [(name, each) for name, many in FIRES.items() for each in many])
def test_a_condition_that_holds_twice_in_a_row_fires(name: str, series: list[Values]) -> None:
    (event,) = observed(series)
    assert (event.name, event.fired, event.stopped, event.step) == (name, True, False, 10 * (len(series) - 1))
    assert event.threshold == ALARMS[name].threshold
    assert not observed(series[:-1])


@pytest.mark.parametrize(("name", "series"), [(name, each) for name, many in QUIET.items() for each in many])
def test_a_condition_that_does_not_hold_is_quiet(name: str, series: list[Values]) -> None:
    assert name not in [event.name for event in observed(series)]


@pytest.mark.parametrize("name", FIRES)
def test_ignored_alarms_and_other_thresholds_are_quiet(name: str) -> None:
    series = FIRES[name][0]
    assert not observed(series, ignore_alarms=[name], stop_on=[name])
    higher = {"accuracy_saturated": 1.01, "accuracy_stuck": 0.9, "eos_lost": 0.9, "repetition": 0.9}.get(name, 50.0)
    assert not observed(series, thresholds={name: higher})


def test_patience_is_the_number_of_times_in_a_row() -> None:
    falls, recovers = sides(-2.0, -2.0), sides(-1.0, -2.0)
    assert len(observed([recovers, falls], watch_patience=1)) == 1
    assert not observed([recovers, falls, falls], watch_patience=3)
    assert not observed([recovers, *[falls, recovers] * 5])
    # A time without the metric neither counts nor breaks the row.
    assert len(observed([recovers, falls, {}, falls])) == 1


def test_an_alarm_is_told_once_and_then_every_tenth_time() -> None:
    series = [sides(-1.0, -2.0), *[sides(-2.0, -2.0)] * 22]
    events = observed(series, max_steps=1000)
    assert [(event.step, event.fired) for event in events] == [(20, True), (120, False), (220, False)]


def test_an_alarm_of_stop_on_stops_at_once_and_the_first_one_is_kept() -> None:
    series = [{**sides(-1.0, -2.0), "watch/kl_per_token": 0.0}]
    series += [{**sides(-2.0, -2.0), "watch/kl_per_token": 1.0}] * 3
    for stop_on in (["kl_high"], ["any"]):
        book, args, events = AlarmBook(), settings(stop_on=stop_on), []
        for index, values in enumerate(series):
            events += book.observe(args, values, index, None, 10)
        stopped = [event.name for event in events if event.stopped]
        assert stopped == (["kl_high"] if stop_on == ["kl_high"] else ["chosen_falls"])
        assert book.stopped is not None
        assert (book.stopped["name"], book.stopped["step"]) == (stopped[0], 2)


def test_a_book_goes_on_from_its_state() -> None:
    series = FIRES["accuracy_saturated"][0]
    book, args = AlarmBook(), settings()
    for index, values in enumerate(series[:2]):
        assert not book.observe(args, values, index * 10, None, 100)
    resumed = AlarmBook.of_state({**book.state_dict(), "of_a_later_version": 1})
    assert resumed == book
    (event,) = resumed.observe(args, series[2], 20, None, 100)
    assert "at steps 10 and 20 of 100" in event.message
    assert "The chosen answer is the shorter one in 100 % of these pairs." in event.message


def step(norm: float | None = 1.0, lr: float = 1e-3, finite: bool = True, loss: float = 0.7) -> Step:
    sums = {**dict.fromkeys(SUMS, 0.0), "pairs": 4.0, "loss": 4.0 * loss}
    return Step(sums, largest_margin=123.0, loss_is_finite=finite, grad_norm=norm, learning_rate=lr)


def stepped(
    steps: list[Step], announced: float | None = None, dtype: str = "float32", skipped: bool = False, **changes: Any
) -> list[Event]:
    book, args = AlarmBook(), settings(**changes)
    return [
        event
        for index, done in enumerate(steps, start=1)
        for event in book.observe_step(
            args, done, index, None, announced=announced, dtype=dtype, was_skipped=skipped and not done.is_finite
        )
    ]


@pytest.mark.parametrize("broken", [step(norm=math.nan), step(norm=math.inf), step(finite=False)])
def test_three_steps_in_a_row_that_are_not_finite_end_every_run(broken: Step) -> None:
    events = stepped([step(), broken, broken, step(), broken, broken, broken], dtype="bfloat16")
    assert [(event.name, event.step, event.stopped) for event in events] == [("nan", 7, True)]
    assert "largest margin before 123, bfloat16" in events[0].message
    assert not stepped([broken] * 9, ignore_alarms=["nan"])


def test_steps_that_the_gradient_scaler_skips_are_sound_for_longer() -> None:
    overflown = step(norm=math.inf)
    assert not stepped([overflown] * 29 + [step()] * 3, dtype="float16", skipped=True)
    assert [event.step for event in stepped([overflown] * 30, dtype="float16", skipped=True)] == [30]
    assert [event.step for event in stepped([step(finite=False)] * 3, dtype="float16", skipped=True)] == [3]


def test_no_gradient_in_the_first_steps_with_a_learning_rate() -> None:
    zero, warm_up = step(norm=0.0), step(norm=0.0, lr=0.0)
    (event,) = stepped([warm_up, warm_up, zero, zero, zero, zero])
    assert (event.name, event.step) == ("no_gradient", 5)
    assert not stepped([zero, zero, step(), *[zero] * 5])
    assert not stepped([step(norm=None)] * 5)
    assert not stepped([zero] * 3, thresholds={"no_gradient": 4})


def test_a_gradient_ten_times_the_median_is_told_but_stops_nothing() -> None:
    calm = [step(norm=1.0 + index % 3) for index in range(30)]  # median 2
    (event,) = stepped([*calm, step(norm=20.1), *calm], stop_on=["any"])
    assert (event.name, event.step, event.stopped) == ("grad_spike", 31, False)
    assert not stepped([*calm, step(norm=19.9)])
    assert not stepped([*calm[:19], step(norm=1000.0)])  # too few to know what is normal


def test_the_first_loss_is_compared_with_the_announced_one() -> None:
    (event,) = stepped([step(loss=0.71), step(loss=9.0)], announced=0.6931)
    assert (event.name, event.step, event.start) == ("first_loss", 1, 0.6931)
    assert not stepped([step(loss=0.70)], announced=0.6931)
    assert not stepped([step(loss=0.74)], announced=0.6931, dtype="bfloat16")
    assert stepped([step(loss=0.75)], announced=0.6931, dtype="bfloat16")
    assert not stepped([step(loss=9.0)])
