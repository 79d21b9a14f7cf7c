"""The page of `score --rank`: prompts, with their completions in the order of the rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from ... import pages
from ...data.lists.agreement import Agreement, best_first
from ...data.lists.layouts import Completions
from ...inspection.row_view import even_sample
from ...inspection.terminal_rows import visible
from ...pages import Markup, element
from ..column_values import labels
from ..ranking.groups import GroupScores
from ..ranking.words import ranking_facts
from ..rewardbench.words import best_of_facts
from ..terminal import header_facts
from ..words import output_sentence, signed
from .build import card, facts
from .rows import MOST, plain_text

_FOLDER = files(__name__.rpartition(".")[0])


def list_page(data: Mapping[str, Any], scored: GroupScores, read: Completions, most: int = MOST) -> str:
    """Return the page as text.

    Args:
        data: of `RankedCompletions`, with the block `output` where a file was written.
        scored: that it was made of.
        read: texts of the completions, in the order of `scored`.
        most: number of prompts that the page holds, at most; those with the worst agreement, and an even sample.
    """
    rows = pages.fitting(_rows(data, scored, read, most))
    names = ("lists.html", "page.css", "lists.css", "lists.js")
    body, style, own_style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in names)
    list_style, list_script = pages.row_list()
    shown = [element("p", "Without JavaScript, this page shows the first prompts.")]
    shown += [_plain(row) for row in rows[: pages.WITHOUT_SCRIPT]]
    parts = {"statistics": pages.join(_statistics(data), "\n"), "noscript": element("noscript", pages.join(shown))}
    for name, part in parts.items():
        body = body.replace(f"<!--{name}-->", part)
    return pages.document(
        f"score: {data['arguments'].get('policy') or data['arguments'].get('dataset') or 'completions'}",
        Markup(body),
        data={"rows": rows, "total": len(scored.groups)},
        style=list_style + style + own_style,
        script=list_script + script,
    )


def _statistics(data: Mapping[str, Any]) -> list[Markup | None]:
    about = " · ".join([*(f"{name} {value}" for name, value in data["versions"].items()), data["date"]])
    notes = [*data["notes"], *(data.get("output") or {}).get("notes", [])]
    bench, places = data.get("rewardbench_2"), data["ranking"]["place_of_best"]
    cards = [
        card("Agreement", facts(ranking_facts(data["ranking"]))),
        _places(places) if places else None,
        card("RewardBench 2", facts(best_of_facts(bench))) if bench else None,
    ]
    return [
        facts(header_facts(data)),
        element("p", about, class_="about"),
        element("p", output_sentence(data["output"])) if data.get("output") else None,
        *(element("p", element("span", "note", class_="level note"), " ", note) for note in notes),
        element("div", *cards, class_="cards"),
    ]


def _places(counts: Sequence[int]) -> Markup:
    edges = [at + 0.5 for at in range(len(counts) + 1)]
    return pages.histogram(
        edges,
        [pages.Bars("", counts)],
        "Place of the best completion by reward",
        x_label="place by reward of the completion that is best by the data",
        what="prompts",
    )


def _rows(data: Mapping[str, Any], scored: GroupScores, read: Completions, most: int) -> Iterator[dict[str, Any]]:
    """The prompts as the page's data holds them, the worst agreement first."""
    groups, column = scored.groups, data["arguments"]["subset_column"]
    subsets = labels(scored.columns, column) if column is not None else None
    agreements = [Agreement.of(*values) for values in scored]
    keys = [math.inf if each is None or each.pairs.tau_b is None else each.pairs.tau_b for each in agreements]
    order = np.argsort(keys, kind="stable")
    worst = order[: most // 2] if len(order) > most else order
    others = np.setdiff1d(order, worst)
    chosen = {*worst.tolist(), *others[even_sample(len(others), max(most - len(worst), 0))].tolist()}
    slices = list(groups)
    for at in (at for at in order.tolist() if at in chosen):
        where, found = slices[at], agreements[at]
        first = at if groups.in_lists else int(groups.places[where].min())
        rewards = scored.rewards[where][np.isfinite(scored.rewards[where])]
        yield {
            "row": first,
            "subset": subsets[first] if subsets else None,
            "prompt": _shortened(plain_text(read.prompts[at])),
            "label": _label(found),
            "tau": None if found is None else _number(found.pairs.tau_b, 6),
            "place": None if found is None else found.place,
            "spread": _number(float(np.ptp(rewards)), 6) if len(rewards) else None,
            "completions": _completions(scored, read, at, where),
        }


def _label(found: Agreement | None) -> str:
    if found is None:
        return "nothing to compare"
    words = {1.0: "has the highest reward", 0.0: "has a lower reward"}
    return f"the best {words.get(found.credit, 'shares the highest reward')}"


def _completions(scored: GroupScores, read: Completions, at: int, where: slice) -> list[dict[str, Any]]:
    groups, rewards, scores = scored.groups, scored.rewards[where], scored.groups.scores[where]
    by_rank = groups.by_rank is not None and bool(groups.by_rank[at])
    known = scores[np.isfinite(scores)]
    made = []
    for place in best_first(rewards):
        score = scores[place]
        told = f"rank {-score:g}" if by_rank else f"score {score:g}"
        number = place if groups.in_lists else int(groups.places[where][place])
        made.append(
            {
                "text": _shortened(plain_text(read.texts[where][place])),
                "reward": _number(rewards[place], 6),
                "given": told if math.isfinite(score) else None,
                "given_place": 1 + int((known > score).sum()) if math.isfinite(score) else None,
                "best": bool(len(known) and known.min() < known.max() and score == known.max()),
                "tokens": int(scored.completions.tokens[where][place]),
                "where": f"completion {number}" if groups.in_lists else f"row {number}",
            }
        )
    return made


def _shortened(text: str) -> str:
    """A text without its middle where it is long."""
    ends = pages.kept_ends(text)
    if ends is None:
        return text
    return f"{text[: ends[0]]} [... {ends[1] - ends[0]} characters are not in this page ...] {text[ends[1] :]}"


def _plain(row: Mapping[str, Any]) -> Markup:
    """A prompt without JavaScript."""
    parts = [
        element("h3", f"row {row['row']}: {row['label']}"),
        element("p", pages.data_text(visible([row["prompt"]]))),
    ]
    items = [
        element("li", f"{signed(each['reward'])} {each['given'] or ''} ", pages.data_text(visible([each["text"]])))
        for each in row["completions"]
    ]
    return pages.join([*parts, element("ol", *items)], "\n")


def _number(value: float | None, digits: int) -> float | None:
    return round(float(value), digits) if value is not None and math.isfinite(value) else None
