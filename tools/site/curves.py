"""Figures of a loss: value and gradient, drawn from the registered function by the package's own charts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from trl_dpo_ext.pages.axes import Level, tick_text
from trl_dpo_ext.pages.charts import line_chart
from trl_dpo_ext.pages.curves import Curve
from trl_dpo_ext.pages.markup import Markup, element

from .sampling import REF_LOGPS, Sample, Study, sample

_ZERO = (Level(0.0, ""),)
_SPARK = (72, 26)


def figures(study: Study) -> Markup:
    """All figures of a loss, as HTML: along the margin, and, if the loss is not of the margin alone, by side."""
    drawn = along_margin(study)
    if not study.is_of_margin:
        drawn += by_side(study)
    return element("div", *drawn, class_="charts")


def along_margin(study: Study) -> list[Markup]:
    """Value and gradient at the default and two other values of the main hyperparameter."""
    name, values = study.main or ("", (None,))
    samples = {value: study.along_margin(study.margins, **({name: value} if name else {})) for value in values}
    required = {p.name for p in study.variant.hyperparameters if p.hyper.required}
    default = None if name in required else study.defaults.get(name)
    order = sorted(samples, key=lambda value: value != default)  # the default first, in the first color
    labels = {
        value: f"{name} = {value:g}{' (default)' if value == default else ''}" if name else "loss" for value in order
    }

    def curves(pick: Callable[[Sample], torch.Tensor]) -> list[Curve]:
        return [
            Curve(labels[value], study.margins.tolist(), pick(samples[value]).tolist(), color=at)
            for at, value in enumerate(order)
        ]

    axis = f"margin of {quantity(study)}s"
    return [
        line_chart(curves(lambda one: one.values), "Value", x_label=axis, unit="per pair", levels=_ZERO),
        line_chart(curves(lambda one: one.by_margin), "Gradient", x_label=axis, unit="d loss / d margin", levels=_ZERO),
    ]


def by_side(study: Study) -> list[Markup]:
    """Value and gradient against each side's log-ratio, with the other side held at three values; defaults."""
    half = study.reach / 2
    held = (0.0, half, -half)
    moving = torch.linspace(-half, half, len(study.margins))
    charts = []
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        samples = {}
        for at in held:
            fixed = torch.full_like(moving, at)
            points = (moving, fixed) if side == "chosen" else (fixed, moving)
            samples[at] = sample(study.variant, *points, study.defaults)
        offset = 0.0 if study.variant.needs_reference else REF_LOGPS
        shown = (moving + offset).tolist()
        label = f"{quantity(study)} of the {side} side"
        for title, unit, pick in (
            ("Value", "per pair", lambda one: one.values),
            ("Gradient", f"d loss / d {side}", lambda one, side=side: getattr(one, f"by_{side}")),
        ):
            curves = [
                Curve(f"{other} at {tick_text(at + offset)}", shown, pick(samples[at]).tolist(), color=color)
                for color, at in enumerate(held)
            ]
            charts.append(line_chart(curves, title, x_label=label, unit=unit, levels=_ZERO))
    return charts


def quantity(study: Study) -> str:
    """What the axes show: log-ratios, or log-probs for a loss without a reference."""
    return "log-ratio" if study.variant.needs_reference else "log-prob"


def sparkline(study: Study) -> Markup:
    """A small picture of the value along the margin, at the defaults."""
    values = study.along_margin(study.margins).values.tolist()
    return _spark(values, f"{study.variant.name}: value against the margin")


def _spark(values: list[float], label: str) -> Markup:
    width, height = _SPARK
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    places = [
        (2 + (width - 4) * at / (len(values) - 1), height - 2 - (height - 4) * (value - low) / span)
        for at, value in enumerate(values)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in _every(places, 2))
    drawn = element("polyline", points=line)
    middle = element("line", x1=width / 2, x2=width / 2, y1=1, y2=height - 1)
    size = {"width": width, "height": height, "viewBox": f"0 0 {width} {height}"}
    return element("svg", middle, drawn, class_="spark", role="img", aria_label=label, **size)


def _every(places: list[tuple[float, float]], step: int) -> Iterable[tuple[float, float]]:
    return [*places[::step], places[-1]]
