"""The commands `recipes` and `losses`, which list what is shipped."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import recipe_registry
from ..errors import InputError
from ..losses import tables


def run_recipes(argv: Sequence[str], prog: str) -> int:
    """List the shipped recipes, show one, or copy one."""
    parser = argparse.ArgumentParser(prog, description="List the shipped recipes, show one, or copy one.")
    parser.add_argument("name", nargs="?", help="recipe to show")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--copy", metavar="DIR", help="copy the recipe and its accelerate configuration to this folder")
    form.add_argument("--markdown", action="store_true", help="print the table of recipes/README.md")
    parsed = parser.parse_args(argv)
    if parsed.copy and not parsed.name:
        raise InputError("--copy needs the name of a recipe. Run `trl-dpo-ext recipes` to list them.")
    if parsed.copy:
        files = recipe_registry.copy_recipe(parsed.name, parsed.copy)
        print("\n".join(str(file) for file in files))
        print(recipe_registry.read_recipe(files[0]).header.get("Launch", ""))
    elif parsed.name:
        print(recipe_registry.describe(parsed.name))
    else:
        print(recipe_registry.as_markdown() if parsed.markdown else recipe_registry.as_text())
    return 0


def run_losses(argv: Sequence[str], prog: str) -> int:
    """List the loss variants, or show one."""
    parser = argparse.ArgumentParser(prog, description="List the loss variants, or show one.")
    parser.add_argument("name", nargs="?", help="variant to show in full")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print every declaration as JSON")
    form.add_argument("--markdown", action="store_true", help="print the table of the documentation")
    parsed = parser.parse_args(argv)
    if parsed.name:
        try:
            print(tables.describe(parsed.name))
        except ValueError as error:
            raise InputError(str(error)) from None
    elif parsed.json:
        print(tables.as_json())
    else:
        print(tables.as_markdown() if parsed.markdown else tables.as_text())
    return 0
