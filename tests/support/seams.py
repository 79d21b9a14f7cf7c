"""The message of a contract test: which private part of a library has changed, and where this package leans on it."""

from __future__ import annotations


def moved(library: str, fact: str, mend: str) -> str:
    """What a failing contract test prints.

    Args:
        library: whose private part it is.
        fact: what was true of it when this package was written.
        mend: the module or function of this package that relies on it.
    """
    return f"{library} no longer holds to: {fact}. Mend trl_dpo_ext/{mend}."
