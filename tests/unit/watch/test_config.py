"""The options of watching: what switches it on, every form of a value, and all problems at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import config
from trl_dpo_ext.cli.arguments import TrainParser
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.watch.alarm_table import ALARMS
from trl_dpo_ext.watch.config import parse_thresholds


def test_a_run_is_not_watched_by_default(tmp_path: Path) -> None:
    assert not config(tmp_path).is_watched
    assert not config(tmp_path, watch_prompts=16, stop_on=[], watch_thresholds=None).is_watched


@pytest.mark.parametrize(
    "settings",
    [
        {"watch": True},
        {"watch_prompts": 0},
        {"watch_on_start": False},
        {"watch_steps": 5},
        {"stop_on": "nan"},
        {"ignore_alarms": ["chosen_falls"]},
        {"watch_thresholds": {"kl_high": 2}},
    ],
)
def test_each_option_switches_watching_on(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert config(tmp_path, **settings).is_watched


EVERY = {
    "watch_prompts": 4,
    "watch_steps": 5,
    "watch_on_start": False,
    "stop_on": "any",
    "watch_thresholds": "kl_high=2",
}


def test_an_explicit_false_wins_over_the_other_options(tmp_path: Path) -> None:
    args = config(tmp_path, watch=False, **EVERY)
    assert not args.is_watched
    assert not args.is_sampled
    assert config(tmp_path, watch=None, **EVERY).is_watched


@pytest.mark.parametrize(
    ("keys", "flags", "watched"),
    [
        ("", "", False),
        ("", "--watch", True),
        ("", "--watch false", False),
        ("", "--watch false --watch_prompts 4", False),
        ("", "--watch_prompts 4 --watch false", False),
        ("watch_prompts: 4", "", True),
        ("watch_prompts: 4", "--watch false", False),
        ("watch: true\nstop_on: any", "--watch false", False),
        ("watch: false\nstop_on: any", "", False),
        ("watch: false", "--watch_prompts 4", False),
        ("watch: false\nwatch_prompts: 4", "--watch", True),
    ],
)
def test_flags_and_yaml_switch_watching_on_and_off(tmp_path: Path, keys: str, flags: str, watched: bool) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model_name_or_path: m\ndataset_name: d\nbf16: false\nuse_cpu: true\n{keys}\n")
    assert TrainParser().parse(["--config", str(file), *flags.split()]).args.is_watched is watched


@pytest.mark.parametrize(
    "given",
    [
        {"kl_high": 2, "chosen_falls": 1.5},
        {"kl_high": "2", "chosen_falls": "1.5"},
        ["kl_high=2", "chosen_falls=1.5"],
        "kl_high=2 chosen_falls=1.5",
        "kl_high=2,chosen_falls=1.5",
        '{"kl_high": 2, "chosen_falls": 1.5}',
        [{"kl_high": 2}, {"chosen_falls": 1.5}],
    ],
)
def test_thresholds_are_read_in_every_form(tmp_path: Path, given: Any) -> None:
    args = config(tmp_path, watch_thresholds=given)
    assert args.watch_thresholds == {"kl_high": 2.0, "chosen_falls": 1.5}
    assert (args.threshold("kl_high"), args.threshold("repetition")) == (2.0, ALARMS["repetition"].threshold)
    assert config(tmp_path, watch_thresholds=args.watch_thresholds).watch_thresholds == args.watch_thresholds


@pytest.mark.parametrize("given", ["nan kl_high", "nan,kl_high", ["nan", "kl_high"], '["nan", "kl_high"]'])
def test_names_of_alarms_are_read_in_every_form(tmp_path: Path, given: Any) -> None:
    args = config(tmp_path, stop_on=given, ignore_alarms=given)
    assert args.stop_on == args.ignore_alarms == ["nan", "kl_high"]


def test_the_command_line_and_yaml_give_the_same_options(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model_name_or_path: m\ndataset_name: d\nbf16: false\nuse_cpu: true\nstop_on: any\nwatch_kl: off\n"
        "watch_thresholds: {chosen_falls: 1, eos_lost: 0.5}\nwatch_temperature: 0\nwatch_prompts: 4\n"
    )
    flags = ["--model_name_or_path", "m", "--dataset_name", "d", "--bf16", "false", "--use_cpu", "true"]
    flags += ["--stop_on", "any", "--watch_kl", "off", "--watch_thresholds", "chosen_falls=1", "eos_lost=0.5"]
    flags += ["--watch_temperature", "0", "--watch_prompts", "4"]
    from_file, from_flags = (TrainParser().parse(given).args for given in (["--config", str(file)], flags))
    for args in (from_file, from_flags):
        assert args.watch_thresholds == {"chosen_falls": 1.0, "eos_lost": 0.5}
        assert (args.stop_on, args.watch_kl, args.watch_temperature, args.watch_prompts) == (["any"], "off", 0, 4)


WRONG = {
    "watch_prompts": (-1, "watch_prompts must be an integer, at least 0; got -1"),
    "watch_max_new_tokens": (0, "watch_max_new_tokens must be an integer, at least 1"),
    "watch_show": (-2, "watch_show must be"),
    "watch_patience": (-3, "watch_patience must be an integer, at least 1; got -3"),
    "watch_steps": (0, "watch_steps must be an integer, at least 1; got 0"),
    "watch_temperature": (float("nan"), "watch_temperature must be a number, 0 or above"),
    "watch_kl": ("k1", "watch_kl must be one of auto, exact, k3, off; got 'k1'"),
    "watch_prompts_file": ("missing.jsonl", "watch_prompts_file: no such file: missing.jsonl"),
    "stop_on": (["chosen_fals"], "stop_on: unknown alarm 'chosen_fals'.*Did you mean chosen_falls"),
    "ignore_alarms": (["any"], "ignore_alarms: unknown alarm 'any'"),
    "watch_thresholds": (
        ["kl_hgh=1", "eos_lost=many"],
        "unknown alarm 'kl_hgh'.*eos_lost must be a number; got 'many'",
    ),
}


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        config(tmp_path, **{name: value for name, (value, _) in WRONG.items()}, learning_rate=-1, weight_column=None)
    for _, text in WRONG.values():
        with pytest.raises(InputError, match=f"(?s){text}"):
            raise caught.value


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"stop_on": "grad_spike"}, "grad_spike only warns"),
        ({"stop_on": "kl_high", "watch_kl": "off"}, "kl_high reads the KL divergence, and watch_kl='off'"),
        ({"stop_on": "kl_high", "watch_kl": False}, "watch_kl='off'"),
        ({"stop_on": "eos_lost", "watch_prompts": 0}, "eos_lost reads sampled answers, and watch_prompts=0"),
        ({"watch_prompts": "many"}, "must be an integer"),
        ({"watch_steps": True}, "must be an integer"),
    ],
)
def test_an_alarm_that_never_ends_the_run_and_values_of_another_kind_are_refused(
    tmp_path: Path, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        config(tmp_path, **settings)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("kl_high", "'kl_high' is not of the form NAME=X"),
        ("kl_high=0", "must be above 0; got 0"),
        ("kl_high=inf", "must be a number; got 'inf'"),
        ("eos_lost=2", "is a share, at most 1; got 2"),
        ("kl_high=1 kl_high=2", "names kl_high twice"),
        ({"kl_high": None}, "must be a number"),
        ({"kl_high": True}, "must be a number; got True"),
    ],
)
def test_thresholds_that_are_none(given: Any, text: str) -> None:
    _, problems = parse_thresholds(given)
    assert len(problems) == 1
    assert text in problems[0]


def test_every_alarm_has_a_meaning_with_its_threshold() -> None:
    assert all(alarm.meaning.count("{}") == 1 for alarm in ALARMS.values())
    assert all(not alarm.is_share or alarm.threshold <= 1 for alarm in ALARMS.values())
