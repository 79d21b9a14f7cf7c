"""The page's charts: margins, calibration, and margins against what could explain them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ... import pages
from ...inspection.row_view import even_sample
from ...pages import Markup
from ..measures import Measures
from ..pair_scores import PairScores
from ..summary import SummaryOptions, score_differences
from ..words import number

_POINTS = 2000


def charts(data: Mapping[str, Any], scores: PairScores, measures: Measures, options: SummaryOptions) -> list[Markup]:
    """Draw the charts of scored pairs; none without any."""
    if not data["accuracy"]["n"]:
        return []
    places = np.flatnonzero(scores.scored)
    lengths = scores.chosen.tokens.astype(np.int64) - scores.rejected.tokens
    drawn = [_margins(data["margin"]["histogram"]), _reliability(data["calibration"])]
    differences = score_differences(scores, options)
    if differences is not None and options.score_columns:
        known = places[np.isfinite(differences[places])]
        label = " − ".join(options.score_columns)
        drawn.append(_scatter(differences, measures.margin, scores.rows, known, "Margin and score difference", label))
    label = "tokens of the chosen answer − tokens of the rejected answer"
    drawn.append(_scatter(lengths, measures.margin, scores.rows, places, "Margin and length difference", label))
    return drawn


def _margins(block: Mapping[str, Any]) -> Markup:
    bars = [pages.Bars("chosen is longer", block["longer"], 0), pages.Bars("chosen is shorter", block["shorter"], 1)]
    bars += [pages.Bars("equally long", block["equal"], 2)] if any(block["equal"]) else []
    marks = [pages.Mark(0.0, "0", 7)] if block["edges"][0] < 0 < block["edges"][-1] else []
    return pages.histogram(block["edges"], bars, "Margins", x_label="margin", marks=marks, what="pairs")


def _reliability(block: Mapping[str, Any]) -> Markup:
    known = [(each["confidence"], each["hit_rate"], each["count"]) for each in block["bins"] if each["count"]]
    note = f"Expected calibration error {block['ece']:.3f}. On the diagonal, confidence and share agree."
    return pages.reliability_chart(known, "Reliability", x_label="confidence: sigmoid(|margin|)", note=note)


def _scatter(x: Any, y: Any, rows: Any, places: Any, title: str, x_label: str) -> Markup:
    shown = places[even_sample(len(places), _POINTS)] if len(places) else places
    labels = [f"row {rows[at]}: margin {y[at]:+.3f}, difference {x[at]:g}" for at in shown]
    note = f"{number(len(shown))} of {number(len(places))} pairs are drawn." if len(shown) < len(places) else ""
    return pages.scatter_chart(
        [float(each) for each in x[shown]],
        [float(each) for each in y[shown]],
        title,
        x_label=x_label,
        unit="margin",
        labels=labels,
        levels=[pages.Level(0.0, "")],
        note=note,
    )
