"""The figures of the documentation are those of the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "internals" / "benchmarks.md").read_text(encoding="utf-8")
RESULTS = {
    file.stem: file.read_text(encoding="utf-8").replace("**", "") for file in (ROOT / "benchmarks/results").glob("*.md")
}
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def section(text: str, heading: str) -> str:
    return text.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]


def rows(text: str) -> dict[str, list[str]]:
    """The cells of a table's rows, by the first one."""
    found = [[cell.strip() for cell in row.strip("| ").split("|")] for row in text.splitlines() if row.startswith("| ")]
    return {cells[0]: cells[1:] for cells in found}


def median(cell: str) -> float:
    return float(NUMBER.findall(cell)[0])


STEPS = {name: cells for name, cells in rows(section(PAGE, "## A training step")).items() if "-like, " in name}


@pytest.mark.parametrize("name", STEPS)
def test_the_steps_are_those_that_were_measured(name: str) -> None:
    lengths, pairs = name.split(", ")
    measured = rows(section(RESULTS["train_step"], f"### {lengths} lengths, {pairs} pairs"))
    ways = [measured[way] for way in ("TRL", "padding_free", "share_prompt")]
    before = min(median(cells[-1]) for way, cells in measured.items() if way.startswith("former"))
    positions, memory, times = ([float(each) for each in NUMBER.findall(cell)] for cell in STEPS[name])
    assert positions == [float(cells[0]) for cells in ways]
    assert memory == [pytest.approx(float(ways[2][4]) / float(ways[0][4]), abs=0.006)]
    assert times == [
        pytest.approx(median(ways[0][-1]), abs=0.051), pytest.approx(median(ways[1][-1])), pytest.approx(before),
    ]  # fmt: skip


def test_there_are_six_steps() -> None:
    assert len(STEPS) == 6


LISTS = {
    record["answers"]: record["ways"]
    for record in map(json.loads, (ROOT / "benchmarks/results/lists.jsonl").read_text(encoding="utf-8").splitlines())
}
SINGLE, LIST, SHARED = "TRL, pair by pair", "lists", "lists, share_prompt"


def numbers(cell: str) -> list[float]:
    return [float(each) for each in NUMBER.findall(cell)]


@pytest.mark.parametrize("answers", [2, 4, 7])
def test_the_costs_of_lists_are_those_that_were_measured(answers: int) -> None:
    ways = LISTS[answers]
    base, single, whole, shared, pl = (ways[w] for w in ("TRL, all pairs", SINGLE, LIST, SHARED, "pl, share_prompt"))
    positions, memory, speed = map(numbers, rows(section(PAGE, "## Lists"))[str(answers)])
    assert positions == [round(one["fed"]) for one in (base, single, whole, shared)]
    assert memory == [pytest.approx(one["peak_mib"] / base["peak_mib"], abs=0.0051) for one in (single, whole, shared)]
    assert speed == [pytest.approx(one["processor"][0], abs=0.0051) for one in (single, whole, shared, pl)]
    guide = section((ROOT / "docs/guides/lists.md").read_text(encoding="utf-8"), "## What it costs")
    pairs, fed, time = rows(guide)[str(answers)]
    assert int(pairs) == answers * (answers - 1) // 2
    assert numbers(fed) == [pytest.approx(one["fed"] / single["fed"], abs=0.0051) for one in (whole, shared)]
    assert numbers(time) == [pytest.approx(one["seconds"] / single["seconds"], abs=0.0051) for one in (whole, shared)]


@pytest.mark.parametrize("answers", [2, 4, 7])
def test_the_page_of_lists_has_the_figures_of_its_records(answers: int) -> None:
    shown = rows(RESULTS["lists"].split(f"## {answers} answers, ", 1)[1].split("\n#", 1)[0])
    for way, one in LISTS[answers].items():
        cells = shown[way]
        assert [cells[0], cells[2], cells[5]] == [f"{one[what]:.0f}" for what in ("fed", "scored", "peak_mib")]
        assert median(cells[8]) == pytest.approx(one["processor"][0], abs=0.0051)


def test_the_speeds_on_a_gpu_are_those_that_were_measured() -> None:
    table = section(PAGE, "## On one H100")
    speeds = re.findall(r"\d\.\d\d \(\d\.\d\d to \d\.\d\d\)", table)
    positions = re.findall(r"\| (\d{3,4}), (\d{3,4}) \|", table)
    assert len(speeds) == len(positions) == 6
    assert [each for each in speeds if each not in RESULTS["gpu"]] == []
    assert all(re.search(rf"\| {number} \|", RESULTS["gpu"]) for pair in positions for number in pair)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("precompute", "3.85"), ("precompute", "7.02"), ("precompute", "4.41"), ("precompute", "3.27"),
        ("precompute", "978"), ("precompute", "3509"), ("precompute", "4.1 times"), ("train_step", "4.8 times"),
        ("train_step", "6.72 times"), ("store_memory", "457 MB"), ("store_memory", "2023 MB"), ("inspection", "0.16 GiB"),
        ("gpu", "1.24"), ("gpu", "1.36"), ("gpu", "1.58"), ("gpu", "4.2"), ("reference_memory", "0.281"),
        ("reference_drift", "+3.67 ± 4.57"), ("compare_losses", "| `simpo` | 1.00 | 4.12 | +0.32 |"),
        ("compare_losses", "| `sigmoid` | 1.00 | 8.06 | -0.34 |"), ("compare_losses", "| `dpop` | 1.00 | 2.53 | +0.22 |"),
        ("list_gain", "| `infonca`, tau 3 | 3 | 0.55 ± 0.16 "), ("list_gain", "| `pl` | 3 | 0.53 ± 0.18 "),
        ("list_gain", "| 8 | -4.7 ± 2.3 | 0.10 ± 0.02 |"), ("list_gain", "| 10 | +0.3 ± 0.2 | 0.22 ± 0.04 "),
        ("compare_losses", "| `orpo` | 1.00 | 1.62 | +0.48 |"), ("compare_losses", "| `dpo_nll` | 1.00 | 4.75 | +0.29 |"),
    ],
)  # fmt: skip
def test_what_pages_quote_is_in_the_results(result: str, text: str) -> None:
    assert text in RESULTS[result]


def test_every_page_that_gives_a_ratio_of_positions_gives_the_same() -> None:
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/results/precompute.md"]
    found = {
        name: {*re.findall(r"\d\.\d to \d\.\d(?= times as many| \|)", file.read_text(encoding="utf-8"))}
        for name, file in ((file.name, file) for file in files)
    }
    assert all("3.4 to 3.9" in found[name] for name in ("README.md", "precompute.md", "benchmarks.md"))
    assert {each for ratios in found.values() for each in ratios} <= {
        "3.4 to 3.9",
        "7.7 to 9.1",
        "2.6 to 5.5",
        "1.2 to 1.7",
    }


def test_every_result_is_linked_from_the_page() -> None:
    assert {*RESULTS} <= {*re.findall(r"benchmarks/results/(\w+)\.md", PAGE)}
