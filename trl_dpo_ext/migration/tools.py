"""The tools whose configurations can be translated, and how to tell them apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from .axolotl import AXOLOTL
from .dataset_info import DatasetInfo
from .draft import Draft, Tool, translate
from .handbook import HANDBOOK, TRL, is_orpo
from .llamafactory import LLAMAFACTORY
from .open_instruct import OPEN_INSTRUCT
from .swift import SWIFT

TOOLS = {tool.name: tool for tool in (HANDBOOK, LLAMAFACTORY, AXOLOTL, SWIFT, OPEN_INSTRUCT, TRL)}
"""By the name that `--from` takes."""


def tool_of(given: Mapping[str, Any], name: str | None = None) -> Tool:
    """Return whose configuration this is.

    Args:
        given: its keys and values.
        name: of the tool, if it is known.

    Raises:
        InputError: no tool of this name can be translated, or no key tells which one it is.
    """
    if name is not None:
        if name not in TOOLS:
            raise InputError(f"--from {name} is not known; one of {', '.join(TOOLS)}.")
        return TOOLS[name]
    marks = {tool.name: len(tool.marks & set(given)) for tool in TOOLS.values()}
    # Other tools share many keys with TRL, so its own count only where nothing else does.
    best = max(marks, key=lambda each: (marks[each] > 0, each != TRL.name, marks[each]))
    if not marks[best]:
        raise InputError(
            "No key tells which tool this configuration is for. Say it with --from, one of "
            f"{', '.join(TOOLS)}; keys: {', '.join(sorted(given)[:12])}."
        )
    return TOOLS[best]


def migrated(
    given: Mapping[str, Any],
    known: Collection[str],
    name: str | None = None,
    location: str = "",
    dataset_info: Path | None = None,
) -> tuple[Tool, Draft]:
    """Translate a configuration of any of these tools.

    Args:
        given: its keys and values.
        known: the keys that a configuration here may have.
        name: of the tool, if it is known.
        location: where it lies: alignment-handbook's recipes for ORPO differ from those for DPO in their folder alone.
            LLaMA-Factory's table of datasets is looked for from there on.
        dataset_info: the file of that table, if it is known.

    Raises:
        InputError: it is no such configuration, or trains something else than preference pairs.
    """
    tool = tool_of(given, name)
    if tool is HANDBOOK or tool is TRL:
        trainer = given.get("trainer", "orpo" if is_orpo(location) else "dpo")
        given = {**given, "trainer": trainer}
    return tool, translate(given, tool, known, _datasets(given, tool, location, dataset_info))


def _datasets(given: Mapping[str, Any], tool: Tool, location: str, file: Path | None) -> DatasetInfo | None:
    if tool is not LLAMAFACTORY:
        if file is not None:
            raise InputError(
                f"--dataset_info is for configurations of {LLAMAFACTORY.title}; this one is for "
                f"{tool.title}. Remove it."
            )
        return None
    if file is not None:
        return DatasetInfo.read(file)
    return DatasetInfo.find(Path(location), given.get("dataset_dir")) if location else None
