"""Tables of the declared loss variants: for the terminal, as JSON, and for the README."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

from ..core.columns import COLUMNS_OF_SCORES
from ..core.lists import Order
from ..core.pairs import NEEDS
from ..core.registry import get_loss, list_losses
from ..core.variant import LossVariant
from ..core.verification import GRADES, REPRODUCES_CODE, Verification

_MARKS: dict[Verification, str] = {"paper": " ¹", "third_party": " ²", "unverified": " ³"}


def record(variant: LossVariant) -> dict[str, Any]:
    """Return the declaration of a variant as plain data."""
    return {
        "name": variant.name,
        "aliases": list(variant.aliases),
        "summary": variant.summary,
        "paper": variant.paper,
        "reads": variant.reads,
        "order": variant.order,
        "needs": _need_labels(variant),
        "columns": {name: meaning.help for name, meaning in variant.columns.items()},
        "hyperparameters": {p.name: _hyper_record(p) for p in variant.hyperparameters},
        "f_divergence": variant.f_divergence,
        "shift_invariant": variant.shift_invariant,
        "independent_pairs": variant.independent_pairs,
        "order_preserving": variant.order_preserving,
        "verification": variant.verification,
        "from_trl": variant.from_trl,
    }


def _hyper_record(parameter: Any) -> dict[str, Any]:
    shared = {"shared": True} if parameter.shared else {"shared": False, "default": parameter.default}
    shared |= {"required": True} if parameter.hyper.required else {}
    return {**shared, "help": parameter.hyper.help, "bounds": list(parameter.choices) or parameter.hyper.bounds}


def as_json() -> str:
    """Return every variant as JSON."""
    return json.dumps([record(variant) for variant in list_losses()], indent=2)


def as_text() -> str:
    """Return every variant as a table with aligned columns, losses of lists and experimental ones apart."""
    head = ("name", "verification", "paper", "needs", "hyperparameters (defaults)")
    tables = [
        [(v.name, v.verification, _paper_id(v), _needs(v), _hypers(v)) for v in variants] for variants in _in_parts()
    ]
    widths = [max(len(row[column]) for row in (head, *itertools.chain(*tables))) for column in range(4)]
    pairs, lists, experimental = (
        ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]
        for rows in ([head, *tables[0]], tables[1], tables[2])
    )
    return "\n".join([*pairs, "", f"{_LISTS}:", *lists, "", f"{_EXPERIMENTAL}:", *experimental])


def as_markdown() -> str:
    """Return every variant as Markdown tables, losses of lists and experimental ones apart."""
    pairs, lists, experimental = ("\n".join(map(_markdown_row, variants)) for variants in _in_parts())
    head = "| `loss_type` | what it does | paper | needs | hyperparameters (defaults) |\n|---|---|---|---|---|"
    return f"{head}\n{pairs}\n\n{_LISTS}:\n\n{head}\n{lists}\n\n{_EXPERIMENTAL}:\n\n{head}\n{experimental}"


def _markdown_row(v: LossVariant) -> str:
    name = f"`{v.name}`{_MARKS.get(v.verification, '')}"
    return f"| {name} | {_escape(v.summary)} | {_link(v)} | {_needs(v)} | {_hypers(v)} |"


_LISTS = "Losses of lists, which compare all answers to a prompt (a pair is a list of two answers)"
_EXPERIMENTAL = "Experimental, because neither the paper nor the authors' code was seen"
ORDERS: dict[Order, str] = {
    "best": "lists with the best answer",
    "ranks": "lists with ranks",
    "scores": "lists with scores",
}


def _in_parts() -> tuple[list[LossVariant], list[LossVariant], list[LossVariant]]:
    """The variants that read pairs, those that read lists, and the experimental ones of both."""
    known = [v for v in list_losses() if not v.experimental]
    experimental = [v for v in list_losses() if v.experimental]
    return [v for v in known if v.reads == "pairs"], [v for v in known if v.reads == "lists"], experimental


def counts_as_markdown(table: str = "#loss-variants") -> str:
    """Return how many variants were verified how, in two sentences.

    Args:
        table: where the table of all variants is.
    """
    counts = Counter(variant.verification for variant in list_losses())
    executed = sum(counts[grade] for grade in REPRODUCES_CODE)
    weaker = [f"{counts[grade]} {words} ({_MARKS[grade].strip()})" for grade, words in _WEAKER.items() if counts[grade]]
    return (
        f"Of {counts.total()} preference losses, **{executed} reproduce published code**: their values equal those of "
        f"the authors' code ({counts['authors']}) or of a framework's ({counts['framework']}), executed.\n"
        f"The [table]({table}) marks the others: {', '.join(weaker)}."
    )


_WEAKER: dict[Verification, str] = {
    "paper": "checked by reading the paper or its code",
    "third_party": "from third-party sources",
    "unverified": "unverified",
}


def describe(name: str) -> str:
    """Return one variant in full: its docstring, then its declaration.

    Raises:
        ValueError: no variant has that name.
    """
    v = get_loss(name)
    facts = {
        "paper": _url(v) or "none",
        "also called": ", ".join(v.aliases),
        "needs": _needs(v),
        "columns" if v.reads == "pairs" else "columns of pairs": "; ".join(
            f"{column}: {meaning.help}" for column, meaning in v.columns.items()
        ),
        "pairs": "" if v.independent_pairs else _DEPENDENT_PAIRS,
        "weights": "" if v.order_preserving else "cannot be weighted by pair: the loss sorts its batch",
        "verification": f"{v.verification} ({GRADES[v.verification]})",
    }
    hypers = [f"  {p.name}: {p.summary}{' [shared with other losses]' if p.shared else ''}" for p in v.hyperparameters]
    lines = [f"{v.name}: {v.doc}", ""] + [f"{key}: {value}" for key, value in facts.items() if value]
    return "\n".join([*lines, "hyperparameters:" if hypers else "hyperparameters: none", *hypers])


_DEPENDENT_PAIRS = "a pair's value depends on the other pairs of the batch; gradient accumulation does not enlarge it"


def _need_labels(variant: LossVariant) -> list[str]:
    return [info.label for need, info in NEEDS.items() if need in variant.needs]


def _needs(variant: LossVariant) -> str:
    lists = [ORDERS[variant.order]] if variant.order else []
    columns = [f"column {name}" for name in variant.columns if not (lists and name in COLUMNS_OF_SCORES)]
    return ", ".join([*lists, *_need_labels(variant), *columns]) or "nothing"


def _hypers(variant: LossVariant) -> str:
    shown = [p.name if p.required else f"{p.name} ({p.default})" for p in variant.hyperparameters]
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
