"""CONTRIBUTING's commands run, its tables are those of the code, and the paths that it names exist."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import get_args

import pytest

from tests.architecture import rooms
from tests.support.golden_run import written_vectors
from trl_dpo_ext import preflight
from trl_dpo_ext.core.verification import Verification
from trl_dpo_ext.reference import producer, source

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
CODE = [*re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))]
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]


def table_below(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, without its head."""
    rows = [
        line for line in TEXT.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines() if line.strip().startswith("|")
    ]
    return [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows[2:]]


def named_after(*words: str) -> set[str]:
    """What stands behind these words in commands and in code: the `test` of `make test`."""
    start = re.escape(" ".join(words))
    return {match for text in [*CODE, *COMMANDS] for match in re.findall(rf"{start} ([\w.\-/]+)", text)}


def targets() -> dict[str, str]:
    """Targets of the Makefile with their help."""
    return dict(re.findall(r"^([a-z-]+):.*## (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_commands_and_code_are_found() -> None:
    assert "make test" in COMMANDS
    assert named_after("make") >= {"test", "check", "docs", "test-distributed"}
    assert named_after("python", "-m") == {"pytest", "tests.golden.cases", "trl_dpo_ext"}


def test_the_table_of_rooms_is_the_one_that_is_held() -> None:
    assert rooms.table() in TEXT, f"CONTRIBUTING shows another table than tests/architecture/rooms.py:\n{rooms.table()}"


def test_every_target_of_make_exists_and_every_target_that_tests_is_named() -> None:
    assert named_after("make") <= set(targets())
    assert {name for name in targets() if name.startswith(("test", "check"))} <= named_after("make")


def test_the_modules_that_are_run_exist() -> None:
    for module in named_after("python", "-m"):
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.slow
def test_the_oracle_writes_the_vectors_that_are_in_the_repository(tmp_path_factory) -> None:
    assert written_vectors(tmp_path_factory) == (ROOT / "tests" / "golden" / "vectors.json").read_bytes()


def test_the_oracle_imports_neither_torch_nor_the_package() -> None:
    for path in (ROOT / "tests" / "golden").glob("*.py"):
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )
        }  # fmt: skip
        assert not names & {"torch", "trl_dpo_ext", "numpy"}, path


def test_the_files_and_folders_that_are_named_exist() -> None:
    listed = {cell for row in table_below("Where things are") for cell in re.findall(r"`([^`]+)`", row[0])}
    paths = {text for text in CODE if re.fullmatch(r"[\w.\-]+/[\w./\-*]*", text)} - listed
    assert {"tests/golden/", "tests/support/tolerances.py", "tests/architecture/rooms.py"} <= paths
    for path in paths:
        found = [*ROOT.glob(path.rstrip("/")), *(ROOT / "trl_dpo_ext").glob(path.rstrip("/"))]
        assert found, f"CONTRIBUTING names {path}, which does not exist"


def test_the_classes_of_references_that_are_named_exist() -> None:
    section = TEXT.split("## Add a kind of reference\n")[1].split("\n## ")[0]
    names = {name for name in re.findall(r"`(\w+)`", section) if name[0].isupper()}
    assert {"ReferenceSource", "Producer"} <= names
    assert all(hasattr(source, name) or hasattr(producer, name) or hasattr(preflight, name) for name in names)


def test_every_folder_of_tests_is_described() -> None:
    described = {name for row in table_below("Where tests go") for name in re.findall(r"`tests/(\w+)/`", row[0])}
    assert described == {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}


def test_the_tests_that_are_run_by_ci_are_named() -> None:
    lines = re.findall(r"^make (.+)", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    run = [word for line in lines for word in line.split() if re.fullmatch(r"[a-z][a-z-]+", word)]
    sentence = TEXT.partition("\n`.ci/run` runs")[2].partition(";")[0]
    assert re.findall(r"`make ([\w-]+)`", sentence) == run


def test_the_grades_are_those_that_a_loss_declares() -> None:
    assert [row[0].strip("`") for row in table_below("Add a loss")] == list(get_args(Verification))
