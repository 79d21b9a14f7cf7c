"""The store needs numpy and pyarrow: no module of it imports torch, a model, a trainer, or one that imports it back."""

from __future__ import annotations

import pytest

from tests.architecture.test_layers import MODULES, imports_anywhere, top

STORE = sorted(name for name in MODULES if name.startswith("reference/store/"))
PURE = {"errors.py", "reference/identity/identity.py", *STORE}


def modules_of_ours(name: str) -> set[str]:
    """Files of the package that a file imports, `from package import module` included."""
    found = set()
    for dotted in imports_anywhere(name):
        if top(dotted) == "trl_dpo_ext":
            path = "/".join(dotted.split(".")[1:])
            found |= {f"{path}.py", f"{path}/__init__.py"} & MODULES.keys()
    return found


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_store_is_free_of_torch_and_of_everything_that_needs_it(name: str) -> None:
    assert not {top(dotted) for dotted in imports_anywhere(name)} & {
        "torch",
        "transformers",
        "trl",
        "peft",
        "accelerate",
    }
    assert modules_of_ours(name) <= PURE


def test_no_modules_of_the_store_import_each_other_in_a_circle() -> None:
    left = {name: modules_of_ours(name) & {*STORE} for name in STORE}
    while done := {name for name, needs in left.items() if not needs}:
        left = {name: needs - done for name, needs in left.items() if name not in done}
    assert not left
    assert len(STORE) > 7
