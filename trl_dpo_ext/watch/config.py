"""Options of watching a run: samples, drift, alarms."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import collecting
from ..option_docs import document_options
from .alarm_table import ALARMS, ANY
from .prompts_file import read_prompts

KL_ESTIMATORS = ("auto", "exact", "k3", "off")

if TYPE_CHECKING:

    class _Thresholds:
        """`watch_thresholds` as type checkers see it: the constructor takes more forms than the mapping it keeps."""

        def __get__(self, config: Any, owner: Any = None) -> dict[str, float]: ...

        def __set__(self, config: Any, value: Mapping[str, float] | Sequence[str] | str | None) -> None: ...

    class _Names:
        """Names of alarms as type checkers see them: one may be given without a list."""

        def __get__(self, config: Any, owner: Any = None) -> list[str]: ...

        def __set__(self, config: Any, value: Sequence[str] | str | None) -> None: ...


@document_options
@dataclass(kw_only=True)
class WatchOptions:
    """Options of `DPOExtConfig` for watching a run. Each of them switches watching on, unless `watch` is false.

    Args:
        > Watching

        watch: Watch the run at every evaluation: sample answers to fixed prompts, follow the log-probs of both sides
            and the KL divergence to the reference, and warn of common failures (alarms). The weights are the same
            with and without. Writes samples.jsonl, metrics.jsonl and alarms.jsonl into output_dir/watch. Default: true
            if another option of watching is set; false switches it off whatever they are.
        watch_prompts: Number of fixed prompts to sample answers to: distinct prompts of the first evaluation set, or
            of the training set without one, chosen by their content. 0 samples nothing.
        watch_prompts_file: A .jsonl file with a column `prompt`, in place of `watch_prompts`.
        watch_max_new_tokens: Largest number of tokens of a sampled answer.
        watch_temperature: Temperature of sampled answers; 0 takes the most likely token.
        watch_show: Number of sampled answers to print, of the same prompts each time.
        watch_kl: Estimator of the KL divergence to the reference, on samples of the policy: exact (over the whole
            vocabulary), k3, auto (exact where memory allows), or off.
        watch_on_start: Evaluate and sample before the first step too; alarms compare with these values.
        watch_steps: Number of optimizer steps between two times of watching. Default: every evaluation; a tenth of
            the run without evaluations.
        stop_on: Alarms that end the run, or `any`. `nan` always does. `train` exits with status 3 then.
        watch_thresholds: Thresholds of alarms as `NAME=X`, for instance `chosen_falls=1.0 kl_high=2`; a mapping in YAML
            and Python.
        watch_patience: Number of successive evaluations with a condition before its alarm fires.
        ignore_alarms: Alarms not to check because what they warn of is intended.
    """

    if TYPE_CHECKING:
        watch: bool | None = None
    else:
        watch: bool = None  # as `bool | None`, the command line would not take the flag without a value
    watch_prompts: int = 16
    watch_prompts_file: str | None = None
    watch_max_new_tokens: int = 128
    watch_temperature: float = 0.0
    watch_show: int = 3
    watch_kl: str = "auto"
    watch_on_start: bool = True
    watch_steps: int | None = None
    if TYPE_CHECKING:
        stop_on: _Names = _Names()
        watch_thresholds: _Thresholds = _Thresholds()
        ignore_alarms: _Names = _Names()
    else:
        stop_on: list[str] = field(default_factory=list)
        watch_thresholds: list[str] | None = None
        ignore_alarms: list[str] = field(default_factory=list)
    watch_patience: int = 2

    @property
    def is_watched(self) -> bool:
        """Whether the run is watched: as `watch` says, or whether another of these options is set."""
        if self.watch is not None:
            return self.watch
        values = {name: getattr(self, name) for name in WatchOptions.__dataclass_fields__}
        return any(value not in (_DEFAULTS[name], [], {}, None) for name, value in values.items())

    @property
    def is_sampled(self) -> bool:
        """Whether answers are sampled while the run is watched."""
        return self.is_watched and bool(self.watch_prompts or self.watch_prompts_file)

    def threshold(self, alarm: str) -> float:
        """The threshold of an alarm: the given one, or its default."""
        return self.watch_thresholds.get(alarm, ALARMS[alarm].threshold)


_DEFAULTS = {name: option.default for name, option in WatchOptions.__dataclass_fields__.items()}


def watch_problems(args: Any) -> list[str]:
    """Return what is wrong with the options of watching; brings names and thresholds to one form."""
    if args.watch_kl is False:  # what YAML reads `off` as
        args.watch_kl = "off"
    problems = _number_problems(args)
    if args.watch_kl not in KL_ESTIMATORS:
        problems.append(f"watch_kl must be one of {', '.join(KL_ESTIMATORS)}; got {args.watch_kl!r}.")
    file = args.watch_prompts_file
    if file is not None:
        with collecting(problems):
            read_prompts(file)
    for option, others in (("stop_on", (ANY,)), ("ignore_alarms", ())):
        names = _names(getattr(args, option))
        setattr(args, option, names)
        problems += _unknown(option, names, others)
    problems += _stop_problems(args)
    args.watch_thresholds, wrong = parse_thresholds(args.watch_thresholds)
    return problems + wrong


def parse_thresholds(given: Any) -> tuple[dict[str, float], list[str]]:
    """Return `watch_thresholds` as a mapping, and what is wrong with it.

    Args:
        given: a mapping, or `NAME=X` once or several times; None for no thresholds.
    """
    thresholds: dict[str, float] = {}
    problems: list[str] = []
    for name, text in _threshold_pairs(given):
        if text is None:
            problems.append(
                f"watch_thresholds: {name!r} is not of the form NAME=X. Write for instance chosen_falls=1.0."
            )
            continue
        unknown = _unknown("watch_thresholds", [name])
        problems += unknown or _wrong_threshold(name, text)
        if not unknown and name in thresholds:
            problems.append(f"watch_thresholds names {name} twice. Name it once.")
        if not unknown and not _wrong_threshold(name, text):
            thresholds[name] = float(text)
    return thresholds, problems


def _threshold_pairs(given: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(given, Mapping):
        given = [given]
    for item in given.replace(",", " ").split() if isinstance(given, str) else given or []:
        if isinstance(item, Mapping):
            yield from ((str(name), "" if text is None else text) for name, text in item.items())
        else:
            name, equals, text = str(item).partition("=")
            yield name.strip(), text.strip() if equals else None


def _wrong_threshold(name: str, text: Any) -> list[str]:
    try:
        number = math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        return [f"watch_thresholds: the threshold of {name} must be a number; got {text!r}."]
    if number <= 0:
        return [f"watch_thresholds: the threshold of {name} must be above 0; got {number:g}."]
    if ALARMS[name].is_share and number > 1:
        return [
            f"watch_thresholds: the threshold of {name} is a share, at most 1; got {number:g}. Set it to 1 or less."
        ]
    return []


def _number_problems(args: Any) -> list[str]:
    lowest = {"watch_prompts": 0, "watch_max_new_tokens": 1, "watch_show": 0, "watch_patience": 1, "watch_steps": 1}
    given = {name: getattr(args, name) for name in (*lowest, "watch_temperature")}
    problems = [
        f"{name} must be an integer, at least {lowest[name]}; got {value!r}."
        for name, value in given.items()
        if name in lowest and not (value is None and name == "watch_steps") and not _is_number(value, int, lowest[name])
    ]
    if not _is_number(args.watch_temperature, (int, float), 0):
        problems.append(f"watch_temperature must be a number, 0 or above; got {args.watch_temperature!r}.")
    return problems


def _is_number(value: Any, kind: Any, least: float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and least <= value < math.inf


def _names(given: Any) -> list[str]:
    """Names of alarms, given as a list or in one text."""
    return given.replace(",", " ").split() if isinstance(given, str) else [str(name) for name in given or []]


def _unknown(option: str, names: Iterable[str], others: Sequence[str] = ()) -> list[str]:
    known, problems = [*ALARMS, *others], []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            problems.append(f"{option}: unknown alarm {name!r}; one of {', '.join(known)}.{hint}")
    return problems


def _stop_problems(args: Any) -> list[str]:
    """Alarms of `stop_on` that never end the run."""
    problems = [
        f"stop_on: {name} only warns, and does not end a run. Remove it."
        for name in args.stop_on
        if name in ALARMS and not ALARMS[name].stops
    ]
    unsampled = not (args.watch_prompts or args.watch_prompts_file)
    for name in args.stop_on:
        of = ALARMS[name].of if name in ALARMS else ""
        if of in ("samples", "kl") and unsampled:
            problems.append(
                f"stop_on: {name} reads sampled answers, and watch_prompts=0 samples none. Set "
                "watch_prompts above 0, or remove it."
            )
        elif of == "kl" and args.watch_kl == "off":
            problems.append(
                f"stop_on: {name} reads the KL divergence, and watch_kl='off' computes none. Set "
                "watch_kl='auto', or remove it."
            )
    return problems
