"""Every distribution that the package imports is declared in pyproject.toml, with the versions that `make test-compat` runs."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import trl_dpo_ext

PACKAGE = Path(trl_dpo_ext.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
COMPAT = PACKAGE.parent / "tests" / "compat"
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


def pinned(environment: str) -> dict[str, Version]:
    """The versions of an environment of `make test-compat`."""
    lines = (COMPAT / f"{environment}.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower(): Version(version) for name, version in pins}


def test_every_floor_is_the_oldest_version_that_runs() -> None:
    floors = {}
    for requirement in map(Requirement, PROJECT["dependencies"]):
        (floors[requirement.name],) = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    assert floors == {name: version for name, version in pinned("oldest").items() if name in floors}


@pytest.mark.parametrize("environment", ["oldest", "newest"])
def test_the_recorded_run_had_these_versions_and_no_failure(environment: str) -> None:
    result = json.loads((COMPAT / "results.json").read_text())[environment]
    ran = {name: Version(version) for name, version in result["versions"].items() if name in pinned(environment)}
    assert ran == {name: version for name, version in pinned(environment).items() if name in ran}
    assert {"torch", "trl", "transformers", "peft"} <= ran.keys()
    assert result["failed"] == 0
    assert result["passed"] > 4000


@pytest.mark.parametrize("environment", ["oldest", "newest"])
def test_the_versions_that_run_are_allowed(environment: str) -> None:
    versions = pinned(environment)
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert requirement.specifier.contains(versions[requirement.name]), requirement
