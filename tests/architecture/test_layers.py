"""Who may import whom, for every module: imports point down the table of `rooms`, and nothing is imported in a circle."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture.imports import (
    MODULES,
    PACKAGE,
    Import,
    circles,
    imports_of,
    imports_when_loaded,
    internal_imports,
)
from tests.architecture.rooms import KNOWN, ROOMS, WITHOUT_ROOM, rank_of

LOSSES = [name for name in MODULES if name.startswith("losses/")]
PURE = [name for name in MODULES if name.startswith(("losses/", "core/"))]
# Public names of TRL: its configuration, trainer, parser and dataset mixtures. Its internals are for _trl alone.
WITH_TRL = {
    "cli/arguments.py", "cli/train.py", "config.py", "data/loading.py", "trainer.py",
    *(name for name in MODULES if name.startswith("_trl/")),
}  # fmt: skip
TOO_GENERAL = {"utils", "util", "helpers", "helper", "misc", "common", "base", "manager"}


def is_room_folder(module: str) -> bool:
    """Whether this is the `__init__` of a folder that holds rooms and is none itself."""
    folder = module.removesuffix("__init__.py")
    return module != "__init__.py" and module.endswith("/__init__.py") and rank_of(module) is None and any(
        room.name.startswith(folder) for room in ROOMS
    )  # fmt: skip


def points_up(one: Import) -> bool:
    above, below = rank_of(one.importer), rank_of(one.imported or "")
    return above is not None and below is not None and below < above


def top(module: str) -> str:
    """The folder or module at the top of the package."""
    return module.split("/")[0]


def arrows(imports: list[Import], name: Callable[[str], str] = str) -> dict[str, set[str]]:
    """Which module, or which `name` of modules, imports which other."""
    found = defaultdict(set)
    for one in imports:
        ends = name(one.importer), name(one.imported or "")
        if ends[0] != ends[1]:
            found[ends[0]].add(ends[1])
    return found


def unknown(imports: list[Import]) -> list[Import]:
    return [one for one in imports if (one.importer, one.imported) not in KNOWN]


def lines(imports: list[Import]) -> str:
    return "\n".join(dict.fromkeys(map(str, imports)))


def lines_of_circles(found: list[list[str]], imports: list[Import], name: Callable[[str], str] = str) -> str:
    steps = [pair for circle in found for pair in zip(circle, [*circle[1:], circle[0]], strict=True)]
    return lines([one for pair in steps for one in imports if (name(one.importer), name(one.imported or "")) == pair])


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_has_one_room(module: str) -> None:
    if is_room_folder(module):
        assert not imports_of(module), f"{module} holds rooms; it cannot import anything itself"
    elif module not in WITHOUT_ROOM:
        rooms = [room.name for room in ROOMS if room.holds(module)]
        assert len(rooms) == 1, f"{module} is in {rooms or 'no room'}: add it to ROOMS in tests/architecture/rooms.py"


def test_every_import_points_down() -> None:
    up = [one for one in unknown(internal_imports()) if points_up(one)]
    assert not up, f"imports that point up the table of rooms:\n{lines(up)}"


def test_no_module_is_imported_in_a_circle() -> None:
    imports = unknown(internal_imports())
    found = circles(arrows(imports))
    assert not found, f"modules import each other:\n{lines_of_circles(found, imports)}"


def test_no_folder_is_imported_in_a_circle() -> None:
    imports = unknown(internal_imports())
    found = circles(arrows(imports, top))
    assert not found, f"folders import each other:\n{lines_of_circles(found, imports, top)}"


def test_no_known_exception_is_mended_already() -> None:
    imports = internal_imports()
    existing = {(one.importer, one.imported): one for one in imports}
    in_circles = [{*circle} for circle in circles(arrows(imports))]
    mended = [
        pair
        for pair in KNOWN
        if pair not in existing or not (points_up(existing[pair]) or any({*pair} <= circle for circle in in_circles))
    ]
    mended += [module for module in WITHOUT_ROOM if module not in MODULES]
    assert not mended, f"mended; remove them from KNOWN in tests/architecture/rooms.py: {mended}"


def test_imports_are_found_wherever_they_stand() -> None:
    found = {(one.importer, one.imported) for one in internal_imports()}
    assert ("__init__.py", "trainer.py") in found  # for type checkers
    assert ("__main__.py", "cli/main.py") in found  # absolute or relative
    assert ("losses/offset.py", "core/pairs.py") in found
    assert any(one.package == "peft" for one in imports_of("reference/identity/weights.py"))  # inside a function


def test_a_circle_is_found_once_and_in_order() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}}) == []


def test_the_rules_speak_of_files_that_exist() -> None:
    assert "losses/__init__.py" in MODULES
    assert len(LOSSES) > 5
    assert "_trl/__init__.py" in MODULES


@pytest.mark.parametrize("module", PURE)
def test_the_lower_layers_need_torch_and_the_standard_library_only(module: str) -> None:
    foreign = {one.package for one in imports_of(module)} - set(sys.stdlib_module_names)
    assert foreign <= {"torch", PACKAGE.name}


@pytest.mark.parametrize("module", LOSSES)
def test_the_losses_import_nothing_but_losses_and_core(module: str) -> None:
    ours = {(one.imported or "").split("/")[0] for one in imports_of(module) if one.package == PACKAGE.name}
    assert ours <= {"core", "losses"}


@pytest.mark.parametrize("module", ["core/hyperparameters.py", "errors.py", "recipe_registry.py"])
def test_what_every_room_may_need_is_light(module: str) -> None:
    heavy = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
    assert not heavy & {one.package for one in imports_when_loaded(module)}


def test_hyperparameters_need_the_standard_library_only() -> None:
    assert {one.package for one in imports_of("core/hyperparameters.py")} <= {*sys.stdlib_module_names, PACKAGE.name}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_trl_is_imported_by_few_files_alone(module: str) -> None:
    if module not in WITH_TRL:
        assert "trl" not in {one.package for one in imports_of(module)}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_the_modules_of_trl_are_imported_by_its_room_alone(module: str) -> None:
    if not module.startswith("_trl/"):
        assert not [one for one in imports_of(module) if one.package == "trl" and one.dotted.count(".") > 1]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_bitsandbytes_waits_until_a_function_needs_it(module: str) -> None:
    assert "bitsandbytes" not in {one.package for one in imports_when_loaded(module)}


def test_importing_the_package_loads_neither_trl_nor_transformers() -> None:
    loaded = imports_when_loaded("__init__.py")
    assert {one.package for one in loaded} <= {PACKAGE.name, *sys.stdlib_module_names}
    rooms = {(one.imported or "").split("/")[0] for one in loaded if one.package == PACKAGE.name}
    assert rooms <= {"losses", "core", "errors.py", "version.py"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_file_is_named_after_what_is_in_it(module: str) -> None:
    assert not set(Path(module).with_suffix("").parts) & TOO_GENERAL


def test_every_file_of_losses_is_imported_by_its_package() -> None:
    imported = {one.imported for one in imports_of("losses/__init__.py")}
    assert imported >= {*LOSSES} - {"losses/__init__.py", "losses/tables.py"}
