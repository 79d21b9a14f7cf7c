"""Show the result of `score` in a terminal. Everything is read from the result's JSON object."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..inspection.rule import plural
from .blocks import round_widths
from .ranking.words import ranking_facts
from .rewardbench.words import best_of_facts, section_facts
from .words import counts_sentence, decimal, number, output_sentence, rate, rate_with_interval, signed

_LABEL = 19
_SUBSETS = 15
_BINS = 8
KINDS = {"sum": "sum of log-probs", "mean": "mean log-prob", "norm": "norm of log-probs"}
_WIDTH = 120


def show(data: Mapping[str, Any], console: Console) -> None:
    """Print the statistics of scored pairs.

    Args:
        data: of `summarize`, with the blocks `output`, `compare` and `rewardbench` where there are any; or of
            `RankedCompletions`.
        console: where to.
    """
    _facts(header_facts(data), console, 9)
    console.print()
    (_ranking if "ranking" in data else _pairs)(data, console)
    for note in data["notes"]:
        _facts([("note", note)], console)
    if data.get("output"):
        console.print(Text(output_sentence(data["output"])))
        for note in data["output"]["notes"]:
            _facts([("note", note)], console)


def _pairs(data: Mapping[str, Any], console: Console) -> None:
    _facts(facts_about_pairs(data), console)
    if not data["accuracy"]["n"]:
        return
    console.print()
    for part in (_baselines, _scores, _subsets, _sections, _comparison):
        part(data, console)
    console.print()
    _facts([("margin", margin_bins(data["margin"]["histogram"]))], console)


def _ranking(data: Mapping[str, Any], console: Console) -> None:
    _facts(ranking_facts(data["ranking"]), console)
    if data["rewardbench_2"]:
        console.print()
        console.print(Text("RewardBench 2", style="bold"))
        _facts(best_of_facts(data["rewardbench_2"]), console, 24, "  ")


def _sections(data: Mapping[str, Any], console: Console) -> None:
    if data.get("rewardbench"):
        console.print()
        console.print(Text("RewardBench (ties are wrong)", style="bold"))
        _facts(section_facts(data["rewardbench"]), console, 24, "  ")


def show_counts(counts: Mapping[str, int], file: str, console: Console) -> None:
    """Print what a dry run has counted."""
    console.print(Text(f"{file}: {counts_sentence(counts)} Nothing was written."))


def as_text(data: Mapping[str, Any], width: int = _WIDTH) -> str:
    """Return what `show` prints, without colors."""
    file = io.StringIO()
    show(data, Console(file=file, width=width, highlight=False, force_terminal=False))
    return file.getvalue()


def header_facts(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say what was scored: names and sentences."""
    arguments, rows = data["arguments"], data["rows"]
    for name in ("policy", "reference"):
        if arguments.get(name):
            yield name.capitalize(), str(arguments[name])
    if arguments["reference_free"]:
        yield "Reference", f"none; rewards are the {KINDS[arguments['reference_free']]} of the policy"
    source = ", ".join(str(arguments[name]) for name in ("dataset", "split") if arguments.get(name))
    if "ranking" in data:
        counted = f"{plural(rows['loaded'], 'row')}; beta {arguments['beta']:g}"
    else:
        states = [f"{number(rows[name])} {name}" for name in ("dropped", "cut", "identical")]
        states += [f"{number(rows['nonfinite'])} not finite"] if rows["nonfinite"] else []
        counted = f"{plural(rows['scored'], 'pair')} scored, {', '.join(states)}; beta {arguments['beta']:g}"
    if arguments["normalize"] == "mean":
        counted += ", log-ratios per token"
    if arguments.get("protocol") == "rewardbench":
        counted += "; tokenized as RewardBench does"
    yield "Data", f"{source}: {counted}" if source else counted


def facts_about_pairs(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say how often the policy agrees, by how much, and how well that is calibrated: names and sentences."""
    accuracy, margin, reward = data["accuracy"], data["margin"], data["reward"]
    if not accuracy["n"]:
        yield "accuracy", "no pair was scored"
        return
    wrong = accuracy["n"] - accuracy["right"] - accuracy["ties"]
    agreed = f"{number(accuracy['right'])} of {number(accuracy['n'])}, {plural(accuracy['ties'], 'tie')}"
    agreed += f"; disagrees with {number(wrong)}" if wrong else ""
    strict = f"; ties as wrong {rate(accuracy['strict'])}" if accuracy["ties"] else ""
    yield "accuracy", f"{rate_with_interval(accuracy)}  {agreed}{strict}"
    places = "   ".join(f"{share} % {signed(margin[key], 2)}" for share, key in ((5, "p5"), (50, "p50"), (95, "p95")))
    spread = f" +- {decimal(margin['std'])}" if margin["std"] is not None else ""
    least = f"least {signed(margin['least']['value'])} (row {margin['least']['row']})"
    yield "margin", f"{signed(margin['mean'])}{spread}   {places}   {least}"
    yield "reward", "   ".join(f"{side} {signed(reward[side]['mean'])}" for side in ("chosen", "rejected"))
    yield "log-prob per token", _per_token(data["logps_per_token"])
    yield "calibration", calibration_sentence(data)


def _per_token(sides: Mapping[str, Any]) -> str:
    if sides["chosen"]["reference"] is None:
        return "   ".join(f"{side} {signed(values['policy'])}" for side, values in sides.items())
    parts = [f"{side} {signed(values['reference'])} -> {signed(values['policy'])}" for side, values in sides.items()]
    return f"{'   '.join(parts)}   (reference -> policy)"


def calibration_sentence(data: Mapping[str, Any]) -> str:
    """Say how well margins are calibrated, and which beta would be best."""
    block, share = data["calibration"], data["accuracy"]["accuracy"]
    text = f"ECE {decimal(block['ece'])}, NLL {decimal(block['nll'], 4)}"
    if block["best_beta"] is not None:
        return f"{text}; best beta {block['best_beta']:.3g}"
    why = "accuracy 1" if share == 1 else "accuracy at most one half" if share <= 0.5 else "no finite one is best"
    return f"{text}; {why}: no best beta"


def _baselines(data: Mapping[str, Any], console: Console) -> None:
    free, length = data["without_reference"], data["length"]
    grid = Table.grid(padding=(0, 3, 0, 0))
    grid.add_column(width=24, no_wrap=True)
    grid.add_column(justify="right", no_wrap=True, min_width=8)
    grid.add_column(justify="right", no_wrap=True, min_width=9)
    grid.add_column(overflow="fold")
    grid.add_row(Text("without the reference", style="bold"), "policy", "reference", "")
    for kind, words in KINDS.items():
        values = [free[whose][kind] for whose in ("policy", "reference")]
        if any(values):
            grid.add_row(f"  {words}", *(rate(value["accuracy"]) if value else "-" for value in values), "")
    console.print(grid)
    console.print(Text("length alone", style="bold"))
    _facts(length_facts(length), console, 24, "  ")


def length_facts(length: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say what length alone would have right, and what the accuracy is apart from it."""
    better = "longer" if length["longer_wins"] >= 0.5 else "shorter"
    of = {"accuracy": length[f"{better}_wins"], "interval": length[f"{better}_wins_interval"]}
    counts = f"chosen longer {number(length['longer'])}, shorter {number(length['shorter'])}"
    yield f"the {better} wins", f"{rate_with_interval(of)}  {counts}, equal {number(length['equal'])}"
    if length["accuracy_length_balanced"] is None:
        yield "at equal length", f"{_one_sided(length)}: accuracy cannot be told from length"
    else:
        balanced, adjusted = rate(length["accuracy_length_balanced"]), rate(length["accuracy_length_adjusted"])
        yield (
            "at equal length",
            f"{balanced} balanced, {adjusted} adjusted (not AlpacaEval's length-controlled win rate)",
        )
    if length["pearson"] is not None:
        yield "margin and difference", f"r = {signed(length['pearson'], 2)}"


def _one_sided(length: Mapping[str, Any]) -> str:
    for kind in ("longer", "shorter", "equal"):
        if length[kind] == length["n"]:
            words = {"equal": "both answers are equally long"}.get(kind, f"the chosen answer is the {kind}")
            return f"{words} in every pair"
    fewest = min(("longer", "shorter"), key=lambda kind: length[kind])
    return f"the chosen answer is the {fewest} in {plural(length[fewest], 'pair')} only"


def _scores(data: Mapping[str, Any], console: Console) -> None:
    block = data["scores"]
    if block is None:
        return
    console.print()
    correlation = f"Pearson {decimal(block['pearson'], 2)}, Spearman {decimal(block['spearman'], 2)}"
    facts = [("margin and scores", f"{' - '.join(block['columns'])}: {correlation} ({plural(block['n'], 'pair')})")]
    deciles = "  ".join(f"{signed(each['mean_margin'], 2)}" for each in block["deciles"])
    if block["deciles"]:
        ends = f"{block['deciles'][0]['low']:g} to {block['deciles'][-1]['high']:g}"
        facts.append(("  by decile", f"{deciles}   (mean margin; score difference from {ends})"))
    _facts(facts, console)


def _subsets(data: Mapping[str, Any], console: Console) -> None:
    block = data["subsets"]
    if block is None or not block["values"]:
        return
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(Text(block["column"]), overflow="fold")
    for title in ("pairs", "accuracy", "margin", "longer wins", "reference, mean log-prob"):
        table.add_column(title, justify="right", overflow="fold")
    values = block["values"]
    for each in values if len(values) <= _SUBSETS + 1 else values[:_SUBSETS]:
        free = each["without_reference"]["reference"]["mean"]
        table.add_row(
            Text("null" if each["value"] is None else each["value"]),
            number(each["accuracy"]["n"]),
            rate_with_interval(each["accuracy"]),
            signed(each["margin"]["mean"]),
            rate(each["length"]["longer_wins"]),
            rate(free["accuracy"]) if free else "-",
        )
    console.print(table)
    if len(values) > _SUBSETS + 1:
        console.print(f"... {len(values) - _SUBSETS} more; --json has all", style="dim")


def _comparison(data: Mapping[str, Any], console: Console) -> None:
    block = data.get("compare")
    if not block or not block["n"]:
        return
    console.print()
    low, high = (f"{100 * edge:+.1f}" for edge in block["interval"])
    alone = f"right alone: first {number(block['first_only'])}, second {number(block['second_only'])}"
    difference = f"{100 * block['difference']:+.1f} points ({low} to {high}; paired bootstrap)"
    facts = [(f"second {name}", str(block[name])) for name in ("policy", "reference") if block.get(name)]
    facts.append(("second accuracy", f"{rate_with_interval(block['second'])}; difference {difference}; {alone}"))
    margin = block["margin"]
    low, high = (signed(edge) for edge in margin["interval"])
    facts.append(
        ("second margin", f"{signed(margin['second'])}; difference {signed(margin['difference'])} ({low} to {high})")
    )
    _facts(facts, console)


def margin_bins(histogram: Mapping[str, Any], most: int = _BINS) -> str:
    """Count margins in few bins, each without its upper edge; those without margins are left out.

    >>> margin_bins({"edges": [0.0, 0.5, 1.0, 1.5, 2.0], "counts": [1, 2, 0, 3]}, 2)
    '[0,1) 3  [1,2) 3'
    """
    edges, counts = histogram["edges"], histogram["counts"]
    if not counts:
        return ""
    fine = edges[1] - edges[0]
    first, merged, width = round(edges[0] / fine), dict[int, int](), fine
    for width in round_widths(fine):
        step = round(width / fine)
        if step < 1 or abs(step * fine - width) > 1e-9 * width:
            continue
        merged = {}
        for at, count in enumerate(counts):
            merged[(first + at) // step] = merged.get((first + at) // step, 0) + count
        if len(merged) <= max(most, 2):
            break
    parts = [f"[{at * width:.6g},{(at + 1) * width:.6g}) {number(count)}" for at, count in merged.items() if count]
    return "  ".join(parts)


def _facts(facts: Iterable[tuple[str, str]], console: Console, width: int = _LABEL, indent: str = "") -> None:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=width, no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in facts:
        grid.add_row(Text(indent + label, style="" if indent else "bold"), Text(text))
    console.print(grid)
