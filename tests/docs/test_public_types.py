"""The number that `make check` prints counts every exported name, and what has no type."""

from __future__ import annotations

from typing import Any

from tools.public_types import incomplete, public_names


def symbol(name: str, *said: str) -> dict[str, Any]:
    return {"name": name, "isTypeKnown": not said, "diagnostics": [{"message": f"{text}\n  more"} for text in said]}


def test_every_exported_name_counts() -> None:
    names = public_names()
    assert {
        "trl_dpo_ext.config.DPOExtConfig",
        "trl_dpo_ext.trainer.DPOExtTrainer",
        "trl_dpo_ext.core.pairs.Pairs",
        "trl_dpo_ext.scoring.score.score_preferences",
    } <= set(names)
    assert len(names) > 70  # every loss, and what the package exports


def test_what_has_no_type_is_named_and_what_others_lack_is_not() -> None:
    missing = "Type is missing type annotation and could be inferred differently by type checkers"
    symbols = [
        symbol("p.A"),
        symbol("p.A.attribute", missing),
        symbol("p.A.method", 'Type of parameter "x" is partially unknown'),
        symbol("p.B", "Type of base class unknown", "Type of metaclass unknown"),
        symbol("p.Another.attribute", missing),
        symbol("p.f", "Return type is unknown"),
    ]
    found, total = incomplete(symbols, ["p.A", "p.B", "p.f"])
    assert found == [f"p.A.attribute: {missing}", "p.f: Return type is unknown"]
    assert total == 5
