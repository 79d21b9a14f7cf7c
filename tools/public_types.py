"""How much of the public interface has types that a checker knows without guessing (`pyright --verifytypes`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PACKAGE = "trl_dpo_ext"
OF_OTHERS = ("Type of metaclass unknown", "Type of base class unknown")
"""What is said of a class that extends one of TRL's, transformers', or PyTorch's, which publish no types."""


def verified() -> list[Mapping[str, Any]]:
    """Return what pyright knows of every symbol of the package."""
    command = [sys.executable, "-m", "pyright", "--verifytypes", PACKAGE, "--ignoreexternal", "--outputjson"]
    # In front of the folder of recipes that an editable installation has under the package's name.
    checkout = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*command, "--pythonpath", sys.executable], capture_output=True, text=True, env=checkout)
    return json.loads(done.stdout)["typeCompleteness"]["symbols"]


def public_names() -> list[str]:
    """Return where each exported object is defined, as pyright calls it."""
    import trl_dpo_ext
    from trl_dpo_ext import losses

    exported = [getattr(trl_dpo_ext, name) for name in trl_dpo_ext.__all__]
    exported += [getattr(losses, name) for name in losses.__all__]
    named = [one for one in exported if hasattr(one, "__qualname__")]
    return sorted({f"{one.__module__}.{one.__qualname__}" for one in named if one.__module__.startswith(PACKAGE)})


def incomplete(symbols: Iterable[Mapping[str, Any]], names: Iterable[str]) -> tuple[list[str], int]:
    """Return what has no complete type of its own, with the reason, and the number of symbols.

    Args:
        symbols: of the package.
        names: of those that count, with their attributes and methods.
    """
    whole = set(names)
    starts = tuple(f"{name}." for name in whole)
    ours = [one for one in symbols if one["name"] in whole or one["name"].startswith(starts)]
    found = []
    for one in ours:
        said = [each["message"].splitlines()[0] for each in one["diagnostics"]]
        own = [text for text in said if not text.startswith(OF_OTHERS) and "partially unknown" not in text]
        if own and not one["isTypeKnown"]:
            found.append(f"{one['name']}: {own[0]}")
    return found, len(ours)


def main() -> int:
    """Print what is incomplete; returns the exit status."""
    found, total = incomplete(verified(), public_names())
    print("\n".join(found))
    print(f"{total - len(found)} of {total} public symbols have complete types.")
    return 1 if found or not total else 0


if __name__ == "__main__":
    sys.exit(main())
