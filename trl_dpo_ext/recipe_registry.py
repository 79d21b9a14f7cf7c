"""Find, list and copy the shipped recipes, in a checkout or in the installed package.

A recipe is a YAML file of flags. Its leading comment states its source and what to expect, under fixed headings.
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
from .text_table import format_table

HEADINGS = ("Source", "Hardware", "Launch", "Memory", "Batch", "First step", "Data", "Saves", "Differs")
REQUIRED = ("Source", "Hardware", "Launch", "Memory", "Batch", "First step", "Differs")
ACCELERATE = "accelerate"
"""Folder of the accelerate configurations, next to the folders of the models."""
SCHEMA = "trl_dpo_ext.schema.json"
"""File that tells editors what a configuration may hold, next to the folders of the models."""

_HEADING = re.compile(rf"# ({'|'.join(HEADINGS)})\s+(.*)")


@dataclass(frozen=True)
class Recipe:
    """A recipe and its parsed header."""

    name: str
    """Folder and file name, such as `zephyr-7b/dpo_full`."""
    path: Path
    title: str
    header: Mapping[str, str]

    @cached_property
    def accelerate(self) -> str:
        """Name of the accelerate configuration in its launch command; empty if there is none."""
        found = re.search(rf"recipes/{ACCELERATE}/(\w+)\.yaml", self.header.get("Launch", ""))
        return found[1] if found else ""

    @property
    def processes(self) -> int | None:
        """Number of processes in its launch command; None means that of the accelerate configuration."""
        found = re.search(r"--num_processes (\d+)", self.header.get("Launch", ""))
        return int(found[1]) if found else None

    @property
    def pairs_per_step(self) -> int | None:
        """Pairs, or lists, per optimizer step, according to its header."""
        found = re.match(r"(\d+) (?:pairs|lists)", self.header.get("Batch", ""))
        return int(found[1]) if found else None


def recipes_folder() -> Path:
    """Return the folder of the recipes: in the installed package, or next to it in a checkout.

    Raises:
        InputError: the package was installed without recipes.
    """
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / ACCELERATE).is_dir():
            return folder
    raise InputError(f"No recipes found in {package / 'recipes'}. Reinstall trl-dpo-ext.")


def list_recipes() -> list[Recipe]:
    """Return every shipped recipe, sorted by name."""
    folder = recipes_folder()
    files = (file for file in sorted(folder.glob("*/*.yaml")) if file.parent.name != ACCELERATE)
    return [read_recipe(file) for file in files]


def read_recipe(file: Path) -> Recipe:
    """Read a recipe; its header is empty if the file has no leading comment."""
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
    """Return the shipped recipe of that name.

    Raises:
        InputError: no recipe has that name; suggests the closest one.
    """
    known = {recipe.name: recipe for recipe in list_recipes()}
    if _stem(name) in known:
        return known[_stem(name)]
    near = nearest_recipe(name)
    hint = f" Did you mean {near}?" if near else ""
    raise InputError(f"No recipe is named {name!r}.{hint} Run `trl-dpo-ext recipes` to list recipes.")


def nearest_recipe(name: str) -> str | None:
    """Return the recipe whose name, or a part of it, is nearest to a mistyped name or path; None if none is near."""
    names = [recipe.name for recipe in list_recipes()]
    stem = _stem(name.removesuffix(".yml"))
    parts = {name.replace("/", "-"): name for name in names} | {
        part: name for name in names for part in name.split("/")
    }
    whole = difflib.get_close_matches(stem, names, n=1)
    return whole[0] if whole else next((parts[near] for near in difflib.get_close_matches(stem, parts, n=1)), None)


def find_config(given: str) -> Path:
    """Resolve the value of `--config`: a path, or the name of a shipped recipe, also in the form of its path."""
    path = Path(given)
    if path.is_file() or _stem(given).count("/") != 1:
        return path
    if path.suffix and _stem(given) not in [recipe.name for recipe in list_recipes()]:
        return path
    return get_recipe(given).path


def _stem(name: str) -> str:
    return name.removesuffix(".yaml").removeprefix("recipes/")


def accelerate_configs() -> dict[str, Path]:
    """Return the shipped accelerate configurations by name."""
    return {file.stem: file for file in sorted((recipes_folder() / ACCELERATE).glob("*.yaml"))}


def find_accelerate(given: str) -> Path:
    """Resolve the value of `--accelerate_config`: a path, or the name of a shipped configuration."""
    return accelerate_configs().get(given, Path(given))


def as_text() -> str:
    """Format all recipes as a table with aligned columns."""
    rows = [("recipe", "accelerate", "memory", "what")]
    rows += [(r.name, r.accelerate, _first(r.header.get("Memory", "")), r.title) for r in list_recipes()]
    return format_table(rows)


def as_markdown(prefix: str = "") -> str:
    """Format all recipes as a Markdown table.

    Args:
        prefix: of links to files in the folder of recipes.
    """
    lines = ["| recipe | what | hardware | config | memory | first loss | source |", "|---|---|---|---|---|---|---|"]
    for r in list_recipes():
        hardware, memory, first, source = (_first(r.header.get(key, "")) for key in _SHOWN)
        config = f"[{r.accelerate}]({prefix}{ACCELERATE}/{r.accelerate}.yaml)"
        first = first.removeprefix("loss = ")
        lines.append(
            f"| [{r.name}]({prefix}{r.name}.yaml) | {r.title} | {hardware} | {config} | {memory} | {first} | {source} |"
        )
    return "\n".join(lines)


def accelerate_as_markdown(prefix: str = "") -> str:
    """Format the first two paragraphs of every accelerate configuration's comment as a Markdown table.

    Args:
        prefix: of links to files in the folder of recipes.
    """
    lines = ["| config | what it does | use it | not with |", "|---|---|---|---|"]
    for name, file in accelerate_configs().items():
        text = "\n".join(line.removeprefix("#").strip() for line in _leading_comment(file))
        title, use = (paragraph.replace("\n", " ") for paragraph in text.split("\n\n")[:2])
        when, _, never = use.removeprefix("Use it ").partition(" Not with: ")
        lines.append(f"| [{name}]({prefix}{ACCELERATE}/{name}.yaml) | {title} | {when} | {never} |")
    return "\n".join(lines)


_SHOWN = ("Hardware", "Memory", "First step", "Source")


def _first(text: str) -> str:
    """Return the text before the first bracket, comma, semicolon or end of a sentence."""
    return re.split(r"[;,]|\. | \(", text.replace("\n", " "))[0].strip().rstrip(".")


def describe(name: str) -> str:
    """Format one recipe: its header, then its keys."""
    recipe = get_recipe(name)
    keys = "\n".join(
        line
        for line in recipe.path.read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    )
    header = "\n".join(f"{key:12}" + textwrap.indent(text, " " * 12).strip() for key, text in recipe.header.items())
    return f"{recipe.name}: {recipe.title}\n\n{header}\n\n{keys}"


def copy_recipe(name: str, folder: str | Path) -> list[Path]:
    """Copy a recipe and the files that its launch command needs, rewriting the paths in them.

    Raises:
        InputError: no recipe has that name, a file already exists, or the folder is not writable.
    """
    recipe, folder = get_recipe(name), Path(folder)
    sources = {folder / f"{recipe.name.replace('/', '-')}.yaml": recipe.path}
    sources |= {folder / file.name: file for file in _needed_files(recipe.path)}
    copies = [*sources]
    sources[folder / SCHEMA] = recipes_folder() / SCHEMA  # that of this version, in the place of another's
    texts = {}
    for target, source in sources.items():
        text = source.read_text(encoding="utf-8")
        for new, old in sources.items():
            text = text.replace(f"recipes/{old.parent.name}/{old.name}", str(new))
        texts[target] = text.replace(f"$schema=../{SCHEMA}", f"$schema={SCHEMA}")
    # A launcher's file that another recipe brought, unchanged, is no obstacle.
    existing = [t for t in copies if t.exists() and (t == copies[0] or t.read_text(encoding="utf-8") != texts[t])]
    if existing:
        raise InputError(*[f"{file} already exists; choose another folder, or move the file." for file in existing])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, text in texts.items():
            target.write_text(text, encoding="utf-8")
            target.chmod(sources[target].stat().st_mode)
    except OSError as error:
        raise InputError(f"Cannot copy {name} to {folder}: {error.strerror}. Choose another folder.") from None
    return list(sources)


def _needed_files(file: Path) -> list[Path]:
    """Return the accelerate configurations and scripts that a file names, directly or through one another."""
    found: list[Path] = []
    reading = [file]
    while reading:
        names = re.findall(rf"recipes/{ACCELERATE}/(\w+\.\w+)", reading.pop().read_text(encoding="utf-8"))
        new = {recipes_folder() / ACCELERATE / name for name in names} - set(found)
        found += sorted(new)
        reading += sorted(new)
    return found
