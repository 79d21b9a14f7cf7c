"""The tables of a report: arguments, values, alarms, and other results in the folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...pages import Markup, data_text, element, join, table
from ..documents import facts_of

Run = Mapping[str, Any]
_KINDS = ("last", "best", "area")


def number(value: Any, step: int | None = None) -> str:
    """A value with four digits, and the step that it belongs to."""
    if value is None:
        return ""
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return text.replace("-", "−") + (f" (step {step:,})" if step is not None else "")


def arguments_table(arguments: Mapping[str, str]) -> Markup:
    """The arguments of one run."""
    return table([], [[name, data_text(value)] for name, value in arguments.items()], class_="arguments")


def argument_columns(
    arguments: Mapping[str, Sequence[str | None]], heads: Sequence[Markup], runs: Sequence[Run]
) -> Markup:
    """Arguments of several runs, one column for each."""
    unknown = ["–" if run["recorded"] else "not recorded" for run in runs]
    rows = [
        [name, *(none if value is None else data_text(value) for none, value in zip(unknown, values, strict=True))]
        for name, values in arguments.items()
    ]
    return table(["", *heads], rows, class_="arguments")


def heads_of(runs: Sequence[Run], letters: Sequence[str | None]) -> list[Markup]:
    """The head of each run's column: its color, its name, and the letter of its evaluation data where they differ."""
    apart = len({*letters} - {None}) > 1
    heads = []
    for at, (run, letter) in enumerate(zip(runs, letters, strict=True)):
        data = element("small", f"evaluation data {letter}") if apart and letter else None
        heads.append(join([_run_name(at, run), " ", data]))
    return heads


def values_table(run: Run) -> Markup:
    """First, last, best and area of one run's curves."""
    rows = [
        [
            _label(each),
            number(each["first"]),
            number(each["last"]),
            number(each["best"], each["best_step"]),
            number(each["area"]),
        ]
        for each in run["values"]
    ]
    return table(["", "first", "last", "best", "area"], rows, sortable=True)


def value_columns(runs: Sequence[Run], heads: Sequence[Markup], letters: Sequence[str | None]) -> Markup:
    """Last, best and area of each curve, one column for each run; values on other evaluation data are marked."""
    labels = dict.fromkeys(_label(each) for run in runs for each in run["values"])
    known = [{_label(each): each for each in run["values"]} for run in runs]
    first = next((letter for letter in letters if letter), None)
    rows = []
    for label in labels:
        for kind in _KINDS:
            cells = [of_run.get(label, {}).get(kind) for of_run in known]
            if all(cell is None for cell in cells):
                continue
            steps = [of_run.get(label, {}).get("best_step") if kind == "best" else None for of_run in known]
            shown = [number(cell, step) for cell, step in zip(cells, steps, strict=True)]
            if "evaluation" in label:
                shown = [
                    _marked(text, letter) if text and letter != first else text
                    for text, letter in zip(shown, letters, strict=True)
                ]
            rows.append([f"{label}, {kind}", *shown])
    return table(["", *heads], rows)


def _marked(text: str, letter: str | None) -> Markup:
    title = "on evaluation data that was not recorded" if letter == "?" else "on other evaluation data"
    return element("span", f"{text} [{letter}]", class_="other-data", title=title)


def _label(value: Mapping[str, Any]) -> str:
    return f"{value['metric']}, {value['where']}" if value["where"] else str(value["metric"])


def alarms_table(runs: Sequence[Run]) -> Markup | None:
    """Every alarm that fired; None without any."""
    rows = [
        [_run_name(at, run), _step(alarm), element("b", alarm["name"]), _alarm_words(alarm)]
        for at, run in enumerate(runs)
        for alarm in run["alarms"]
        if alarm.get("fired")
    ]
    if not rows:
        return None
    if len(runs) == 1:
        return table(["step", "alarm", ""], [row[1:] for row in rows], class_="alarms")
    return table(["run", "step", "alarm", ""], rows, class_="alarms")


def _run_name(place: int, run: Run) -> Markup:
    """The name of a run behind its color."""
    return join([element("span", class_=f"key c{place % 8}"), " ", data_text(run["name"])])


def _step(alarm: Mapping[str, Any]) -> Markup:
    return join([element("span", "step ", class_="narrow"), f"{alarm['step']:,}"])


def _alarm_words(alarm: Mapping[str, Any]) -> Markup:
    stopped = element("b", "Ended the run. ") if alarm.get("stopped") else None
    return element("span", stopped, str(alarm.get("message", "")), dir="auto")


def logged_table(runs: Sequence[Run], heads: Sequence[Markup]) -> Markup:
    """The last value of everything that was logged."""
    names = sorted({name for run in runs for name in run["series"]})
    rows = []
    for name in names:
        series = [run["series"].get(name, {"value": []})["value"] for run in runs]
        last = [next((value for value in reversed(values) if value is not None), None) for values in series]
        rows.append([name, *(number(value) for value in last)])
    return table(["", *heads], rows, sortable=True)


def documents_of(run: Run) -> list[Markup]:
    """Results of `score` and `inspect` in a run's folder."""
    cards = []
    for file, document in run["documents"].items():
        rows = [[name, data_text(value)] for name, value in facts_of(document).items()]
        title = element("h3", f"{document['kind'].rpartition('.')[2]}: ", data_text(file))
        cards.append(element("div", title, table([], rows, class_="arguments"), class_="card"))
    return cards
