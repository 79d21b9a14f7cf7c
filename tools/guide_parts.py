"""Tables of the guides that are written from the code: keys of other tools, findings, alarms, seams, targets."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trl_dpo_ext.cli.arguments import option_names
from trl_dpo_ext.data import findings
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.legacy_keys import LEGACY_KEYS
from trl_dpo_ext.migration.draft import Draft, Tool, translate
from trl_dpo_ext.migration.tools import TOOLS
from trl_dpo_ext.watch.alarm_table import ALARMS

ROOT = Path(__file__).parent.parent
PUBLISHED = ROOT / "tests" / "unit" / "migration" / "configurations.json"
"""What the recipes and examples of other tools set."""
_PROBES = (True, 0.3, 4, 8, "x", False, ["x"])
"""Values to try for a key that no published configuration has."""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def findings_as_markdown() -> str:
    """What may be wrong with preference data."""
    return table(("finding", "what it means"), ((f"`{name}`", text) for name, text in findings.NAMES.items()))


def alarms_as_markdown() -> str:
    """When each alarm fires by default."""
    rows = (
        (f"`{name}`", alarm.meaning.format(f"{alarm.threshold:g}"), "no" if not alarm.stops else "yes")
        for name, alarm in ALARMS.items()
    )
    return table(("alarm", "fires when", "may end a run"), rows)


def legacy_as_markdown() -> str:
    """Options of older versions, with what became of them."""
    return table(("old option", "what became of it"), ((f"`{key}`", _code(text)) for key, text in LEGACY_KEYS.items()))


def keys_as_markdown(name: str) -> str:
    """The keys of another tool that are called otherwise here, or left out, with the reason."""
    tool = TOOLS[name]
    samples = list(json.loads(PUBLISHED.read_text(encoding="utf-8")).get(name, {}).values())
    rows = []
    old = set(LEGACY_KEYS) - tool.together if name == "handbook" else set()  # which stand in a table of their own
    for key in sorted({*tool.rules, *tool.together} - old):
        ours, reason = _becomes(tool, key, samples)
        if ours - {key}:
            rows.append((f"`{key}`", ", ".join(f"`{each}`" for each in sorted(ours))))
        elif reason and not ours:
            rows.append((f"`{key}`", f"left out: {_code(reason)}"))
    return table((tool.title, "here"), rows)


def _becomes(tool: Tool, key: str, samples: Iterable[Mapping[str, Any]]) -> tuple[set[str], str]:
    """Our keys that follow from a key of a tool, and the reason for which it is left out."""
    ours: set[str] = set()
    reasons: list[str] = []
    for given in _with_key(tool, key, samples):
        one = _translated(tool, given)
        if one is None:
            continue
        for changed in _changed(given, key):
            other = _translated(tool, changed)
            if other is not None:
                ours |= {each for each in one.keys if one.keys[each] != other.keys.get(each, _ABSENT)}
        reason = one.left_out.get(key, "").partition(": see the last lines")[0]
        reasons.append(reason.replace(repr(given[key]), "VALUE").replace(f" {given[key]} ", " VALUE "))
    return ours, next((each for each in reasons if each and "computes it" not in each), "")


_ABSENT = object()
_WORDS = ("sigmoid", "ipo", "simpo", "dpo", "orpo", "lora", "full", "5", "x")
_START = {"llamafactory": {"stage": "dpo"}, "axolotl": {"rl": "dpo"}, "swift": {"rlhf_type": "dpo"}}
_KNOWN = option_names()


def _with_key(tool: Tool, key: str, samples: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Configurations that set a key: two published ones, or small ones with values that it may have."""
    found = [given for given in samples if given.get(key) is not None]
    yield from found[:2]
    if not found or isinstance(found[0][key], (str, int)):
        yield from ({**_START.get(tool.name, {}), key: value} for value in _PROBES)


def _changed(given: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    """The same configuration without a key, and with other values of it."""
    value = given[key]
    yield {name: each for name, each in given.items() if name != key}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield {**given, key: 2 * value + 1}
    elif isinstance(value, str):
        yield from ({**given, key: word} for word in _WORDS if word != value)


def _translated(tool: Tool, given: Mapping[str, Any]) -> Draft | None:
    """A translation; None where the rest of a configuration does not make sense, as without its key for the method."""
    try:
        return translate({"trainer": "dpo", **given} if tool.name in ("handbook", "trl") else given, tool, _KNOWN)
    except (InputError, AttributeError, TypeError, ValueError, KeyError):
        return None


def _code(text: str) -> str:
    """Mark the names of options in a sentence as code."""
    return re.sub(r"(?<![`\w.-])([a-z]+(?:_[a-z0-9]+)+)(?![`\w])", r"`\1`", text)


def rooms_as_markdown() -> str:
    """The rooms of the package, from top to bottom."""
    from tests.architecture import rooms

    return rooms.table()


def seams_as_markdown() -> str:
    """Every sentence of the code that begins with `Seam:`, by module."""
    parts = []
    for path in sorted((ROOT / "trl_dpo_ext").rglob("*.py")):
        rows = [(f"`{name}`", _code(text)) for name, text in _seams(path)]
        if rows:
            module = path.relative_to(ROOT).as_posix()
            parts.append(f"### {module}\n\n{table(('in', 'what it relies on'), rows)}")
    return "\n\n".join(parts)


def _seams(path: Path) -> Iterator[tuple[str, str]]:
    """Names and texts of the seams in a file's docstrings, those behind attributes too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name, text in _documented(node):
            for paragraph in inspect.cleandoc(text).split("\n\n"):
                if paragraph.startswith("Seam:"):
                    yield name, " ".join(paragraph.split()).removeprefix("Seam: ")


def _documented(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The docstring of a module, class or function, and those of the attributes in it."""
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return
    yield getattr(node, "name", "the module"), ast.get_docstring(node) or ""
    for before, after in itertools.pairwise(node.body):
        if isinstance(before, (ast.Assign, ast.AnnAssign)) and isinstance(after, ast.Expr):
            names = before.targets if isinstance(before, ast.Assign) else [before.target]
            if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                yield ast.unparse(names[0]), after.value.value


def targets_as_markdown() -> str:
    """The targets of the Makefile, with their help."""
    found = re.findall(r"^([a-z-]+):.*## (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return table(("target", "what it does"), ((f"`make {name}`", text) for name, text in found))
