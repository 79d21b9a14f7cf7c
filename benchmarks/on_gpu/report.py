"""The results of all stages as Markdown, whatever is in their cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .plan import STAGES

_NAMED = ("torch", "cuda", "cudnn", "triton", "transformers", "trl", "accelerate", "datasets", "bitsandbytes", "peft")


def write_markdown(everything: dict[str, Any], file: Path) -> None:
    """Write the page; `everything` is what `book.results` reads."""
    temporary = file.with_suffix(".part")
    temporary.write_text("\n".join(_page(everything)) + "\n")
    temporary.replace(file)


def tally(everything: dict[str, Any]) -> dict[str, list[str]]:
    """Names of all cells ("stage: cell") by their status."""
    found: dict[str, list[str]] = {}
    for stage, content in everything.items():
        for name, cell in content["cells"].items():
            found.setdefault(cell["status"], []).append(f"{stage}: {name}")
        if "ended" in content["header"]:
            found.setdefault("failed", []).append(f"{stage}: {content['header']['ended']}")
    return found


def _page(everything: dict[str, Any]) -> Iterator[str]:
    first = next(iter(everything.values()))["header"]
    versions = ", ".join(f"{name} {first[name]}" for name in _NAMED if first.get(name))
    driver = f", driver {first['driver_version']}" if "driver_version" in first else ""
    yield f"# Results of benchmarks/gpu.py: {first['card']}"
    yield f"\n{first.get('date')}, commit {first.get('commit') or 'unknown'}{driver}."
    yield f"Python {first.get('python')}, {versions}."
    found = tally(everything)
    counts = ", ".join(f"{len(names)} {status}" for status, names in sorted(found.items()))
    yield f"\nCells: {counts}." + (" In a dry run no figure is measured." if "dry" in first["card"] else "")
    for status, title in (("failed", "Failed"), ("not run", "Not run")):
        if status in found:
            yield f"\n## {title}\n"
            yield from (f"- {name}" for name in found[status])
    for stage in sorted(everything, key=list(STAGES).index):
        yield from _section(stage, everything[stage])


def _section(stage: str, content: dict[str, Any]) -> Iterator[str]:
    yield f"\n## `{stage}`: {STAGES[stage].asks}\n"
    header = content["header"]
    yield f"{header.get('date')}; {header.get('ended') or (header.get('stage_seconds') or 'not at its end')}"
    for name, cell in content["cells"].items():
        yield f"\n**{name}**: {cell['status']}\n"
        rest = {key: value for key, value in cell.items() if key not in ("status", "checks", "seconds")}
        for claim, holds in cell.get("checks", {}).items():
            yield f"- {'passed' if holds else 'FAILED'}: {claim}"
        yield from (f"- {key}: {_text(value)}" for key, value in rest.items() if not isinstance(value, dict))
        for key, value in rest.items():
            if isinstance(value, dict):
                yield from _table(key, value)


def _table(title: str, rows: dict[str, Any]) -> Iterator[str]:
    """A dictionary of dictionaries has their keys as columns, any other one column."""
    columns = list(dict.fromkeys(key for row in rows.values() if isinstance(row, dict) for key in row))
    yield f"\n| {title} | {' | '.join(columns or ['value'])} |"
    yield "|---" * (len(columns or ["value"]) + 1) + "|"
    for name, row in rows.items():
        cells = [row.get(column, "") if isinstance(row, dict) else "" for column in columns]
        if not isinstance(row, dict):
            cells = [row, *cells[1:]]
        yield f"| {name} | {' | '.join(map(_text, cells))} |"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(one)}" for key, one in value.items())
    return str(value).replace("|", "\\|").replace("\n", " ")
