"""Build the page from the JSON object of scored pairs and some rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from ... import pages
from ...inspection.terminal_rows import visible
from ...pages import Markup, element
from ..measures import measure
from ..pair_scores import PairScores
from ..rewardbench.words import section_facts
from ..summary import SummaryOptions
from ..terminal import KINDS, facts_about_pairs, header_facts, length_facts
from ..words import decimal, number, output_sentence, rate, rate_with_interval, signed
from .charts import charts
from .rows import RowTexts, page_rows


def page(data: Mapping[str, Any], scores: PairScores, texts: Mapping[int, RowTexts | None]) -> str:
    """Return the page as text.

    Args:
        data: of `summarize`, with the block `output` where a file was written.
        scores: that it was made of.
        texts: of the rows to show, by their place, at least those that `sample` chooses; None for a row that no model
            has read, whose columns are shown.
    """
    options = _options(data["arguments"])
    measures = measure(scores, options.normalize, options.reference_free)
    rows = pages.fitting(page_rows(scores, measures, options, texts))
    folder = files(__name__.rpartition(".")[0])
    body, style, script = ((folder / name).read_text(encoding="utf-8") for name in ("body.html", "page.css", "page.js"))
    list_style, list_script = pages.row_list()
    without_script = pages.join(
        [
            element("p", "Without JavaScript, this page shows the first rows."),
            *map(_plain, rows[: pages.WITHOUT_SCRIPT]),
        ]
    )
    parts = {
        "statistics": pages.join(_statistics(data), "\n"),
        "charts": element("div", *charts(data, scores, measures, options), class_="charts"),
        "noscript": element("noscript", without_script),
    }
    for name, part in parts.items():
        body = body.replace(f"<!--{name}-->", part)
    return pages.document(
        f"score: {data['arguments'].get('policy') or data['arguments'].get('dataset') or 'preferences'}",
        Markup(body),
        data={"rows": rows, "total": data["rows"]["loaded"], "free": options.reference_free},
        style=list_style + style,
        script=list_script + script,
    )


def _options(arguments: Mapping[str, Any]) -> SummaryOptions:
    columns = arguments["score_columns"]
    return SummaryOptions(
        arguments["normalize"],
        arguments["reference_free"],
        arguments["subset_column"],
        (columns[0], columns[1]) if columns else None,
    )


def _statistics(data: Mapping[str, Any]) -> list[Markup | None]:
    """The statistics as the terminal has them, and in full where it has no room."""
    about = " · ".join([*(f"{name} {value}" for name, value in data["versions"].items()), data["date"]])
    notes = [*data["notes"], *(data.get("output") or {}).get("notes", [])]
    scored = bool(data["accuracy"]["n"])
    cards = [
        card("Accuracy", facts(facts_about_pairs(data))),
        card("Without the reference", _without_reference(data["without_reference"])) if scored else None,
        card("Length alone", facts(length_facts(data["length"]))) if scored else None,
        _scores(data["scores"]),
        _sections(data.get("rewardbench")),
        _comparison(data.get("compare")),
    ]
    return [
        facts(header_facts(data)),
        element("p", about, class_="about"),
        element("p", output_sentence(data["output"])) if data.get("output") else None,
        *(element("p", element("span", "note", class_="level note"), " ", note) for note in notes),
        element("div", *cards, class_="cards"),
        _subsets(data["subsets"]),
    ]


def card(title: str, content: Markup) -> Markup:
    """Statistics of one kind, with a title."""
    return element("div", element("h3", title), content, class_="card")


def facts(said: Iterable[tuple[str, str]]) -> Markup:
    """Names with sentences, as a list of definitions."""
    return element("dl", *(part for name, text in said for part in (element("dt", name), element("dd", text))))


def _without_reference(block: Mapping[str, Any]) -> Markup:
    lines = [
        [words, *(rate_with_interval(block[whose][kind]) if block[whose][kind] else "-" for whose in block)]
        for kind, words in KINDS.items()
    ]
    return pages.table(["accuracy by", *block], lines)


def _scores(block: Mapping[str, Any] | None) -> Markup | None:
    if block is None or not block["n"]:
        return None
    correlation = f"Pearson {decimal(block['pearson'], 2)}, Spearman {decimal(block['spearman'], 2)}"
    lines = [
        [_range(each["low"], each["high"]), number(each["n"]), signed(each["mean_margin"])] for each in block["deciles"]
    ]
    content = [element("p", f"{' − '.join(block['columns'])} and margin: {correlation}")]
    content.append(pages.table(["score difference", "pairs", "mean margin"], lines))
    return card("Scores", pages.join(content))


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _sections(table: Mapping[str, Any] | None) -> Markup | None:
    return card("RewardBench (ties are wrong)", facts(section_facts(table))) if table else None


def _comparison(block: Mapping[str, Any] | None) -> Markup | None:
    if not block or not block["n"]:
        return None
    low, high = (f"{100 * edge:+.1f}" for edge in block["interval"])
    said = [
        ("second policy", str(block.get("policy") or "")),
        ("second reference", str(block.get("reference") or "none")),
        ("first", rate_with_interval(block["first"])),
        ("second", rate_with_interval(block["second"])),
        ("difference", f"{100 * block['difference']:+.1f} points ({low} to {high}; paired bootstrap)"),
        ("right alone", f"first {number(block['first_only'])}, second {number(block['second_only'])}"),
    ]
    margin = block["margin"]
    low, high = (signed(edge) for edge in margin["interval"])
    said.append(("margins", f"{signed(margin['difference'])} on average ({low} to {high}; paired bootstrap)"))
    return card("Two policies", facts(said))


def _subsets(block: Mapping[str, Any] | None) -> Markup | None:
    if block is None or not block["values"]:
        return None
    head = [block["column"], "pairs", "accuracy", "margin", "longer wins", "at equal length", "policy, mean log-prob"]
    lines = [
        [
            pages.data_text("null" if each["value"] is None else each["value"]),
            number(each["accuracy"]["n"]),
            rate_with_interval(each["accuracy"]),
            signed(each["margin"]["mean"]),
            rate(each["length"]["longer_wins"]),
            rate(each["length"]["accuracy_length_balanced"]),
            *(_free(each["without_reference"][whose]) for whose in ("policy", "reference")),
        ]
        for each in block["values"]
    ]
    table = pages.table([*head, "reference, mean log-prob"], lines, sortable=True)
    return card(f"By {block['column']}", table)


def _free(kinds: Mapping[str, Any]) -> str:
    return rate(kinds["mean"]["accuracy"]) if kinds["mean"] else "-"


def _plain(row: Mapping[str, Any]) -> Markup:
    """A row without JavaScript."""
    words = f"row {row['row']}: {row['status']}, margin {signed(row['margin'])}"
    parts = [element("h3", words)]
    for name in ("prompt", "chosen", "rejected"):
        parts.append(element("p", element("b", name), " ", pages.data_text(visible(row[name]))))
    return pages.join(parts, "\n")
