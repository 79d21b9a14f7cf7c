"""The shipped recipes: found in a checkout or in the installed package, listed, copied.

A recipe is a YAML file of flags whose leading comment says, under fixed words, where it comes from and what to expect.
"""

from __future__ import annotations

import difflib
import itertools
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .errors import InputError

HEADINGS = ("Source", "Hardware", "Launch", "Memory", "Batch", "First step", "Data", "Saves", "Differs")
REQUIRED = ("Source", "Hardware", "Launch", "Memory", "Batch", "First step", "Differs")
ACCELERATE = "accelerate"
"""Folder of the accelerate configurations, beside those of the models."""

_HEADING = re.compile(rf"# ({'|'.join(HEADINGS)})\s+(.*)")


@dataclass(frozen=True)
class Recipe:
    """One recipe and what its header says."""

    name: str
    """Model and recipe, `zephyr-7b/dpo_full`."""
    path: Path
    title: str
    header: Mapping[str, str]

    @cached_property
    def accelerate(self) -> str:
        """Name of the accelerate configuration that its launch line names."""
        found = re.search(rf"recipes/{ACCELERATE}/(\w+)\.yaml", self.header.get("Launch", ""))
        return found[1] if found else ""

    @property
    def processes(self) -> int | None:
        """How many processes its launch line asks for, where that is not what the accelerate configuration has."""
        found = re.search(r"--num_processes (\d+)", self.header.get("Launch", ""))
        return int(found[1]) if found else None

    @property
    def batch(self) -> int | None:
        """Pairs per optimizer step, as its header has it."""
        found = re.match(r"(\d+) pairs", self.header.get("Batch", ""))
        return int(found[1]) if found else None


def recipes_folder() -> Path:
    """Where the recipes are: within the installed package, or beside it in a checkout.

    Raises:
        InputError: the package was installed without them.
    """
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / ACCELERATE).is_dir():
            return folder
    raise InputError(f"There are no recipes in {package / 'recipes'}; is the installation complete?")


def list_recipes() -> list[Recipe]:
    """Every shipped recipe, by name."""
    folder = recipes_folder()
    files = (file for file in sorted(folder.glob("*/*.yaml")) if file.parent.name != ACCELERATE)
    return [read_recipe(file) for file in files]


def read_recipe(file: Path) -> Recipe:
    """A recipe with its header; one that has none has an empty header."""
    comment = _leading_comment(file)
    title = comment[0].removeprefix("#").strip() if comment else ""
    header: dict[str, str] = {}
    current = None
    for line in comment[1:]:
        found = _HEADING.match(line)
        if found:
            current = found[1]
            header[current] = found[2].strip()
        elif current and line.startswith("#  "):
            header[current] += "\n" + line.removeprefix("#").strip()
        else:
            current = None
    return Recipe(f"{file.parent.name}/{file.stem}", file, title, header)


def _leading_comment(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


def get_recipe(name: str) -> Recipe:
    """The shipped recipe of that name.

    Raises:
        InputError: there is none; names the nearest.
    """
    known = {recipe.name: recipe for recipe in list_recipes()}
    if _stem(name) in known:
        return known[_stem(name)]
    near = difflib.get_close_matches(_stem(name), known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise InputError(f'There is no recipe {name!r}.{hint} "trl-dpo-ext recipes" lists them.')


def find_config(given: str) -> Path:
    """The file that `--config` means: a path, or the name of a shipped recipe, which may look like its path."""
    path = Path(given)
    if path.is_file() or _stem(given).count("/") != 1:
        return path
    if path.suffix and _stem(given) not in [recipe.name for recipe in list_recipes()]:
        return path
    return get_recipe(given).path


def _stem(name: str) -> str:
    return name.removesuffix(".yaml").removeprefix("recipes/")


def accelerate_configs() -> dict[str, Path]:
    """The shipped accelerate configurations by name."""
    return {file.stem: file for file in sorted((recipes_folder() / ACCELERATE).glob("*.yaml"))}


def find_accelerate(given: str) -> Path:
    """The file that `--accelerate_config` means: a path, or the name of a shipped one."""
    return accelerate_configs().get(given, Path(given))


def as_text() -> str:
    """Every recipe in a table with aligned columns."""
    rows = [("recipe", "accelerate", "memory", "what")]
    rows += [(r.name, r.accelerate, _first(r.header.get("Memory", "")), r.title) for r in list_recipes()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)


def as_markdown() -> str:
    """Every recipe in a Markdown table."""
    lines = ["| recipe | what | hardware | config | memory | first loss | source |", "|---|---|---|---|---|---|---|"]
    for r in list_recipes():
        hardware, memory, first, source = (_first(r.header.get(key, "")) for key in _SHOWN)
        config = f"[{r.accelerate}]({ACCELERATE}/{r.accelerate}.yaml)"
        first = first.removeprefix("loss = ")
        lines.append(
            f"| [{r.name}]({r.name}.yaml) | {r.title} | {hardware} | {config} | {memory} | {first} | {source} |"
        )
    return "\n".join(lines)


def accelerate_as_markdown() -> str:
    """Every accelerate configuration in a Markdown table: the first two paragraphs of its comment."""
    lines = ["| config | what it does | use it | not with |", "|---|---|---|---|"]
    for name, file in accelerate_configs().items():
        text = "\n".join(line.removeprefix("#").strip() for line in _leading_comment(file))
        title, use = (paragraph.replace("\n", " ") for paragraph in text.split("\n\n")[:2])
        when, _, never = use.removeprefix("Use it ").partition(" Not with: ")
        lines.append(f"| [{name}]({ACCELERATE}/{name}.yaml) | {title} | {when} | {never} |")
    return "\n".join(lines)


_SHOWN = ("Hardware", "Memory", "First step", "Source")


def _first(text: str) -> str:
    """What stands before a bracket, a comma, a semicolon or the end of a sentence."""
    return re.split(r"[;,]|\. | \(", text.replace("\n", " "))[0].strip().rstrip(".")


def describe(name: str) -> str:
    """One recipe: its header, then its keys."""
    recipe = get_recipe(name)
    keys = "\n".join(
        line
        for line in recipe.path.read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    )
    header = "\n".join(f"{key:12}" + textwrap.indent(text, " " * 12).strip() for key, text in recipe.header.items())
    return f"{recipe.name}: {recipe.title}\n\n{header}\n\n{keys}"


def copy_recipe(name: str, folder: str | Path) -> list[Path]:
    """Copy a recipe and what its launch line names, with all paths rewritten for where they are now.

    Raises:
        InputError: there is no such recipe, a file of that name is there already, or the folder cannot be written to.
    """
    recipe, folder = get_recipe(name), Path(folder)
    sources = {folder / f"{recipe.name.replace('/', '-')}.yaml": recipe.path}
    sources |= {folder / file.name: file for file in _named_in(recipe.path)}
    there = [str(target) for target in sources if target.exists()]
    if there:
        raise InputError(*[f"{file} is there already; give another folder, or move it." for file in there])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, source in sources.items():
            text = source.read_text(encoding="utf-8")
            for new, old in sources.items():
                text = text.replace(f"recipes/{old.parent.name}/{old.name}", str(new))
            target.write_text(text, encoding="utf-8")
            target.chmod(source.stat().st_mode)
    except OSError as error:
        raise InputError(f"{name} cannot be copied to {folder}: {error.strerror}. Give another folder.") from None
    return list(sources)


def _named_in(file: Path) -> list[Path]:
    """The accelerate configurations and scripts that a file names, and those that these name."""
    found: list[Path] = []
    reading = [file]
    while reading:
        names = re.findall(rf"recipes/{ACCELERATE}/(\w+\.\w+)", reading.pop().read_text(encoding="utf-8"))
        new = {recipes_folder() / ACCELERATE / name for name in names} - set(found)
        found += sorted(new)
        reading += sorted(new)
    return found
