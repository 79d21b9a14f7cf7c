"""The JSON object of `score`: every statistic of scored pairs. Terminal and page are rendered from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, collecting
from ..result_heading import result_heading
from ..statistics import finite
from . import blocks
from .calibration import calibration
from .column_values import check_numeric, is_numeric, labels, missing_column, numeric_column
from .measures import Floats, Measures, Normalize, ReferenceFree, measure
from .pair_scores import PairScores

_SUBSET_COLUMN = "subset"
_SCORE_COLUMNS = ("score_chosen", "score_rejected")
_CERTAIN = 1.0
"""Mean margin, as an absolute value, from which on an accuracy below one half is doubtful."""


@dataclass(frozen=True)
class SummaryOptions:
    """What a summary is made of.

    Attributes:
        normalize: `mean` divides each log-ratio by the scored tokens of its side.
        reference_free: rewards without a reference.
        subset_column: groups the rows; None for none.
        score_columns: of the chosen and the rejected side; None for none.
    """

    normalize: Normalize = "sum"
    reference_free: ReferenceFree | None = None
    subset_column: str | None = None
    score_columns: tuple[str, str] | None = None

    def completed(self, dataset: Any) -> SummaryOptions:
        """Fill in `subset`, and `score_chosen` and `score_rejected`, where a dataset has them and nothing is given."""
        names = dataset.column_names
        subset = self.subset_column or (_SUBSET_COLUMN if _SUBSET_COLUMN in names else None)
        usable = all(name in names and is_numeric(dataset, name) for name in _SCORE_COLUMNS)
        scores = self.score_columns or (_SCORE_COLUMNS if usable else None)
        return replace(self, subset_column=subset, score_columns=scores)

    def problems(self, dataset: Any) -> list[str]:
        """Return what is wrong with the columns, before a model is loaded."""
        problems = list[str]()
        if self.subset_column and self.subset_column not in dataset.column_names:
            problems.append(missing_column(dataset, self.subset_column, "subset_column"))
        for name in self.score_columns or ():
            with collecting(problems):
                check_numeric(dataset, name, "score_columns")
        return problems


def summarize(
    scores: PairScores,
    options: SummaryOptions | None = None,
    arguments: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the JSON object of a scored split.

    Args:
        scores: of all loaded rows.
        options: completed with the dataset's columns.
        arguments: what was scored; `policy` and `reference` as sentences, `dataset`, `split`, `max_length`.
        notes: sentences about the policy and the reference, shown with those of the statistics.

    Raises:
        InputError: a column does not exist or holds no numbers.
    """
    options = (options or SummaryOptions()).completed(scores.columns)
    problems = options.problems(scores.columns)
    if problems:
        raise InputError(*problems)
    measures, mask = measure(scores, options.normalize, options.reference_free), scores.scored
    statistics = {
        "rows": blocks.row_counts(scores),
        **_pairs(scores, measures, mask),
        "scores": _score_gaps(scores, measures.margin, options),
        "subsets": _subsets(scores, measures, options),
    }
    data = {
        **heading(options, scores.beta, arguments),
        **statistics,
        "notes": [*notes, *_notes(statistics)],
    }
    return finite(data)


def heading(options: SummaryOptions, beta: float, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the JSON object of scores begins with: kind, versions, date, arguments."""
    return {
        **result_heading("score", "trl", "transformers", "datasets", "torch"),
        "arguments": {
            "beta": beta,
            "normalize": options.normalize,
            "reference_free": options.reference_free,
            "subset_column": options.subset_column,
            "score_columns": list(options.score_columns) if options.score_columns else None,
            **(arguments or {}),
        },
    }


def _pairs(scores: PairScores, measures: Measures, mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """The blocks of some rows."""
    margins = measures.margin[mask]
    chosen, rejected = scores.chosen.tokens[mask], scores.rejected.tokens[mask]
    return {
        "accuracy": blocks.accuracy(margins),
        "margin": {
            **blocks.distribution(margins),
            "least": blocks.least(margins, scores.rows[mask]),
            "histogram": blocks.histogram(margins, chosen.astype(np.int64) - rejected),
        },
        "reward": {
            "chosen": blocks.distribution(measures.reward_chosen[mask]),
            "rejected": blocks.distribution(measures.reward_rejected[mask]),
        },
        "margin_per_token": blocks.distribution(measures.margin_per_token[mask]),
        "logps_per_token": {
            "chosen": blocks.per_token(scores.chosen, mask),
            "rejected": blocks.per_token(scores.rejected, mask),
        },
        "calibration": calibration(margins, scores.beta),
        "without_reference": blocks.without_reference(scores, mask),
        "length": blocks.length(margins, chosen, rejected),
    }


def score_differences(scores: PairScores, options: SummaryOptions) -> Floats | None:
    """Return the differences of the score columns, (rows,), NaN for null; None without such columns."""
    if options.score_columns is None:
        return None
    pair = [numeric_column(scores.columns, name, "score_columns") for name in options.score_columns]
    return pair[0] - pair[1]


def subset_labels(scores: PairScores, options: SummaryOptions) -> list[str | None] | None:
    """Return the subset of each row; None without such a column."""
    return None if options.subset_column is None else labels(scores.columns, options.subset_column)


def _score_gaps(scores: PairScores, margins: Floats, options: SummaryOptions) -> dict[str, Any] | None:
    differences, mask = score_differences(scores, options), scores.scored
    if differences is None or options.score_columns is None:
        return None
    return blocks.score_gaps(margins[mask], differences[mask], options.score_columns)


def _subsets(scores: PairScores, measures: Measures, options: SummaryOptions) -> dict[str, Any] | None:
    """The accuracy of each value of a column, in the order of the values' texts, rows without a value last."""
    names = subset_labels(scores, options)
    if names is None:
        return None
    rows: dict[str | None, list[int]] = {}
    for at in np.flatnonzero(scores.scored).tolist():
        rows.setdefault(names[at], []).append(at)
    values = [_subset(value, scores, measures, np.array(rows[value])) for value in sorted(rows, key=_none_last)]
    return {"column": options.subset_column, "values": values}


def _none_last(name: str | None) -> tuple[bool, str]:
    return name is None, name or ""


def _subset(value: str | None, scores: PairScores, measures: Measures, places: npt.NDArray[np.int64]) -> dict[str, Any]:
    margins = measures.margin[places]
    lengths = blocks.length(margins, scores.chosen.tokens[places], scores.rejected.tokens[places])
    kept = ("longer", "shorter", "equal", "longer_wins", "shorter_wins", "accuracy_length_balanced")
    return {
        "value": value,
        "accuracy": blocks.accuracy(margins),
        "margin": blocks.distribution(margins),
        "without_reference": blocks.without_reference(scores, places),
        "length": {name: lengths[name] for name in kept},
    }


def _notes(statistics: Mapping[str, Any]) -> list[str]:
    rate, mean = statistics["accuracy"]["accuracy"], statistics["margin"]["mean"]
    notes = []
    if statistics["rows"]["nonfinite"]:
        first = ", ".join(map(str, statistics["rows"]["nonfinite_rows"][:5]))
        notes.append(
            f"The log-probs of {statistics['rows']['nonfinite']} rows are not finite (rows "
            f"{first}). Look for NaN in the weights, or load them in float32."
        )
    if rate is not None and rate < 0.5 and abs(mean) > _CERTAIN:
        notes.append(
            f"The accuracy is below one half with a mean margin of {mean:+.2f}: is the reference the model that the "
            "run started from?"
        )
    return notes
