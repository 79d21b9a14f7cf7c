"""The losses for the documentation: their table by family, and a page for each with its curves."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import groupby

from trl_dpo_ext import LossVariant, list_losses
from trl_dpo_ext.core.verification import GRADES
from trl_dpo_ext.losses import tables
from trl_dpo_ext.pages.markup import element

from .curves import figures, quantity, sparkline
from .markdown import escaped, prose, sections, table
from .sampling import Study, held_fixed

SCRIPT = (
    '<script type="application/json" id="data">null</script>\n<script src="../../_static/charts.js" defer></script>'
)


def losses() -> list[LossVariant]:
    """The losses of this package, without those of plug-ins."""
    return [variant for variant in list_losses() if variant.function.__module__.startswith("trl_dpo_ext.")]


def families() -> list[tuple[str, str, list[LossVariant]]]:
    """Name, sentence, and losses of each family, which is a module of `trl_dpo_ext/losses`."""
    found = []
    for module, variants in groupby(sorted(losses(), key=lambda v: (v.function.__module__, v.name)), _module):
        sentence = (sys.modules[module].__doc__ or "").split("\n\n")[0]
        name = module.rpartition(".")[2].replace("_", " ").capitalize()
        found.append((name, " ".join(sentence.split()), list(variants)))
    return found


def _module(variant: LossVariant) -> str:
    return variant.function.__module__


def index() -> str:
    """The losses by family, each with a small picture and a link to its page."""
    head = ("loss", "shape", "what it does", "verified", "needs", "paper")
    parts = [
        f"## {name}\n\n{escaped(sentence)}\n\n{table(head, [_row(variant) for variant in variants])}"
        for name, sentence, variants in families()
    ]
    toctree = "\n".join(f"losses/{variant.name}" for variant in losses())
    return "\n\n".join([*parts, f"```{{toctree}}\n:hidden:\n\n{toctree}\n```"])


def _row(variant: LossVariant) -> tuple[str, ...]:
    facts = tables.record(variant)
    of_lists = [tables.ORDERS[variant.order]] if variant.order else []
    columns = [] if of_lists else [f"`{name}`" for name in facts["columns"]]
    needs = ", ".join([*of_lists, *facts["needs"], *columns]) or "nothing"
    link = f"[`{variant.name}`](losses/{variant.name}.md)"
    return (link, sparkline(Study(variant)), escaped(variant.summary), _grade(variant), needs, paper(variant))


def _grade(variant: LossVariant) -> str:
    return variant.verification.replace("_", " ")


def paper(variant: LossVariant) -> str:
    """A link to the publication of a loss."""
    if variant.paper is None:
        return "none"
    if variant.paper.startswith("http"):
        return f"[source]({variant.paper})"
    return f"[{variant.paper}](https://arxiv.org/abs/{variant.paper})"


def page(variant: LossVariant) -> str:
    """The page of a loss."""
    study = Study(variant)
    text = sections(variant.doc)
    summary, _, body = text[""].partition("\n")
    parts = [
        f"# {variant.name}",
        f"{escaped(summary)}",
        _facts(variant),
        prose(body),
        "## Hyperparameters",
        _hyperparameters(variant),
        "## Curves",
        _about_curves(study),
        f"```{{raw}} html\n{figures(study)}\n{_overlay_link(variant)}\n{SCRIPT}\n```",
        "## Example",
        f"```pycon\n{text['Example']}\n```" if "Example" in text else "",
        "## Notes" if "Note" in text else "",
        prose(text.get("Note", "")),
        "## References" if "References" in text else "",
        prose(text.get("References", "")),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _facts(variant: LossVariant) -> str:
    facts = tables.record(variant)
    rows = {
        "Verification": f"{_grade(variant)}: {GRADES[variant.verification]}",
        "Paper": paper(variant),
        "Reads": f"{tables.ORDERS[variant.order]}; a pair is a list of two answers" if variant.order else "",
        "Needs": ", ".join(facts["needs"]) or "nothing but the policy's log-probs",
        "Columns of pairs" if variant.order else "Columns": "; ".join(
            f"`{name}`: {escaped(meaning)}" for name, meaning in facts["columns"].items()
        ),
        "Also called": ", ".join(f"`{name}`" for name in variant.aliases),
        "Batch": "" if variant.independent_pairs else "the value of a pair depends on the other pairs of its batch",
        "Pair weights": "" if variant.order_preserving else "cannot be weighted by pair, because it sorts its batch",
        "f-divergences": "takes `f_divergence_type`" if variant.f_divergence else "",
    }
    return table(("", ""), [(f"**{name}**", value) for name, value in rows.items() if value])


def _hyperparameters(variant: LossVariant) -> str:
    if not variant.hyperparameters:
        return "None."
    defaults = Study(variant).defaults
    rows = [
        (
            f"`{p.name}`",
            "none; required"
            if p.hyper.required
            else f"`{defaults[p.name]}`" + (" (of `DPOConfig`)" if p.shared else ""),
            ", ".join(f"`{choice}`" for choice in p.choices) or ", ".join(map(escaped, p.hyper.bounds)),
            escaped(p.hyper.help),
        )
        for p in variant.hyperparameters
    ]
    return table(("name", "default", "allowed", "meaning"), rows)


def _about_curves(study: Study) -> str:
    if study.is_of_margin:
        shape = f"The loss is a function of the margin of the two {quantity(study)}s, in nats."
    else:
        shape = (
            "The loss is not a function of the margin alone. The first two figures move both sides apart by half the "
            "margin each; "
            f"the others move one side's {quantity(study)}, in nats, while the other side stays."
        )
    fixed = "; ".join(held_fixed(study.variant))
    return shape + (f" Held fixed: {escaped(fixed)}." if fixed else "")


def _overlay_link(variant: LossVariant) -> str:
    words = f"Lay {variant.name} over other losses"
    link = element("a", words, href=f"../overlay.html#losses={','.join(dict.fromkeys(['sigmoid', variant.name]))}")
    return element("p", link)


def pages() -> Iterable[tuple[str, str]]:
    """Name and text of the page of each loss."""
    return ((variant.name, page(variant)) for variant in losses())
