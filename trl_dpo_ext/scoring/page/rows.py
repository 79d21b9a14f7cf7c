"""The rows of the page: which ones, and their tokens with log-ratios."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import pages
from ...inspection.row_view import even_sample
from ...inspection.token_kinds import TokenKinds
from ..measures import Measures
from ..pair_scores import PairScores
from ..summary import SummaryOptions, score_differences, subset_labels

MOST = 2000
_SIDES = ("chosen", "rejected")
_WORD = re.compile(r"\s*\S{1,200}|\s+")


@dataclass(frozen=True)
class RowTexts:
    """What a row's models have read.

    Attributes:
        prompt: texts of the prompt's tokens.
        chosen: texts of the chosen side's scored tokens; of several tokens that make up one character, one text.
        rejected: of the rejected side.
        chosen_ratios: for each of these texts, log pi - log ref in nats; empty if they are not known.
        rejected_ratios: of the rejected side.
    """

    prompt: Sequence[str]
    chosen: Sequence[str]
    rejected: Sequence[str]
    chosen_ratios: Sequence[float] = field(default=())
    rejected_ratios: Sequence[float] = field(default=())


def sample(scores: PairScores, measures: Measures, most: int = MOST) -> list[int]:
    """Return the places of the rows for the page: the smallest margins, half of them at most, and an even sample."""
    order = np.argsort(measures.margin, kind="stable")  # NaN comes last
    worst = order[: most // 2] if len(order) > most else order
    worst = worst[np.isfinite(measures.margin[worst])]
    others = np.setdiff1d(np.arange(len(order)), worst)
    return sorted([*worst.tolist(), *others[even_sample(len(others), max(most - len(worst), 0))].tolist()])


def row_texts(
    kinds: TokenKinds,
    prompt: Sequence[int],
    sides: Sequence[Sequence[int]],
    ratios: Sequence[Sequence[float]] = ((), ()),
) -> RowTexts:
    """Make the texts of a row from its token ids.

    Args:
        kinds: of the policy's tokenizer.
        prompt: ids of the prompt, as the models read it.
        sides: ids of the scored tokens of the chosen and the rejected side.
        ratios: log pi - log ref of these tokens, in nats; empty if they are not known.
    """
    before = _merged(kinds.texts(prompt), ())[0]
    made = [_merged(kinds.texts(ids, prompt), values) for ids, values in zip(sides, ratios, strict=True)]
    return RowTexts(before, made[0][0], made[1][0], made[0][1], made[1][1])


def _merged(pieces: Sequence[str | None], values: Sequence[float]) -> tuple[list[str], list[float]]:
    """Texts without the places of tokens that end a character, whose values are added to that of its first token."""
    texts: list[str] = []
    sums: list[float] = []
    for at, piece in enumerate(pieces):
        value = float(values[at]) if len(values) else 0.0
        if piece is None and texts:
            sums[-1] += value
            continue
        texts.append(piece or "")
        sums.append(value)
    return texts, sums if len(values) else []


def page_rows(
    scores: PairScores, measures: Measures, options: SummaryOptions, texts: Mapping[int, RowTexts | None]
) -> list[dict[str, Any]]:
    """Return the rows as the page's data holds them, in the order of their margins, those without one last.

    Args:
        texts: of the rows that the page may hold, by place; None for a row that no model has read.
    """
    differences = score_differences(scores, options)
    subsets = subset_labels(scores, options)
    shown = [name for name in ("prompt", *_SIDES) if name in scores.columns.column_names]
    plain = scores.columns.with_format(None).select_columns(shown)  # images are not decoded
    places = sorted(texts, key=lambda at: (math.isnan(measures.margin[at]), measures.margin[at], at))
    rows = []
    for at in places:
        numbers = {
            "margin": _number(measures.margin[at], 6),
            "rewards": [_number(each[at], 6) for each in (measures.reward_chosen, measures.reward_rejected)],
            "gap": None if differences is None else _number(differences[at], 6),
        }
        row = {
            "row": int(scores.rows[at]),
            "status": str(scores.status[at]),
            "subset": subsets[at] if subsets else None,
            "tokens": [int(scores.chosen.tokens[at]), int(scores.rejected.tokens[at])],
            **numbers,
        }
        rows.append(row | _texts(texts[at] or _raw(plain[at])))
    return rows


def _texts(texts: RowTexts) -> dict[str, Any]:
    """Texts that have lost their middle where they are long, which `omitted` counts."""
    found: dict[str, Any] = {"omitted": {}, "ratios": {}}
    for name in ("prompt", *_SIDES):
        pieces, values = getattr(texts, name), [] if name == "prompt" else getattr(texts, f"{name}_ratios")
        ends = pages.kept_ends(pieces)
        if ends is not None:
            found["omitted"][name] = [ends[0], ends[1] - ends[0]]
            pieces = [*pieces[: ends[0]], *pieces[ends[1] :]]
            values = [*values[: ends[0]], *values[ends[1] :]] if len(values) else []
        found[name] = list(pieces)
        if name != "prompt" and len(values):
            found["ratios"][name] = [_number(value, 3) for value in values]
    return found


def _raw(row: dict[str, Any]) -> RowTexts:
    """The words of a row that no model has read."""
    prompt, chosen, rejected = (_WORD.findall(plain_text(row.get(name))) for name in ("prompt", *_SIDES))
    return RowTexts(prompt, chosen, rejected)


def plain_text(value: Any) -> str:
    """Text of an answer or a prompt in any layout."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, dict):
        content = value.get("content", value.get("value"))
        return f"{value.get('role', value.get('from', ''))}: {plain_text(content)}" if content is not None else ""
    if isinstance(value, list):
        return "\n".join(filter(None, map(plain_text, value)))
    return json.dumps(value, default=str)


def _number(value: Any, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None
