"""Write the generated source and the generated parts of Markdown files, or check them (`--check`)."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trl_dpo_ext import hyperparameter_fields, recipe_registry
from trl_dpo_ext.losses import tables
from trl_dpo_ext.option_docs import read_args

ROOT = Path(__file__).parent.parent
WRITTEN_WITH_THE_SITE = ("docs/reference/losses",)
"""Folders of pages that are not committed."""
sys.path.insert(0, str(ROOT))  # for what is generated from the tests


def options_as_markdown(class_name: str) -> str:
    """A table of the options that a parent of `DPOExtConfig`, or the class itself, documents."""
    from trl_dpo_ext.config import DPOExtConfig  # when config_fields.py has been written

    (cls,) = [cls for cls in DPOExtConfig.__mro__ if cls.__name__ == class_name]
    fields: dict[str, Any] = {field.name: field for field in dataclasses.fields(DPOExtConfig)}
    texts = {name: text.replace("|", "\\|") for name, text in read_args(cls).items()}
    if not any(_default(fields[name]) for name in texts):
        return "\n".join(["| option | what it does |", "|---|---|", *(f"| `{n}` | {t} |" for n, t in texts.items())])
    rows = (f"| `{name}` | {_default(fields[name])} | {text} |" for name, text in texts.items())
    return "\n".join(["| option | default | what it does |", "|---|---|---|", *rows])


def _default(field: dataclasses.Field[Any]) -> str:
    """The default of an option as it is written on the command line; nothing for an empty one."""
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    values = value if isinstance(value, list) else [] if value is None else [value]
    return ", ".join(f"`{str(each).lower() if isinstance(each, bool) else each}`" for each in values)


def starts_as_markdown() -> str:
    """The starts that tests/starts tries."""
    from tests.starts import listing

    return listing.as_markdown()


def features_as_markdown() -> str:
    """The features that tests/features trains with."""
    from tests.features import cases

    return cases.as_markdown()


def counts_as_markdown(file: str) -> str:
    """How many losses were verified how, with a link to their table: in the same file, or in the reference."""
    if "<!-- losses: generated" in (ROOT / file).read_text(encoding="utf-8"):
        return tables.counts_as_markdown()
    return tables.counts_as_markdown(os.path.relpath("docs/reference/losses.md", Path(file).parent))


OTHER_TOOLS = ("handbook", "llamafactory", "axolotl", "swift", "open-instruct")


def _of_guides(name: str, *given: str) -> str:
    """A part that tools/guide_parts.py writes, which imports the configuration."""
    return getattr(importlib.import_module("tools.guide_parts"), name)(*given)


def _from(file: str, folder: str) -> str:
    """The prefix of links from a file to what is in a folder of the repository; empty from inside of it."""
    way = os.path.relpath(folder, Path(file).parent)
    return "" if way == "." else f"{Path(way).as_posix()}/"


def schema() -> str:
    """The JSON Schema of a configuration."""
    from trl_dpo_ext.cli.schema import as_json  # reads the configuration, as the parts do

    return as_json()


FILES: dict[str, Callable[[], str]] = {"trl_dpo_ext/config_fields.py": hyperparameter_fields.source}
FROM_CONFIGURATION: dict[str, Callable[[], str]] = {"recipes/trl_dpo_ext.schema.json": schema}
PARTS: dict[str, Callable[[str], str]] = {
    "loss counts": counts_as_markdown,
    "versions": lambda _: importlib.import_module("tools.compat").as_markdown(),
    "losses": lambda _: tables.as_markdown(),
    "data options": lambda _: options_as_markdown("DataOptions"),
    "loss options": lambda _: options_as_markdown("DPOExtConfig"),
    "hyperparameters": lambda _: options_as_markdown(hyperparameter_fields.CLASS_NAME),
    "adapter options": lambda _: options_as_markdown("PolicyOptions"),
    "store options": lambda _: options_as_markdown("StoreOptions"),
    "moving reference options": lambda _: options_as_markdown("MovingReferenceOptions"),
    "reference options": lambda _: options_as_markdown("ReferenceModelOptions"),
    "forward options": lambda _: options_as_markdown("ForwardOptions"),
    "warning options": lambda _: options_as_markdown("PitfallOptions"),
    "watch options": lambda _: options_as_markdown("WatchOptions"),
    "commands": lambda _: importlib.import_module("tools.site.command_line").commands_as_markdown(),
    "recipes": lambda file: recipe_registry.as_markdown(_from(file, "recipes")),
    "accelerate configs": lambda file: recipe_registry.accelerate_as_markdown(_from(file, "recipes")),
    "findings": lambda _: _of_guides("findings_as_markdown"),
    "alarms": lambda _: _of_guides("alarms_as_markdown"),
    "old options": lambda _: _of_guides("legacy_as_markdown"),
    "rooms": lambda _: _of_guides("rooms_as_markdown"),
    "seams": lambda _: _of_guides("seams_as_markdown"),
    "targets": lambda _: _of_guides("targets_as_markdown"),
    **{f"keys of {tool}": lambda _, tool=tool: _of_guides("keys_as_markdown", tool) for tool in OTHER_TOOLS},
    "starts": lambda _: starts_as_markdown(),
    "features": lambda _: features_as_markdown(),
}
"""What may stand in any Markdown file, between its two comments; each is given the file's path from the root."""
MARKDOWN = ("README.md", "recipes/README.md", "docs/**/*.md")
PART = re.compile(r"<!-- ([\w -]+): generated by `make docs` -->\n(.*?)<!-- end of ([\w -]+) -->", re.DOTALL)


def markdown_files() -> list[str]:
    """The Markdown files that may have generated parts, as paths from the root."""
    found = {path.relative_to(ROOT) for pattern in MARKDOWN for path in ROOT.glob(pattern)}
    return sorted(path.as_posix() for path in found if path.parent.as_posix() not in WRITTEN_WITH_THE_SITE)


def generated(file: str, text: str) -> str:
    """`text` with every part between `<!-- NAME: generated ... -->` and `<!-- end of NAME -->` written anew."""

    def write(found: re.Match[str]) -> str:
        name, end = found[1], found[3]
        if name != end or name not in PARTS:
            raise SystemExit(f"{file} has the part {name!r} up to {end!r}; the parts are {', '.join(PARTS)}.")
        start = f"<!-- {name}: generated by `make docs` -->"
        return f"{start}\n\n{PARTS[name](file)}\n\n<!-- end of {name} -->"

    if text.count("generated by `make docs` -->") != len(PART.findall(text)):
        raise SystemExit(f"{file} has a generated part without its end, <!-- end of NAME -->.")
    return PART.sub(write, text)


def main() -> int:
    """Write or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something is out of date")
    check = parser.parse_args().check
    # The parts are read from the configuration, which imports the generated source: they wait until that is right.
    status = _all(((file, write()) for file, write in FILES.items()), check)
    if status:
        return status
    importlib.invalidate_caches()
    status = _all(((file, write()) for file, write in FROM_CONFIGURATION.items()), check)
    texts = ((file, (ROOT / file).read_text(encoding="utf-8")) for file in markdown_files())
    return status | _all(((file, generated(file, text)) for file, text in texts), check)


def _all(wanted: Iterable[tuple[str, str]], check: bool) -> int:
    return max([_one(file, text, check) for file, text in wanted])


def _one(file: str, wanted: str, check: bool) -> int:
    path = ROOT / file
    if not check:
        path.write_text(wanted, encoding="utf-8")
        return 0
    today = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = list(difflib.unified_diff(today.splitlines(), wanted.splitlines(), file, "generated", lineterm=""))
    print("\n".join([*lines, f"{file} is out of date: run `make docs`."] if lines else [f"{file} is up to date."]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
