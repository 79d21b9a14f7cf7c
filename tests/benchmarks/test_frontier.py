"""The frontier's pieces: preferences, flips, divergences, records that survive a kill, and tables from records."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import frontier
import list_gain
from on_sentiment import cells, measure, preferences, records, report, statistics_of_runs, text

from trl_dpo_ext import get_loss

PAIR = preferences.Pair("p", " good", " bad", 0.5, -0.5, 1.0, 0.5)


def test_the_better_continuation_is_chosen_and_ties_are_left_out() -> None:
    pairs = preferences.pairs_of("p", ["a", "b", "c"], [0.1, 0.7, 0.1], 9)
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {("b", "a"), ("b", "c")}
    assert {(pair.quantile_chosen, pair.quantile_rejected) for pair in pairs} == {(1.0, 2 / 3)}
    (widest,) = preferences.pairs_of("p", ["a", "b", "c"], [0.1, 0.7, 0.3], 1)
    assert (widest.chosen, widest.rejected) == ("b", "a")


def test_flips_have_the_share_that_was_asked_for_and_grow_with_it() -> None:
    pairs = [PAIR] * 50
    flipped = {
        share: {at for at, pair in enumerate(preferences.with_flips(pairs, share, seed=1)) if pair != PAIR}
        for share in (0.0, 0.1, 0.4)
    }
    assert [len(at) for at in flipped.values()] == [0, 5, 20]
    assert flipped[0.1] < flipped[0.4]
    assert preferences.with_flips(pairs, 0.4, seed=2) != preferences.with_flips(pairs, 0.4, seed=1)
    assert PAIR.flipped.flipped == PAIR


def test_a_flipped_pair_flips_every_column_with_it() -> None:
    for name in ("odpo", "margin", "sppo", "qrpo"):
        columns = get_loss(name).columns
        right, wrong = (preferences.dataset_of([pair], get_loss(name))[0] for pair in (PAIR, PAIR.flipped))
        assert (right["chosen"], wrong["chosen"]) == (" good", " bad")
        assert all(right[column] != wrong[column] for column in columns)
        assert set(right) == {"prompt", "chosen", "rejected", *columns}


def model(seed: int, vocabulary: int = 4) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_divergences_are_those_of_all_sequences_weighted_by_the_policy() -> None:
    """Of all answers of up to 3 tokens, where token 1 ends one: the weighted mean of both estimators is the KL."""
    policy, reference, prefix, end = model(0), model(1), [2, 3], 1

    def answers(start: list[int]) -> Sequence[list[int]]:
        if len(start) == 3 or (start and start[-1] == end):
            return [start]
        return [whole for token in range(4) for whole in answers([*start, token])]

    found = answers([])
    sums, ratios = measure.divergences(policy, reference, [prefix] * len(found), found, pad=0)
    expected = weighted_sums = weighted_ratios = total = 0.0
    for answer, of_tokens, ratio in zip(found, sums, ratios, strict=True):
        ours, theirs = (_log_prob(each, prefix, answer) for each in (policy, reference))
        weight = math.exp(ours)
        total, expected = total + weight, expected + weight * (ours - theirs)
        weighted_sums, weighted_ratios = weighted_sums + weight * of_tokens, weighted_ratios + weight * ratio
    assert total == pytest.approx(1.0, abs=1e-4)
    assert expected > 0.01
    assert weighted_sums == pytest.approx(expected, rel=1e-3)
    assert weighted_ratios == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
def _log_prob(model: Any, prefix: list[int], answer: list[int]) -> float:
    logps = model(input_ids=torch.tensor([prefix + answer])).logits[0].log_softmax(-1)
    return sum(logps[len(prefix) - 1 + at, token].item() for at, token in enumerate(answer))


def test_records_outlive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "new" / "runs.jsonl"
    records.append(file, {"key": "a", "value": 1})
    with file.open("a") as out:
        out.write('{"key": "b", "val')  # as a kill leaves it
    records.append(file, {"key": "c", "value": 2})
    records.append(file, {"key": "a", "value": 3})
    assert records.read(file) == [{"key": "a", "value": 3}, {"key": "c", "value": 2}]


def run_of(cell: cells.Cell, reward: float = 0.4, kl: float = 1.0, **values: Any) -> records.Record:
    point = {
        "step": 4, "reward": reward, "kl": kl, "kl_of_log_ratios": kl, "tokens": 9.0, "distinct": 1.0, "accuracy": 0.8,
        "chosen_drift": -1.0, "rejected_drift": -3.0,
    }  # fmt: skip
    shared = {"ref_positions": 0, "positions": 200, "seconds": 2.0, "seconds_of_measuring": 1.0}
    return {**cell.record, "points": [point], **shared, **values}


def test_what_has_a_record_does_not_run_again_and_what_fails_does(tmp_path: Path) -> None:
    file, ran = tmp_path / "runs.jsonl", []
    wanted = frontier.wanted(frontier.parse(["--only", "hinge"]))[:3]

    def train(cell: cells.Cell) -> records.Record:
        ran.append(cell)
        if len(ran) == 2:
            raise RuntimeError("out of memory")
        return run_of(cell)

    assert not frontier.run_all(wanted, file, train)
    assert frontier.run_all(frontier.pending(wanted, records.read(file))[:1], file, train)
    assert [cell.seed for cell in ran] == [0, 1, 2, 1]
    assert len(records.read(file)) == 3


def test_no_run_starts_after_the_minutes(tmp_path: Path) -> None:
    assert frontier.run_all(list(cells.grid()), tmp_path / "runs.jsonl", run_of, minutes=-1)
    assert records.read(tmp_path / "runs.jsonl") == []


def test_every_run_of_the_grid_has_a_key_of_its_own_and_a_loss_that_can_read_its_columns() -> None:
    grid = list(cells.grid())
    assert len({cell.record["key"] for cell in grid}) == len(grid)
    for loss in {cell.loss for cell in grid}:
        preferences.dataset_of([PAIR], get_loss(loss))
    for cell in grid:
        variant = get_loss(cell.loss)
        owned = {name: value for name, value in cell.hyper.items() if name not in ("beta", "label_smoothing")}
        assert not [problem for problem in variant.check({**_shared(variant), **owned}) if problem]


def _shared(variant: Any) -> dict[str, float]:
    return {parameter.name: 0.1 for parameter in variant.hyperparameters if parameter.shared}


def test_runs_are_chosen_by_a_pattern_of_their_line_too() -> None:
    found = frontier.wanted(frontier.parse(["--only", "ipo", "sigmoid", "--match", "*beta=0.1 *flips=0 *seed=2"]))
    assert [(cell.loss, cell.value, cell.flips, cell.seed) for cell in found] == [
        ("sigmoid", 0.1, 0.0, 2),
        ("ipo", 0.1, 0.0, 2),
    ]
    assert frontier.wanted(frontier.parse([])) == list(cells.grid())


def test_a_pattern_that_no_run_fits_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        frontier.parse(["--match", "flips=0"])
    assert "--match flips=0: no run of the grid fits" in capsys.readouterr().err


def test_an_unknown_loss_is_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        frontier.parse(["--only", "sigmoid", "dpoo"])
    assert "not in the grid: dpoo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stops", "0"], "--stops 0: give a number above 0"),
        (["--rate_factor", "-1"], "--rate_factor -1: give a number above 0"),
        (["--records", "runs.jsonl"], "--records: only --report and --figure read it"),
    ],
)
def test_options_that_would_make_wrong_records_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    for program in (frontier, list_gain):
        if not (program is list_gain and "--rate_factor" in arguments):
            with pytest.raises(SystemExit):
                program.parse(arguments)
            assert said in capsys.readouterr().err


def test_no_report_is_made_without_runs(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    records.append(file, {"key": report.TASK})
    for program in (frontier, list_gain):
        with pytest.raises(SystemExit, match="does not hold the records of a task and its runs"):
            program.main(["--records", str(file), "--report", str(tmp_path / "report.md")])
    assert not (tmp_path / "report.md").exists()


def test_best_of_n_is_the_mean_of_all_draws() -> None:
    assert statistics_of_runs.best_of([3.0, 1.0, 2.0], 2) == pytest.approx((3 + 3 + 2) / 3)
    points = statistics_of_runs.best_of_n([[0.0, 1.0], [2.0, 4.0]])
    assert [(point["n"], point["reward"]) for point in points] == [(1, 1.75), (2, 2.5)]
    assert points[0]["kl"] == 0


def test_a_loss_is_compared_with_the_baseline_at_the_same_divergence_and_seed() -> None:
    baseline = [run_of(cells.Cell("sigmoid", "beta", 1.0, seed=seed), 0.2 + seed, 2.0) for seed in (0, 1)]
    curves = statistics_of_runs.curves(baseline, start=0.1)
    runs = [run_of(cells.Cell("hinge", "beta", 1.0, seed=seed), 0.5 + seed, 1.0) for seed in (0, 1)]
    found = statistics_of_runs.above(runs, curves)
    assert found is not None
    assert found.mean == pytest.approx((0.5 - 0.15 + 1.5 - 0.65) / 2)
    assert found.seeds == 2
    beyond = run_of(cells.Cell("hinge", "beta", 0.1), 0.5, 3.0)
    assert statistics_of_runs.above([beyond], curves) is None


def test_p_is_one_twentieth_at_the_edge_of_the_interval_and_is_corrected_for_the_number_of_losses() -> None:
    for seeds in range(2, 11):
        found = statistics_of_runs.estimate([float(at) for at in range(seeds)])
        shifted = statistics_of_runs.Estimate(found.half, found.half, seeds)  # 0 is the end of the interval
        assert shifted.p == pytest.approx(0.05, abs=2e-4)
    assert 0.03 < statistics_of_runs.Estimate(1.0, 1.0, 20).p < 0.05  # beyond the table, its last quantile is too large
    assert math.isnan(statistics_of_runs.estimate([1.0]).p)
    assert statistics_of_runs.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert statistics_of_runs.holm([]) == []


def test_a_loss_is_judged_over_its_strengths_and_flips_by_the_same_seed() -> None:
    baseline = [run_of(cells.Cell("sigmoid", "beta", 1.0, seed=seed), 0.5, 2.0) for seed in (0, 1)]
    curves = statistics_of_runs.curves(baseline, start=0.1)
    strong = [run_of(cells.Cell("hinge", "beta", 0.1, seed=seed), 0.6 + seed / 10, 2.0) for seed in (0, 1)]
    weak = [
        run_of(cells.Cell("hinge", "beta", 1.0, seed=0), 0.5, 1.0),
        run_of(cells.Cell("hinge", "beta", 1.0, seed=1), 9.0, 5.0),
    ]
    found = statistics_of_runs.above_at_all_strengths([*strong, *weak], curves)
    assert found is not None
    assert found.seeds == 2
    assert found.mean == pytest.approx(((0.1 + 0.2) / 2 + 0.2) / 2)  # the second seed's weak run is beyond its curve
    flipped = [run_of(cells.Cell("sigmoid", "beta", 1.0, seed=seed, flips=0.4), 0.3 + seed, 2.0) for seed in (1, 2)]
    change = statistics_of_runs.paired(flipped, baseline, "reward")
    assert change == statistics_of_runs.estimate([0.8])
    assert statistics_of_runs.paired(flipped[1:], baseline, "reward") is None


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "frontier.md"
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "frontier.md"


@pytest.mark.parametrize("file", [RESULTS, RESULTS.with_stem("frontier_10m")], ids=lambda file: file.stem)
def test_the_tables_are_those_of_the_records(file: Path) -> None:
    assert file.read_text().endswith(report.markdown(records.read(file.with_suffix(".jsonl"))))


def test_what_the_guide_quotes_is_in_the_tables() -> None:
    def rows(file: Path) -> list[list[str]]:
        lines = [line for line in file.read_text().splitlines() if line.startswith("| `")]
        return [[cell.strip().replace("**", "") for cell in line.strip("|").split("|")] for line in lines]

    complete, quoted = rows(RESULTS), rows(GUIDE)
    assert len(quoted) > 10
    for row in quoted:
        found = [
            [any(f"{there},".startswith(f"{here},") for there in line) for here in row if here] for line in complete
        ]
        assert any(all(each) for each in found), row


TASK = {
    "key": report.TASK, "machine": "a machine", "commit": "abc", "plan": {"steps": 4, "pairs": 2}, "pairs": 9,
    "held_out": 3, "start": 0.1, "best_of_n": [{"n": 1, "kl": 0.0, "reward": 0.1}, {"n": 2, "kl": 0.2, "reward": 0.3}],
    "facts": {"sentences": 9, "parameters": 1000, "held_out_loss": 5.0},
}  # fmt: skip


def test_the_report_says_what_each_run_cost_and_what_is_missing() -> None:
    first, *_ = cells.FAMILIES
    ran = [run_of(cells.cell(first, first.middle, 0), ref_positions=300)]
    ran += [run_of(cells.cell(first, first.middle, seed)) for seed in (1, 2)]
    ran += [run_of(cells.cell(first, value, seed)) for value in first.values[:1] for seed in cells.SEEDS]
    ran += [run_of(cells.cell(first, first.middle, 0, flips=0.4), reward=0.1)]
    own = cells.Cell("sigmoid", "beta", first.middle, reference="own store")
    ran += [run_of(own, ref_positions=300, seconds=3.0)]
    shown = report.markdown([TASK, *json.loads(json.dumps(ran))])
    assert "The 7 runs of the sweep that read the reference fed 300 positions to it in all" in shown
    assert "they would feed 2100" in shown
    assert "| a run with a store of its own | 1 | 300 | 200 | 3.0 | 1.50 |" in shown
    assert "| 40 % | 1 |" in shown
    missing = len(list(cells.grid())) - len(ran)
    assert f"{missing} of the grid's {missing + len(ran)} runs have not run" in shown


@pytest.mark.slow
def test_the_figure_has_a_panel_for_each_loss(tmp_path: Path) -> None:
    ran = [run_of(cells.cell(family, family.middle, 0)) for family in cells.FAMILIES[:3]]
    report.figure([TASK, *ran], tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    assert all(family.loss in drawn for family in cells.FAMILIES[:3])
    assert cells.FAMILIES[3].loss not in drawn


@pytest.mark.slow
def test_a_sweep_computes_the_reference_once_and_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole program at toy size; the download and the scorer are replaced."""
    words = [
        "the",
        "film",
        "is",
        "good",
        "bad",
        "great",
        "awful",
        "and",
        "very",
        "dull",
        "fun",
        "story",
        "with",
        "a",
        "cast",
        "of",
    ]
    draw = random.Random(0)
    lines = [f"{at}\t0.0\t{' '.join(draw.choices(words, k=draw.randint(7, 12)))}" for at in range(120)]
    (tmp_path / "vader").mkdir()
    (tmp_path / "vader" / "reviews.tsv").write_text("\n".join(lines))
    monkeypatch.setattr(text, "scorer", lambda folder: lambda sentence: len(set(sentence.split())) / 20)
    toy = [
        "--hidden",
        "32",
        "--layers",
        "1",
        "--vocabulary",
        "300",
        "--epochs",
        "1",
        "--prefixes",
        "24",
        "--held_out",
        "8",
        "--pool",
        "4",
        "--steps",
        "2",
        "--pairs",
        "4",
        "--tokens",
        "6",
        "--longest",
        "12",
        "--only",
        "hinge",
        "odpo",
    ]
    out = ["--out", str(tmp_path), *toy]
    wanted = [family for family in cells.FAMILIES if family.loss in ("hinge", "odpo")]
    monkeypatch.setattr(frontier, "grid", lambda: (cells.cell(family, 0.3, 0) for family in wanted))
    assert frontier.main(out) == 0
    (file,) = tmp_path.glob("task-*/runs-*.jsonl")
    task, first, second = records.read(file)
    assert task["start"] > 0
    assert first["ref_positions"] > 0
    assert second["ref_positions"] == 0
    assert {point["step"] for point in second["points"]} == {1, 2}
    whole = file.read_text()
    file.write_text(whole[: -len(whole.splitlines()[-1]) // 2])
    assert frontier.main(out) == 0
    assert [record["key"] for record in records.read(file)] == ["task", first["key"], second["key"]]
