"""Imports of the package, read from its source: those inside functions and those for type checkers too."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import trl_dpo_ext

PACKAGE = Path(trl_dpo_ext.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


@dataclass(frozen=True, order=True)
class Import:
    """One import of one name."""

    importer: str
    """Path of the importing module inside the package."""
    line: int
    dotted: str
    """Absolute name of what is imported: a module, or a name in one."""

    @property
    def package(self) -> str:
        """The outermost package, such as torch."""
        return self.dotted.split(".")[0]

    @property
    def imported(self) -> str | None:
        """Path of the module of ours that is imported; None for other packages' modules."""
        parts = self.dotted.split(".")
        if parts[0] != PACKAGE.name:
            return None
        found = [name for size in range(len(parts)) if (name := _file(parts[1 : len(parts) - size])) is not None]
        return found[0]

    def __str__(self) -> str:
        return f"trl_dpo_ext/{self.importer}:{self.line}: {self.importer} -> {self.imported or self.dotted}"


def _file(parts: list[str]) -> str | None:
    path = "/".join(parts)
    names = [f"{path}.py", f"{path}/__init__.py"] if parts else ["__init__.py"]
    return next((name for name in names if name in MODULES), None)


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(), filename=module)


def imports_of(module: str) -> set[Import]:
    """Everything that a module imports, wherever in it."""
    return set(_imports(module, ast.walk(tree(module))))


def imports_when_loaded(module: str) -> set[Import]:
    """Without those inside functions, which wait until they are called, and those for type checkers."""
    return set(_imports(module, _run_on_load(tree(module))))


def internal_imports() -> list[Import]:
    """All imports of one module of the package by another."""
    found = {one for module in MODULES for one in imports_of(module) if one.package == PACKAGE.name}
    return sorted(one for one in found if one.imported != one.importer)


def _run_on_load(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _run_on_load(child)


def _imports(module: str, nodes: Iterable[ast.AST]) -> Iterator[Import]:
    folder = [PACKAGE.name, *Path(module).parent.parts]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (Import(module, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1] if node.level else []
            source = [*start, *(node.module.split(".") if node.module else [])]
            yield from (Import(module, node.lineno, ".".join([*source, alias.name])) for alias in node.names)


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """The shortest way back to itself of each node that has one, each circle once."""
    found: dict[frozenset[str], list[str]] = {}
    for start in sorted(arrows):
        circle = _shortest(start, start, arrows)
        if circle:
            found.setdefault(frozenset(circle), circle)
    return list(found.values())


def _shortest(start: str, end: str, arrows: Mapping[str, set[str]]) -> list[str] | None:
    """The nodes from `start` to the one before `end`, by at least one arrow."""
    ways, seen = [[start]], set()
    while ways:
        way = ways.pop(0)
        for node in sorted(arrows.get(way[-1], ())):
            if node == end:
                return way
            if node not in seen:
                seen.add(node)
                ways.append([*way, node])
    return None
