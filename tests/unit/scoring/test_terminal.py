"""What `score` prints: the JSON object's numbers, at any width, with or without color."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.support.scored import random_scored, scored
from trl_dpo_ext.inspection.terminal import make_console
from trl_dpo_ext.scoring.compare import compare
from trl_dpo_ext.scoring.measures import measure
from trl_dpo_ext.scoring.summary import SummaryOptions, summarize
from trl_dpo_ext.scoring.terminal import as_text, margin_bins, show, show_counts

ARGUMENTS = {
    "policy": "out (LoRA on base)",
    "reference": "its base with the adapter off",
    "dataset": "pairs",
    "split": "test",
}
OUTPUT = {
    "file": "scored.parquet", "rows": 60, "columns": ["a"] * 13, "replaced": ["b"], "notes": ["'x_chosen' has no partner."],
    "counts": {"rows": 65, "kept": 60, "relabeled": 2, "kept_relabeled": 1},
}  # fmt: skip


def everything(number: int = 200) -> dict[str, Any]:
    columns = {
        "subset": [f"[topic {at % 20}] مرحبا" if at % 20 else None for at in range(number)],
        "score_chosen": [float(at % 7) for at in range(number)],
        "score_rejected": [float(at % 3) for at in range(number)],
    }
    scores = random_scored(number, columns=columns)
    data = summarize(scores, arguments=ARGUMENTS, notes=["Weights of 4 bits."])
    other = measure(random_scored(number, 1)).margin
    data["compare"] = {"policy": "other", **compare(measure(scores).margin, other)}
    return json.loads(json.dumps({**data, "output": OUTPUT}))


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_shortcut_is_shown_beside_the_accuracy() -> None:
    margins = [17.21, *(30 + at / 3 for at in range(64))]  # of rewards alone: no log-prob is positive in fact
    data = summarize(scored(margins, [0.0] * 65, [[9] * 65, [30] * 65]), arguments=ARGUMENTS)
    lines = [line.rstrip() for line in as_text(data).splitlines()]
    assert lines == [
        "Policy     out (LoRA on base)",
        "Reference  its base with the adapter off",
        "Data       pairs, test: 65 pairs scored, 0 dropped, 0 cut, 0 identical; beta 0.1",
        "",
        "accuracy             100.0 % (94.4-100.0)  65 of 65, 0 ties",
        "margin               +4.014 +- 0.680   5 % +3.07   50 % +4.03   95 % +5.00   least +1.721 (row 0)",
        "reward               chosen +4.014   rejected +0.000",
        "log-prob per token   chosen -1.000 -> +3.460   rejected -1.000 -> -1.000   (reference -> policy)",
        "calibration          ECE 0.022, NLL 0.0228; accuracy 1: no best beta",
        "",
        "without the reference        policy   reference",
        "  sum of log-probs          100.0 %     100.0 %",
        "  mean log-prob             100.0 %      50.0 %",
        "  norm of log-probs           1.5 %     100.0 %",
        "length alone",
        "  the shorter wins        100.0 % (94.4-100.0)  chosen longer 0, shorter 65, equal 0",
        "  at equal length         the chosen answer is the shorter in every pair: accuracy cannot be told from length",
        "",
        "margin               [1.5,2) 1  [3,3.5) 15  [3.5,4) 15  [4,4.5) 15  [4.5,5) 15  [5,5.5) 4",
    ]  # fmt: skip


def test_every_block_is_shown() -> None:
    text = words(as_text(everything()))
    for part in (
        "199 pairs scored, 1 dropped, 0 cut, 1 identical",
        "1 tie; disagrees with",
        "balanced",
        "not AlpacaEval's length-controlled win rate",
        "score_chosen - score_rejected: Pearson",
        "[topic 1] مرحبا 10",
        "... 5 more; --json has all",
        "second policy other",
        "paired bootstrap",
        "note Weights of 4 bits.",
        "Wrote scored.parquet: 60 rows, 13 new columns. 1 column of an earlier run replaced. 60 of 65 rows kept, 2 "
        "relabeled, 1 of them kept.",
        "note 'x_chosen' has no partner.",
    ):
        assert part in text


@pytest.mark.parametrize("width", [50, 72, 200])
def test_nothing_is_cut_off_at_any_width(width: int) -> None:
    narrow, wide = as_text(everything(), width), as_text(everything(), 400)
    assert all(len(line) <= width for line in narrow.splitlines())
    assert "…" not in narrow
    assert sorted("".join(narrow.split())) == sorted("".join(wide.split()))


def test_a_pipe_and_no_color_have_plain_text(monkeypatch: Any) -> None:
    for name in ("COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    file = io.StringIO()
    show(everything(), make_console(file))
    assert "\x1b" not in file.getvalue()
    assert words(file.getvalue()) == words(as_text(everything()))
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    show(everything(), Console(file=file, force_terminal=True, width=120))
    assert "\x1b[3" not in file.getvalue()


def test_labels_may_be_wrong_so_that_nothing_is_called_an_error() -> None:
    for data in (everything(), summarize(scored([-30.0] * 20, [0.0] * 20))):
        text = as_text(data).lower()
        assert "error" not in text
        assert "mistake" not in text
        assert "disagrees with" in text


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("free", [None, "mean"])
def test_hardly_any_rows_are_shown(number: int, free: Any) -> None:
    scores = scored([1.0] * number, [0.0] * number, columns={"subset": ["a"] * number})
    text = as_text(summarize(scores, SummaryOptions(reference_free=free)))
    assert ("no pair was scored" in text) == (number == 0)
    assert ("rewards are the mean log-prob of the policy" in text) == (free is not None)


def test_terminal_reads_the_json_object_alone() -> None:
    data = everything()
    changed = copy.deepcopy(data)
    changed["accuracy"]["accuracy"] = 0.123
    assert as_text(data) != as_text(changed)
    assert "12.3 %" in as_text(changed)


def test_bins_are_merged_until_they_are_few() -> None:
    edges = [round(-1 + at / 5, 1) for at in range(31)]
    text = margin_bins({"edges": edges, "counts": [1] * 30})
    assert text == "[-1,0) 5  [0,1) 5  [1,2) 5  [2,3) 5  [3,4) 5  [4,5) 5"


def test_a_dry_run_says_that_nothing_was_written() -> None:
    file = io.StringIO()
    show_counts({"rows": 9, "kept": 4, "relabeled": 0, "kept_relabeled": 0}, "s.parquet", Console(file=file, width=100))
    assert file.getvalue() == "s.parquet: 4 of 9 rows kept. Nothing was written.\n"


def test_two_policies_are_compared_on_the_same_rows() -> None:
    first, second = measure(random_scored(300)).margin, measure(random_scored(300, 5)).margin
    made = compare(first, second)
    assert made["n"] == 299
    assert made["difference"] == pytest.approx(made["second"]["accuracy"] - made["first"]["accuracy"])
    assert made["interval"][0] < made["difference"] < made["interval"][1]
    assert compare(first, second) == made
    back = compare(second, first)
    assert back["difference"] == pytest.approx(-made["difference"])
    assert back["interval"] == pytest.approx([-edge for edge in reversed(made["interval"])], abs=0.01)
    assert compare(first, first)["interval"] == [0.0, 0.0]
    # resamples of rows, drawn one by one
    hit = [(np.sign(each[np.isfinite(each)]) + 1) / 2 for each in (first, second)]
    drawn = np.random.default_rng(1).integers(0, 299, (4000, 299))
    low, high = np.quantile((hit[1] - hit[0])[drawn].mean(1), [0.025, 0.975])
    assert made["interval"] == pytest.approx([low, high], abs=0.01)
    assert compare(first[:0], second[:0])["difference"] is None
