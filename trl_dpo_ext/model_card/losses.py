"""The losses of a run as a card shows them: weights, hyperparameters, options that change them, and citations."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from ..config import DPOExtConfig
from ..core.loss_spec import HOST_PREFIX
from ..core.mixture import LossMixture
from ..core.registry import LossVariant, get_loss

_SHARED_DEFAULTS = {field.name: field.default for field in dataclasses.fields(DPOExtConfig)}

# Option -> its value where it changes nothing, the paper that it comes from, and the options to show beside it.
_OPTIONS: dict[str, tuple[Any, str | None, tuple[str, ...]]] = {
    "f_divergence_type": ("reverse_kl", "2309.16240", ()),
    "ld_alpha": (None, "2409.06411", ()),
    "use_weighting": (False, "2406.11827", ("wpo_clamp",)),
    "sync_ref_model": (False, "2404.09656", ("ref_model_mixup_alpha", "ref_model_sync_steps")),
    "weight_column": (None, None, ()),
    "reference_free": (False, None, ()),
}


@dataclasses.dataclass(frozen=True)
class ShownLoss:
    """One loss of a run."""

    label: str
    weight: float
    variant: LossVariant | None
    """None for a loss of TRL's that is not declared here."""
    hyper: dict[str, Any]
    """Its hyperparameters, without those that are unset."""


def shown_losses(mixture: LossMixture, args: Any) -> list[ShownLoss]:
    """Every loss of a mixture, those that TRL computes included."""
    ours = [ShownLoss(t.variant.name, t.weight, t.variant, dict(t.hyper)) for t in mixture.terms]
    for name, weight in zip(mixture.host_names, mixture.host_weights, strict=True):
        variant = _declared(name)
        shared = [p.name for p in variant.hyperparameters if p.shared] if variant else []
        ours.append(ShownLoss(f"{HOST_PREFIX}{name}", weight, variant, {key: getattr(args, key) for key in shared}))
    return ours


def _declared(name: str) -> LossVariant | None:
    try:
        return get_loss(name)
    except ValueError:
        return None


def losses_table(losses: Iterable[ShownLoss]) -> list[str]:
    """One row for each loss, then what each does."""
    losses = list(losses)
    rows = [
        f"| `{loss.label}` | {loss.weight:g} | {_hyperparameters(loss)} | {paper_link(_paper(loss)) or '-'} |"
        for loss in losses
    ]
    summaries = {loss.label: loss.variant.summary for loss in losses if loss.variant and loss.variant.summary}
    return [
        "| loss | weight | hyperparameters | paper |",
        "|---|---|---|---|",
        *rows,
        "",
        *(f"- `{label}`: {summary}" for label, summary in summaries.items()),
    ]


def _hyperparameters(loss: ShownLoss) -> str:
    declared = {p.name: p for p in loss.variant.hyperparameters} if loss.variant else {}
    shown = []
    for name, value in loss.hyper.items():
        default = _SHARED_DEFAULTS.get(name) if declared[name].shared else declared[name].default
        if value is None and default is None:
            continue
        changed = "" if value == default else f" (default {_plain(default)})"
        shown.append(f"`{name}={_plain(value)}`{changed}")
    return ", ".join(shown) or "none"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def active_options(args: Any) -> dict[str, str | None]:
    """Options that change the losses in this run, as `name=value`, each with its paper or None."""
    found = {}
    for name, (unset, paper, beside) in _OPTIONS.items():
        value = getattr(args, name)
        if value == unset:
            continue
        if value == "alpha_divergence":
            beside = ("f_alpha_divergence_coef",)
        shown = [f"{one}={_plain(getattr(args, one))}" for one in (name, *beside)]
        found[", ".join(shown)] = paper
    return found


def paper_link(paper: str | None) -> str:
    """A paper of the registry, an arXiv id or a URL, as a link; empty for None."""
    if not paper:
        return ""
    if paper.startswith("http"):
        return f"[{paper.removeprefix('https://').removeprefix('http://')}]({paper})"
    return f"[arXiv:{paper}](https://arxiv.org/abs/{paper})"


def citations(
    losses: Iterable[ShownLoss], options: dict[str, str | None], trl_paper: str | None, trl_citation: str | None
) -> list[str]:
    """Each paper of what ran, once.

    Args:
        losses: from `shown_losses`.
        options: from `active_options`.
        trl_paper: arXiv id of the paper that TRL's trainer names, whose BibTeX TRL has.
        trl_citation: that BibTeX.
    """
    cited: dict[str, list[str]] = {}
    sources: dict[str, str] = {}
    for loss in losses:
        paper = _paper(loss)
        if paper:
            cited.setdefault(paper, []).append(f"`{loss.label}`")
            sources.setdefault(paper, _source(loss.variant))
    for option, paper in options.items():
        if paper:
            cited.setdefault(paper, []).append(f"`{option.partition('=')[0]}`")
    lines = [
        f"- {', '.join(dict.fromkeys(names))}: {sources.get(paper) or paper_link(paper)}"
        for paper, names in cited.items()
    ]
    if trl_paper in cited and trl_citation:
        lines += ["", "Cite DPO as:", "", "```bibtex", trl_citation.strip(), "```"]
    return lines


def _paper(loss: ShownLoss) -> str | None:
    return loss.variant.paper if loss.variant else None


def _source(variant: LossVariant | None) -> str:
    """What a docstring says under "References:", with links; the paper alone where it says nothing."""
    found = re.search(r"^References:\n((?:[ \t]+.*\n?)+)", variant.doc, re.MULTILINE) if variant else None
    text = " ".join(found[1].split()).rstrip(".") if found else ""
    text = re.sub(r"arXiv (\d{4}\.\d{4,5})", lambda one: paper_link(one[1]), text)
    link = paper_link(variant.paper) if variant else ""
    return text if link in text else f"{text}, {link}".removeprefix(", ")
