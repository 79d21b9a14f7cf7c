"""Who may import whom, read from the source: the losses stay free of the trainer, and one file alone names the host."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import trl_dpo_ext

PACKAGE = Path(trl_dpo_ext.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
LOSSES = [name for name in MODULES if name.startswith("losses/")]

# What each of the lower layers may import from the package itself.
LOWER = {name: {"core", "losses"} for name in LOSSES}
WITH_TRL = {
    "config.py",
    "trainer.py",
    "cli/arguments.py",
    "cli/train.py",
    "data/loading.py",
    *(name for name in MODULES if name.startswith("_trl/")),
}
TOO_GENERAL = {"utils", "util", "helpers", "helper", "misc", "common", "base", "manager"}


def tree(name):
    return ast.parse(MODULES[name].read_text(), filename=name)


def imported(nodes, name):
    """Dotted names of what the nodes import; relative ones are spelled out with the package's name."""
    folder = ["trl_dpo_ext", *Path(name).parent.parts]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1] if node.level else []
            module = [*start, *(node.module.split(".") if node.module else [])]
            if node.module and module != ["trl_dpo_ext"]:
                yield ".".join(module)
            else:
                yield from (".".join([*module, alias.name]) for alias in node.names)


def imports_anywhere(name):
    return set(imported(ast.walk(tree(name)), name))


def imports_when_loaded(name):
    """Without those inside functions, which wait until they are called, and those for type checkers."""

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from walk(child)

    return set(imported(walk(tree(name)), name))


def top(dotted):
    return dotted.split(".")[0]


def test_the_rules_speak_of_files_that_exist():
    assert "losses/__init__.py" in MODULES
    assert len(LOSSES) > 5
    assert "_trl/__init__.py" in MODULES


@pytest.mark.parametrize("name", sorted(LOWER))
def test_the_lower_layers_need_torch_and_the_standard_library_only(name):
    foreign = {top(dotted) for dotted in imports_anywhere(name)} - set(sys.stdlib_module_names)
    assert foreign <= {"torch", "trl_dpo_ext"}


@pytest.mark.parametrize("name", sorted(LOWER))
def test_the_lower_layers_import_no_layer_above_them(name):
    ours = {dotted for dotted in imports_anywhere(name) if top(dotted) == "trl_dpo_ext"}
    layers = {dotted.split(".")[1] for dotted in ours if dotted.count(".")}
    assert layers <= LOWER[name]


def test_hyper_needs_the_standard_library_only():
    assert {top(dotted) for dotted in imports_anywhere("core/hyperparameters.py")} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_trl_is_imported_by_few_files_alone(name):
    if name not in WITH_TRL:
        assert "trl" not in {top(dotted) for dotted in imports_anywhere(name)}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_bitsandbytes_waits_until_a_function_needs_it(name):
    assert "bitsandbytes" not in {top(dotted) for dotted in imports_when_loaded(name)}


def test_importing_the_package_loads_neither_trl_nor_transformers():
    loaded = imports_when_loaded("__init__.py")
    assert {top(dotted) for dotted in loaded} <= {"trl_dpo_ext", *sys.stdlib_module_names}
    assert {dotted.split(".")[1] for dotted in loaded if top(dotted) == "trl_dpo_ext"} <= {
        "losses",
        "core",
        "errors",
    }


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_file_is_named_after_what_is_in_it(name):
    assert not set(Path(name).with_suffix("").parts) & TOO_GENERAL


def test_every_file_of_losses_is_imported_by_its_package():
    modules = {Path(name).stem for name in LOSSES} - {"__init__", "tables"}
    assert {dotted.split(".")[-1] for dotted in imports_anywhere("losses/__init__.py")} - {"annotations"} >= modules
