"""The declared loss variants as tables: for the terminal, for programs, and for the README."""

from __future__ import annotations

import json
from typing import Any

from ..core.pairs import Need
from ..core.registry import LossVariant, get_loss, list_losses

EVIDENCE = {
    "authors": "equal to the authors' code",
    "framework": "equal to a framework's code",
    "read": "read in code or paper, not executed",
    "secondary": "from secondary sources, not verified",
    "memory": "unverified",
}
_NEED_WORDS = {
    Need.REFERENCE: "reference",
    Need.LENGTHS: "lengths",
    Need.TOKENS: "tokens",
    Need.TOKEN_REFERENCE: "reference per token",
    Need.BATCH: "batch",
    Need.STATE: "state",
    Need.REF_ENTROPY: "reference entropy",
    Need.TOKEN_KL: "KL per token",
}


def record(variant: LossVariant) -> dict[str, Any]:
    """What is declared of a variant, as plain data."""
    return {
        "name": variant.name,
        "aliases": list(variant.aliases),
        "summary": variant.summary,
        "paper": variant.paper,
        "needs": [word for need, word in _NEED_WORDS.items() if need in variant.needs],
        "columns": {name: meaning.help for name, meaning in variant.columns.items()},
        "hyperparameters": {p.name: _hyper_record(p) for p in variant.hyperparameters},
        "f_divergence": variant.f_divergence,
        "evidence": variant.evidence,
        "from_trl": variant.from_trl,
    }


def _hyper_record(parameter: Any) -> dict[str, Any]:
    shared = {"shared": True} if parameter.shared else {"shared": False, "default": parameter.default}
    return {**shared, "help": parameter.hyper.help, "bounds": list(parameter.choices) or parameter.hyper.bounds}


def as_json() -> str:
    """Every variant as JSON."""
    return json.dumps([record(variant) for variant in list_losses()], indent=2)


def as_text() -> str:
    """Every variant as a table with aligned columns."""
    rows = [("name", "paper", "needs", "hyperparameters (defaults)")]
    rows += [(v.name, _paper_id(v), _needs(v), _hypers(v)) for v in list_losses()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows
    )


def as_markdown() -> str:
    """Every variant as a Markdown table."""
    lines = ["| `loss_type` | what it does | paper | needs | hyperparameters (defaults) |", "|---|---|---|---|---|"]
    for v in list_losses():
        mark = {"secondary": " ²", "memory": " ²"}.get(v.evidence, " ¹" if v.evidence == "read" else "")
        lines.append(f"| `{v.name}`{mark} | {_escape(v.summary)} | {_link(v)} | {_needs(v)} | {_hypers(v)} |")
    return "\n".join(lines)


def describe(name: str) -> str:
    """One variant in full: its docstring, then what is declared.

    Raises:
        ValueError: no variant has that name.
    """
    v = get_loss(name)
    facts = {
        "paper": _url(v) or "none",
        "also called": ", ".join(v.aliases),
        "needs": _needs(v),
        "columns": "; ".join(f"{column}: {meaning.help}" for column, meaning in v.columns.items()),
        "checked": EVIDENCE[v.evidence],
    }
    hypers = [f"  {p.name}: {p.summary}{' [shared with other losses]' if p.shared else ''}" for p in v.hyperparameters]
    lines = [f"{v.name}: {v.doc}", ""] + [f"{key}: {value}" for key, value in facts.items() if value]
    return "\n".join([*lines, "hyperparameters:" if hypers else "hyperparameters: none", *hypers])


def _needs(variant: LossVariant) -> str:
    words = [word for need, word in _NEED_WORDS.items() if need in variant.needs]
    return ", ".join([*words, *(f"column {name}" for name in variant.columns)]) or "nothing"


def _hypers(variant: LossVariant) -> str:
    shown = [p.name if p.shared else f"{p.name} ({p.default})" for p in variant.hyperparameters]
    return ", ".join(shown) or "none"


def _paper_id(variant: LossVariant) -> str:
    return "-" if variant.paper is None else variant.paper.rsplit("/", 1)[-1]


def _url(variant: LossVariant) -> str | None:
    if variant.paper is None or variant.paper.startswith("http"):
        return variant.paper
    return f"https://arxiv.org/abs/{variant.paper}"


def _link(variant: LossVariant) -> str:
    return "" if variant.paper is None else f"[{_paper_id(variant)}]({_url(variant)})"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
