"""The store needs numpy and pyarrow: no module of it imports torch, a model, a trainer, or one that needs these."""

from __future__ import annotations

import pytest

from tests.architecture.imports import MODULES, PACKAGE, circles, imports_of

STORE = sorted(name for name in MODULES if name.startswith("reference/store/"))
PURE = {"errors.py", "reference/identity/identity.py", *STORE}
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate"}


def modules_of_ours(module: str) -> set[str]:
    return {one.imported or "" for one in imports_of(module) if one.package == PACKAGE.name}


@pytest.mark.parametrize("module", sorted(PURE))
def test_the_store_is_free_of_torch_and_of_everything_that_needs_it(module: str) -> None:
    assert not HEAVY & {one.package for one in imports_of(module)}
    assert modules_of_ours(module) <= PURE


def test_no_modules_of_the_store_import_each_other_in_a_circle() -> None:
    assert circles({module: modules_of_ours(module) - {module} for module in STORE}) == []
    assert len(STORE) > 7
