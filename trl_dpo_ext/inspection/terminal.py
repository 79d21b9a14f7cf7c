"""Show the result of `inspect` in a terminal. Everything is read from the result's JSON object."""

from __future__ import annotations

import html
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .rule import percent, plural
from .terminal_rows import show_row

_COLORS = {"error": "bold red", "warning": "bold yellow", "note": "cyan"}
_LABELS = {"error": "ERROR", "warning": "WARNING", "note": "note"}
_QUANTILES = (
    ("5%", "p5"),
    ("25%", "p25"),
    ("50%", "p50"),
    ("75%", "p75"),
    ("95%", "p95"),
    ("99%", "p99"),
    ("max", "max"),
)
_BARS = " ▁▂▃▄▅▆▇█"
_PIPED_WIDTH = 120
_BESIDE = 50
"""Columns that a finding's sentence needs beside its name; with fewer it goes below."""


def make_console(file: Any = None) -> Console:
    """Return a console for a file, by default standard output; plain text of a fixed width if that is no terminal."""
    plain = False if os.environ.get("NO_COLOR") else None  # no other styles, either
    console = Console(file=file, highlight=False, soft_wrap=False, force_terminal=plain)
    if plain is False and (file or sys.stdout).isatty():
        return console
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(file=file, highlight=False, width=_PIPED_WIDTH)
    return console


def show(data: Mapping[str, Any], console: Console, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Print statistics, findings and example rows.

    Args:
        data: of an `Inspection`.
        console: where to.
        rows: shown in place of the examples.
    """
    _header(data, console)
    for name, split in data["splits"].items():
        if "lengths" in split:
            _lengths(name, split, console)
            _facts(split, console)
    if data["overlap"]:
        console.print(_fact("Test in train", _overlap(data["overlap"])))
    console.print()
    _findings(data["findings"], console)
    for row in data["examples"] if rows is None else rows:
        show_row(row, console)
    _summary(data["findings"], console)


def _header(data: Mapping[str, Any], console: Console) -> None:
    arguments, splits = data["arguments"], data["splits"]
    tokenizer = arguments.get("model") or arguments.get("tokenizer") or "?"
    template = "chat template" if arguments["chat_template"] else "no chat template"
    limit = "no max_length" if arguments["max_length"] is None else f"max_length {arguments['max_length']}"
    name = arguments.get("dataset")
    parts = [str(name)] if name else []
    parts += [f"tokenizer {tokenizer} ({template})", f"{limit}, {arguments['truncation_mode']}"]
    console.print(Text("   ".join(parts), style="bold"))
    first = "the first " if arguments.get("max_rows") else ""
    counts = ", ".join(f"{name} {first}{plural(split['rows']['loaded'], 'row')}" for name, split in splits.items())
    layouts = sorted({split["layout"] for split in splits.values() if "layout" in split})
    console.print(f"{counts}; layout: {' / '.join(layouts)}" if layouts else counts, markup=False)
    if first:
        console.print("duplicates, contradictions and overlap are looked for among these rows alone", markup=False)
    notes = {note: count for split in splits.values() for note, count in split.get("converted", {}).items()}
    for note in notes:
        counted = ", ".join(
            f"{name} {plural(split['converted'][note], 'row')}"
            for name, split in splits.items()
            if note in split.get("converted", {})
        )
        console.print(f"converted: {note} ({counted})", markup=False)
    for text in sorted({split["images"] for split in splits.values() if "images" in split}):
        console.print(f"images: {text}", markup=False)
    console.print()


def _lengths(name: str, split: Mapping[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(name, no_wrap=True)
    for title, _ in _QUANTILES:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    lengths, cut = split["lengths"], split["truncation"] or {}
    for part in ("prompt", "chosen", "rejected"):
        summary, trained, of_part = lengths[part]["before"], lengths[part]["after"], cut.get(part)
        if of_part and of_part["rows"]:
            share = percent(of_part["rows"] / summary["n"])
            note = f"{_number(of_part['rows'])} cut ({share}), {_number(of_part['tokens'])} tokens"
            table.add_row(*_length_row(f"{part}, whole", summary))
            table.add_row(*_length_row(f"{part}, as trained", trained), note)
        else:
            table.add_row(*_length_row(f"{part} tokens", summary))
    console.print(table)
    console.print()
    for side in ("chosen", "rejected"):
        console.print(_histogram(side, lengths))
    console.print()


def _length_row(label: str, summary: Mapping[str, Any]) -> list[str]:
    mean = "" if summary["mean"] is None else f"{summary['mean']:,.1f}"
    return [label, *(_number(summary[key]) for _, key in _QUANTILES), mean]


def _histogram(side: str, lengths: Mapping[str, Any]) -> Text:
    both = [lengths[name]["before"]["histogram"]["counts"] for name in ("chosen", "rejected")]
    width = max(map(len, both))
    used = [at for at in range(width) if any(at < len(counts) and counts[at] for counts in both)]
    histogram = lengths[side]["before"]["histogram"]
    counts = [*histogram["counts"], *[0] * (width - len(histogram["counts"]))]
    most = max(counts) or 1
    shown = range(used[0], used[-1] + 1) if used else range(0)
    bars = "".join(_BARS[-(-counts[at] * (len(_BARS) - 1) // most)] for at in shown)
    edges = [0, *(1 << at for at in range(width))]
    bins = [f"{_bin(edges[at], edges[at + 1])}: {_number(counts[at])}" for at in shown if counts[at]]
    return Text(f"  {side:9} {bars}  {'  '.join(bins)}", style="")


def _bin(low: int, high: int) -> str:
    return str(low) if high - 1 <= low else f"{low}-{high - 1}"


def _facts(split: Mapping[str, Any], console: Console) -> None:
    bias = split["length_bias"]
    console.print(_fact("Which is longer", _bias(bias["before"])))
    if bias["after"] != bias["before"]:
        console.print(_fact("  as trained", _bias(bias["after"])))
    if bias.get("scores") and bias["scores"]["n"]:
        scores = bias["scores"]
        words = f"Pearson {_decimal(scores['pearson'])}, Spearman {_decimal(scores['spearman'])}"
        console.print(_fact("  and scores", f"length and score differences: {words}"))
    for name, subset in (bias.get("subsets") or {}).items():
        console.print(_fact(f"  {name}", _bias(subset["before"])))
    first = split["difference"]
    if first["rows"]:
        quantiles = first["first"]
        text = f"token {quantiles['p50']} (median), {quantiles['p95']} (95 %) in {plural(first['rows'], 'pair')}"
        console.print(_fact("First difference", text))
    fed, scored = split["tokens"]["fed"], sum(split["tokens"]["scored"].values())
    share = percent(scored / fed["plain"]) if fed["plain"] else ""
    unit = "list" if "lists" in split["rows"] else "pair"
    padded = f"{_number(fed['padded'])} padded, {plural(fed['batch_size'], unit)} each"
    shared = f"share_prompt {_number(fed['share_prompt'])} ({_decimal(fed['ratio'])} x fewer)"
    text = f"{_number(fed['plain'])} positions ({padded}), {shared}; {_number(scored)} scored ({share})"
    console.print(_fact("Fed per epoch", text))
    duplicates = split["duplicates"]
    if duplicates["largest_group"] > 1:
        text = (
            f"{_number(duplicates['distinct_prompts'])} distinct, at most {duplicates['largest_group']} rows with one"
        )
        console.print(_fact("Prompts", text))
    console.print()


def _bias(bias: Mapping[str, Any]) -> str:
    if not bias["n"]:
        return "no rows"
    low, high = (f"{100 * edge:.1f}" for edge in bias["interval"])
    return (
        f"chosen {_number(bias['longer'])}, rejected {_number(bias['shorter'])}, equal {_number(bias['equal'])}. "
        f'"The longer wins" is right in {100 * bias["accuracy"]:.1f} % ({low}-{high})'
    )


def _fact(label: str, text: str) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=16, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(label, style="bold"), Text(text))
    return grid


def _overlap(block: Mapping[str, Any]) -> str:
    names = {"prompts": "prompts", "chosen": "chosen answers", "rows": "rows"}
    return ", ".join(f"{block[name]['exact']} of {block['n']} {words}" for name, words in names.items())


def _findings(findings: Sequence[Mapping[str, Any]], console: Console) -> None:
    splits = {finding["split"] for finding in findings}
    heads = [_head(finding, len(splits) > 1) for finding in findings]
    widths = [max(map(len, column)) for column in zip(*heads, strict=True)]
    beside = console.width - sum(widths) - 2 * len(widths) >= _BESIDE
    for finding, head in zip(findings, heads, strict=True):
        grid = Table.grid(padding=(0, 2, 0, 0))
        for width in widths:
            grid.add_column(width=width if beside else None, no_wrap=True)
        style = "dim" if finding["ignored"] else _COLORS[finding["level"]]
        cells = [Text(head[0], style=style), *map(Text, head[1:])]
        if beside:
            grid.add_column(overflow="fold")
            grid.add_row(*cells, _said(finding))
            console.print(grid)
        else:
            grid.add_row(*cells)
            console.print(grid)
            console.print(Padding(_said(finding), (0, 0, 0, 2)))


def _head(finding: Mapping[str, Any], several: bool) -> tuple[str, str, str]:
    """Level, name and count of a finding."""
    name = finding["name"] + (f" ({finding['split']})" if several else "")
    share = f"{_number(finding['count'])} ({percent(finding['share'])})" if finding["count"] else ""
    return _LABELS[finding["level"]], name, share


def _said(finding: Mapping[str, Any]) -> Text:
    text = Text(finding["sentence"])
    if finding["ignored"]:
        return text.append(" [ignored]")
    if finding["rows"] and finding["share"] < 1:
        text.append(f"; rows {', '.join(map(str, finding['rows']))}", style="dim")
    if finding["remedy"]:
        text.append(f"\n-> {finding['remedy']}")
    return text


def _summary(findings: Sequence[Mapping[str, Any]], console: Console) -> None:
    console.print()
    levels = [finding["level"] for finding in findings if not finding["ignored"]]
    parts = [plural(levels.count(level), level) for level in ("error", "warning", "note") if level in levels]
    ignored = sum(finding["ignored"] for finding in findings)
    parts += [f"{ignored} ignored"] if ignored else []
    counts = ", ".join(parts) or "No findings"
    text = (
        f"{counts}. --problem NAME shows rows of one, --row N one row, --html page.html all, --write_rows "
        "rows.jsonl lists the findings of every row."
    )
    console.print(text, markup=False)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:,}"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def as_text(data: Mapping[str, Any], width: int = _PIPED_WIDTH) -> str:
    """Return what `show` prints, without colors."""
    file = io.StringIO()
    show(data, Console(file=file, width=width, highlight=False, force_terminal=False))
    return file.getvalue()


def as_html(data: Mapping[str, Any]) -> str:
    """Return what `show` prints as preformatted HTML, for notebooks."""
    return f'<pre style="line-height:1.3">{html.escape(as_text(data))}</pre>'
