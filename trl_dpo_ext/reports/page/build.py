"""Build the page from the result of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from ... import pages
from ...pages import Markup, data_text, element, join
from . import curves, samples, tables

Run = Mapping[str, Any]


def page(data: Mapping[str, Any]) -> str:
    """Return the page as text.

    Args:
        data: the result of `report_of`.
    """
    runs = [run for run in data["runs"] if not run["problem"]]
    missing = [run for run in data["runs"] if run["problem"]]
    letters = _letters(data)
    title = f"Run {runs[0]['name']}" if len(data["runs"]) == 1 and runs else f"{len(data['runs'])} runs"
    sections = [_header(title, data), _missing(missing)]
    if len(runs) == 1:
        sections += _one(runs[0])
    elif runs:
        sections += _several(data, runs, letters)
    folder = files(__name__.rpartition(".")[0])
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    body = element("main", *sections)
    return pages.document(f"report: {title}", body, data={"kind": data["kind"]}, style=style, script=script)


def _header(title: str, data: Mapping[str, Any]) -> Markup:
    versions = [f"{name} {version}" for name, version in data["versions"].items()]
    lines = [element("h1", data_text(title)), element("p", " · ".join([*versions, data["date"]]), class_="about")]
    return element("header", *lines)


def _missing(runs: Sequence[Run]) -> Markup | None:
    lines = [element("li", data_text(run["folder"]), ": ", run["problem"]) for run in runs]
    return element("ul", *lines, class_="missing", aria_label="Folders without a run") if lines else None


def _one(run: Run) -> list[Markup | None]:
    said = samples.samples_of(run["samples"])
    documents = tables.documents_of(run)
    return [
        element("p", data_text(run["status"]), class_="status"),
        _section("Alarms", tables.alarms_table([run])),
        _curves([run], [None], {}),
        _section("Values", _area_note(), tables.values_table(run)),
        _section("Arguments", tables.arguments_table(run["arguments"]), _launch(run)),
        _section("Samples", *said) if said else None,
        _section("Results in the folder", element("div", *documents, class_="cards")) if documents else None,
        _more("Everything that was logged: last values", tables.logged_table([run], [Markup("last")])),
    ]


def _several(data: Mapping[str, Any], runs: Sequence[Run], letters: Sequence[str | None]) -> list[Markup | None]:
    heads = tables.heads_of(runs, letters)
    places = [at for at, run in enumerate(data["runs"]) if not run["problem"]]
    differing = {name: [values[at] for at in places] for name, values in data["differing"].items()}
    every = {name: value for run in runs for name, value in run["arguments"].items()}
    same = {name: value for name, value in every.items() if name not in differing}
    status = tables.argument_columns({"state": [run["status"] for run in runs], **differing}, heads, runs)
    warnings = [element("li", warning) for warning in data["comparison"]["warnings"]]
    said = samples.last_samples(runs)
    histories = [
        _more(f"Samples of {run['name']}, step by step", *made)
        for run in runs
        if (made := samples.samples_of(run["samples"], len(runs)))
    ]
    documents = [_titled(run, tables.documents_of(run)) for run in runs if run["documents"]]
    return [
        element("ul", *warnings, class_="warnings", aria_label="What is not comparable") if warnings else None,
        _section("Arguments that differ", status, _more("The same in all runs", tables.arguments_table(same))),
        _section("Alarms", tables.alarms_table(runs)),
        _run_legend(heads),
        _curves(runs, letters, _notes(data["comparison"])),
        _section("Values", _area_note(), tables.value_columns(runs, heads, letters)),
        _section("Samples: the last answer of each run", *said, *histories) if said or histories else None,
        _section("Results in the folders", *documents) if documents else None,
        _more("Everything that was logged: last values", tables.logged_table(runs, heads)),
    ]


def _letters(data: Mapping[str, Any]) -> list[str | None]:
    """The letters of the runs that are shown."""
    if "comparison" not in data:
        return [None]
    pairs = zip(data["runs"], data["comparison"]["evaluation_sets"], strict=True)
    return [letter for run, letter in pairs if not run["problem"]]


def _curves(runs: Sequence[Run], letters: Sequence[str | None], notes: Mapping[str, str]) -> Markup | None:
    """The charts, once for each thing that the horizontal axis may show; a script switches between them."""
    axes = curves.axes_of(runs)
    blocks = []
    for at, axis in enumerate(axes):
        drawn = curves.charts(runs, axis, letters, notes)
        blocks.append(element("div", *drawn, class_="charts", data_axis=axis, hidden=at > 0))
    choices = [
        element(
            "label", element("input", type="radio", name="axis", value=axis, checked=not at), f" {curves.AXES[axis]}"
        )
        for at, axis in enumerate(axes)
    ]
    chooser = element("fieldset", element("legend", "Horizontal axis"), *choices, class_="controls axes", hidden=True)
    return _section("Curves", chooser if len(axes) > 1 else None, *blocks)


def _notes(comparison: Mapping[str, Any]) -> dict[str, str]:
    """What the charts of metrics say of values that are not comparable."""
    letters = sorted({letter for letter in comparison["evaluation_sets"] if letter})
    apart = f"Evaluated on different data ({', '.join(letters)})." if len(letters) > 1 else ""
    losses = "" if comparison["same_losses"] else "Different losses."
    betas = "" if comparison["same_beta"] else "Different beta."
    return {
        "loss": f"{losses} {apart}".strip(),
        "rewards/accuracies": apart,
        "rewards/margins": f"{betas} {apart}".strip(),
    }


def _run_legend(heads: Sequence[Markup]) -> Markup:
    boxes = [
        element("label", element("input", type="checkbox", checked=True, data_toggles=f"run-{at}"), " ", head)
        for at, head in enumerate(heads)
    ]
    return element("div", *boxes, class_="legend runs", role="group", aria_label="Runs that are shown")


def _titled(run: Run, cards: Sequence[Markup]) -> Markup:
    return join([element("h3", data_text(run["name"])), element("div", *cards, class_="cards")])


def _launch(run: Run) -> Markup | None:
    return element("pre", run["launch"], class_="text") if run["launch"] else None


def _area_note() -> Markup:
    return element("p", "Area: the mean over the steps, from the area under the curve.", class_="about")


def _section(title: str, *content: Markup | None) -> Markup | None:
    if not any(content):
        return None
    return element("section", element("h2", title), *content, aria_label=title)


def _more(title: str, *content: Markup | None) -> Markup:
    return element("details", element("summary", title), *content)
