"""The page on which losses are laid over one another: its data, and its markup."""

from __future__ import annotations

from typing import Any

import torch

from trl_dpo_ext.pages.frame import as_json
from trl_dpo_ext.pages.markup import Markup, element

from .losses import families
from .sampling import POINTS, Study

LIMIT = 40.0
"""The margins on the page go from minus to plus LIMIT nats."""
START = ("sigmoid", "hinge", "ipo_sum", "dpop")
"""Losses that are shown at first."""


def data() -> dict[str, Any]:
    """Margins, and value and gradient of each loss at them, at its default hyperparameters."""
    margins = torch.linspace(-LIMIT, LIMIT, POINTS)
    curves = {}
    for _, _, variants in families():
        for variant in variants:
            found = Study(variant).along_margin(margins)
            curves[variant.name] = {"value": _short(found.values), "gradient": _short(found.by_margin)}
    return {"x": _short(margins), "curves": curves, "start": START}


def _short(values: torch.Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


def as_html() -> str:
    """The page's body: a chart, and a box for each loss."""
    what = element(
        "fieldset",
        element("legend", "Show"),
        _radio("what", "value", "value", checked=True),
        _radio("what", "gradient", "gradient"),
        element("label", element("input", type="checkbox", id="scaled"), " same slope at margin 0"),
    )
    boxes = [_family(name, [variant.name for variant in variants]) for name, _, variants in families()]
    body = [
        element("div", what, class_="controls"),
        element("div", id="plot", role="img", tabindex=0, aria_describedby="said"),
        element("p", id="said", role="status"),
        element("div", element("button", "None", type="button", id="none"), class_="controls"),
        element("div", *boxes, class_="families"),
        element("noscript", element("p", "This page needs JavaScript; each loss's page shows its curves without.")),
    ]
    store = element("script", Markup(as_json(data())), type="application/json", id="data")
    scripts = [f'<script src="../_static/{name}" defer></script>' for name in ("charts.js", "overlay.js")]
    return "\n".join(["```{raw} html", str(element("div", *body, id="overlay")), str(store), *scripts, "```"])


def _radio(name: str, value: str, words: str, checked: bool = False) -> Markup:
    return element("label", element("input", type="radio", name=name, value=value, checked=checked), f" {words}")


def _family(name: str, losses: list[str]) -> Markup:
    boxes = [
        element("label", element("input", type="checkbox", value=loss), element("span", class_="key"), f" {loss}")
        for loss in losses
    ]
    return element("fieldset", element("legend", name), *boxes)
