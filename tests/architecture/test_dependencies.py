"""Every distribution that the package imports is declared in pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import trl_dpo_ext

PACKAGE = Path(trl_dpo_ext.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {"yaml": "pyyaml"}  # modules that are named otherwise


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement)[0].lower() for requirement in requirements}


def imported() -> dict[str, str]:
    """Every top-level module that is not ours and not Python's, with a file that imports it."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else []
            found |= {name.split(".")[0]: path.name for name in names}
    return {name: file for name, file in found.items() if name not in {*sys.stdlib_module_names, PACKAGE.name}}


def test_every_import_is_a_declared_dependency() -> None:
    modules = {DISTRIBUTIONS.get(name, name): file for name, file in imported().items()}
    optional = declared([r for extra in ("plot", "deepspeed") for r in PROJECT["optional-dependencies"][extra]])
    assert modules.keys() - declared(PROJECT["dependencies"]) - optional == set()


def test_every_dependency_is_imported() -> None:
    modules = {DISTRIBUTIONS.get(name, name) for name in imported()}
    assert declared(PROJECT["dependencies"]) <= modules
