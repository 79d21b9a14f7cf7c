"""What the benchmark of lists counts: measures of known rewards, data of each way, a run in small, and its report."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import list_gain
from on_facts import cells, measure, report, task, training

from demo.lists import SCORES, make_lists
from tests.support import tiny

ROWS = [task.row_of(made) for made in make_lists()[1]]
SHUFFLED = [10.0, 1.0, 7.0, 4.0]
ROW = task.Row(
    "how many legs has a dog", [" four", " let me think", " well four", " five"], SHUFFLED, "four", ("four",)
)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([4.0, 1.0, 3.0, 2.0], {"pairs": 1.0, "top1": 1.0, "short": 1.0, "right": 1.0}),
        ([1.0, 4.0, 2.0, 3.0], {"pairs": 0.0, "top1": 0.0, "short": 0.0, "right": 0.0}),
        ([0.0, 0.0, 0.0, 0.0], {"pairs": 0.5, "top1": 0.25, "short": 0.5, "right": 0.5}),
        ([3.0, 1.0, 2.0, 3.0], {"pairs": 4.5 / 6, "top1": 0.5, "short": 1.0, "right": 0.5}),
    ],
)
def test_rewards_are_judged_by_the_scores_whatever_the_order_of_the_answers(rewards, expected) -> None:
    assert measure.orders([ROW], [rewards]) == pytest.approx(expected)


def test_every_wording_of_the_right_answer_is_right_and_short_and_nothing_else_is() -> None:
    words = tiny.tokenizer()
    made = [words(text)["input_ids"] for text in ("four", "well four", "five", "four four")]
    found = measure.own_answers(words, [ROW] * 4, made)
    assert found == {"own_tokens": 1.5, "own_right": 0.75, "own_right_and_short": 0.25}
    for row in ROWS:
        best = row.completions[row.scores.index(10.0)].strip()
        assert best in row.direct
        assert not {text.strip() for text in row.completions if text.strip() != best} & set(row.direct)


@torch.no_grad()
def test_log_probs_are_those_of_the_completion_with_its_end() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    row = task.Row("say yes", [" yes", " no no no", " it is blue"], [3.0, 2.0, 1.0], "yes", ())
    (found,) = measure.logps(model, tokenizer, [row])
    for completion, value in zip(row.completions, found, strict=True):
        start = len(tokenizer(row.prompt)["input_ids"])
        ids = torch.tensor([[*tokenizer(row.prompt + completion)["input_ids"], tokenizer.eos_token_id]])
        logits = model(input_ids=ids).logits.log_softmax(-1)
        expected = sum(logits[0, at - 1, ids[0, at]].item() for at in range(start, ids.shape[1]))
        assert value == pytest.approx(expected, rel=1e-5)


def test_a_random_pair_has_the_best_answer_and_another_one_that_the_seed_draws() -> None:
    way = next(way for way in cells.WAYS if way.name == "random_pair")
    first, second = (training.dataset_of(ROWS, cells.Cell(way, seed)) for seed in (0, 1))
    others: dict[float, int] = dict.fromkeys(SCORES.values(), 0)
    for row, pair in zip(ROWS, first, strict=True):
        assert row.scores[row.completions.index(pair["chosen"])] == 10.0
        others[row.scores[row.completions.index(pair["rejected"])]] += 1
    assert others.pop(10.0) == 0
    assert all(10 < count < 34 for count in others.values())  # of 65
    assert first["rejected"] != second["rejected"]


def test_the_start_learns_the_kinds_of_answers_by_their_shares() -> None:
    texts = task.texts(2)
    assert len(texts) == 700
    right = sum(any(each in text for each in ("Madrid", "Paris")) for text in texts if "capital of" in text)
    assert right > 0
    padded = sum(len(text.split()) > 20 for text in texts) / 700
    assert 0.6 < padded < 0.85  # three quarters, and long definitions
    assert texts == task.texts(2) != random.Random(0).sample(texts, 700)


def record(way: str, seed: int, top: float) -> dict[str, Any]:
    point = dict.fromkeys([*report.MEASURES, *report.OWN, "best_drift"], top) | {"budget": 8, "positions": 9, "step": 3}
    key = f"{way} seed={seed}"
    return {"key": key, "way": way, "seed": seed, "points": [point] * 3, "seconds": 1.0}


TASK = {
    "key": report.TASK, "machine": "a machine", "commit": "abc", "parameters": 10, "train": 285, "held_out": 65,
    "plan": {"lists": 16, "beta": 0.1, "rate": 5e-4},
    "before": {"own_right": 0.5, "own_right_and_short": 0.25, "own_tokens": 20.0},
}  # fmt: skip


def test_a_gain_is_over_the_baseline_of_the_same_seed() -> None:
    runs = [record("best_worst", seed, 0.5 + 0.1 * seed) for seed in (0, 1, 2)]
    runs += [record("pl", seed, 0.6 + 0.1 * seed) for seed in (0, 1, 2)] + [record("all", 0, 0.4)]
    found = report.gain(runs, "pl", 0, "top1")
    assert (found.mean, found.seeds, found.differs) == (pytest.approx(0.1), 3, True)
    text = report.markdown([TASK, *runs])
    row = next(line for line in text.splitlines() if line.startswith("| `pl` | 3 |"))
    assert "(**+0.10 ± 0.00**)" in row
    assert "| every ordered pair (`list_pairs all`) | 1 | 0.40 (-0.10) |" in text
    assert "Not run: random_pair seed=0" in text


@pytest.mark.slow
def test_the_figure_has_a_panel_for_each_measure_and_a_line_for_each_way(tmp_path) -> None:
    report.figure([TASK, record("best_worst", 0, 0.5), record("pl", 0, 0.6)], tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert all(title in text for title in report.MEASURES.values())
    assert "best against worst" in text


@pytest.mark.slow
def test_a_run_ends_at_its_budget_and_an_interrupted_grid_goes_on(
    tmp_path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--hidden", "32", "--layers", "1", "--vocabulary", "300", "--texts_per_fact", "1", "--epochs", "0.1"]
    command = ["--out", str(tmp_path), *small, "--budget", "1200", "--stops", "2", "--lists", "4"]
    assert list_gain.main([*command, "--only", "best_worst", "--budget_minutes", "0"]) == 0
    assert "run again" in capsys.readouterr().out
    few = [cell for cell in cells.grid() if cell.seed == 0]

    def prepare(*given: Any) -> task.Task:
        made = task.prepare(*given)
        return replace(made, train=made.train[:32], held_out=made.held_out[:4])

    monkeypatch.setattr(list_gain, "grid", lambda: iter(few))
    monkeypatch.setattr(list_gain, "prepare", prepare)
    for way in ("best_worst", "all"):
        assert list_gain.main([*command, "--only", way]) == 0
    (file,) = tmp_path.glob("task-*/runs-*.jsonl")
    found = {each["key"]: each for each in list_gain.records.read(file)}
    assert set(found) == {"task", "best_worst seed=0", "all seed=0"}
    for key in ("best_worst seed=0", "all seed=0"):
        first, last = found[key]["points"]
        assert (first["budget"], last["budget"]) == (600, 1200)
        per_step = last["positions"] / last["step"]
        assert 600 <= first["positions"] < 600 + 2 * per_step
        assert 1200 <= last["positions"] < 1200 + 2 * per_step
    steps = [found[key]["points"][-1]["step"] for key in ("best_worst seed=0", "all seed=0")]
    assert steps[0] > steps[1]  # a pair costs less than a list
