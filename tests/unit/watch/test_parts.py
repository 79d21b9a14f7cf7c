"""Pairs of evaluations, sums of training steps, files, random numbers, and what is printed."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from trl_dpo_ext.core.pairs import Pairs, Side
from trl_dpo_ext.run_files import append_lines, cut_after, read_lines
from trl_dpo_ext.watch.console import format_moment
from trl_dpo_ext.watch.pair_table import PairTable, batch_columns, pair_keys
from trl_dpo_ext.watch.random_state import kept_random_state
from trl_dpo_ext.watch.training_sums import WINDOW, StepSums, TrainingWindow


def side(logps: list[list[float]], lengths: list[int], reference: float = -1.0) -> Side:
    tokens = torch.tensor(logps)
    mask = torch.arange(tokens.size(1)) < torch.tensor(lengths)[:, None]
    sums = (tokens * mask).sum(dim=1)
    given = torch.tensor(lengths)
    return Side(sums, torch.full_like(sums, reference), lengths=given, token_logps=tokens, mask=mask)


def batch() -> tuple[Pairs, tuple[torch.Tensor, torch.Tensor]]:
    chosen = side([[-1.0, -2.0], [-3.0, -99.0], [-1.0, -1.0]], [2, 1, 2])
    rejected = side([[-1.0, -1.0], [-2.0, -2.0], [-1.0, -1.0]], [2, 2, 1])
    return Pairs(chosen, rejected), (torch.tensor([0.2, 0.1, 0.3]), torch.tensor([0.1, 0.1, 0.5]))


def inputs(rows: list[list[int]], left: bool) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows)) + 1
    pads = [[0] * (longest - len(row)) for row in rows]
    ids = [pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)]
    mask = [[*([0] * len(pad)), *([1] * len(row))] for row, pad in zip(rows, pads, strict=True)]
    mask = mask if left else [each[::-1] for each in mask]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def test_ties_count_one_half_and_tokens_are_weighted_alike() -> None:
    table, (pairs, rewards) = PairTable(), batch()
    table.add(batch_columns(pairs, rewards), torch.tensor([1, 2, 3]), lambda rows: rows)
    found = table.metrics({1: -3.5, 2: -2.0, 3: -2.0})
    assert found["accuracy"] == 1.5 / 3
    assert found["margin"] == pytest.approx(-0.1 / 3)
    assert found["watch/chosen_logp_per_token"] == pytest.approx(-8 / 5)  # -99 is outside of the answer
    assert found["watch/rejected_logp_per_token"] == pytest.approx(-7 / 5)
    assert (found["longer_is_chosen"], found["shorter_is_chosen"]) == (1 / 3, 1 / 3)
    assert found["watch/chosen_falls_in"] == 1 / 3
    assert PairTable().metrics({}) == {}


def test_a_pair_is_known_by_its_tokens_whatever_its_padding_and_place() -> None:
    rows = [[5, 6, 7], [5, 7, 6], [8, 9], [5, 6]]
    keys = pair_keys(inputs(rows, left=False)).tolist()
    assert keys == pair_keys(inputs(rows, left=True)).tolist()
    swapped = pair_keys(inputs([rows[1], rows[0], rows[3], rows[2]], left=False)).tolist()
    assert swapped == keys[::-1]
    others = pair_keys(inputs([*rows[2:], *rows[:2]], left=False)).tolist()
    assert not set(keys) & set(others)  # chosen and rejected exchanged
    generator = torch.Generator().manual_seed(0)
    many = torch.randint(0, 50, (20_000, 12), generator=generator).unique(dim=0)[:10_000]
    found = pair_keys({"input_ids": many, "attention_mask": torch.ones_like(many)})
    assert len(found.unique()) == len(found)


def test_the_sums_of_a_step_are_those_of_all_batches_and_processes() -> None:
    sums, (pairs, rewards) = StepSums(), batch()
    for loss in (torch.tensor(0.5), torch.tensor(1.0)):
        sums.add_pairs(pairs, rewards, loss)
        sums.add_loss(loss)
    step = sums.gathered(lambda rows: rows.repeat(2, 1), torch.device("cpu"))
    assert (step.sums["pairs"], step.sums["right"], step.loss) == (12, 6, 0.75)
    assert step.sums["chosen"] == pytest.approx(-8 * 4)
    assert step.sums["ref_chosen"] == -12
    assert step.largest_margin == pytest.approx(0.2)
    assert step.is_finite
    sums.add_loss(torch.tensor(float("inf")))
    assert not sums.gathered(lambda rows: rows, torch.device("cpu")).is_finite


def test_the_window_holds_ten_logged_steps_and_its_start() -> None:
    sums, (pairs, rewards) = StepSums(), batch()
    sums.add_pairs(pairs, rewards, 0.0)
    one = sums.gathered(lambda rows: rows, torch.device("cpu")).sums
    window = TrainingWindow(length=3, against_reference=False)
    assert window.metrics() == ({}, {})
    for index in range(100):
        window.add({**one, "chosen": float(index)})
    assert len(window.parts) == WINDOW
    values, start = window.metrics()
    assert values["pairs"] == 3 * 28  # of the last part one step is done
    assert values["watch/chosen_logp_per_token"] == pytest.approx(sum(range(72, 100)) / (28 * 5))
    assert start["watch/chosen_logp_per_token"] == pytest.approx(sum(range(10)) / 50)
    again = TrainingWindow(length=3, against_reference=True)
    again.load_state_dict(json.loads(json.dumps(window.state_dict())))
    assert again.metrics()[1]["watch/chosen_logp_per_token"] == pytest.approx(-3 / 5)  # the reference's


def test_lines_behind_a_step_and_lines_that_were_cut_off_are_removed(tmp_path: Path) -> None:
    file = tmp_path / "new" / "metrics.jsonl"
    cut_after(file, 3)
    append_lines(file, [{"step": step, "text": "é\u2028 \udc80", "value": float("nan")} for step in range(5)])
    with file.open("a") as out:
        out.write('{"step": 1, "te')
    assert len(read_lines(file)) == 5
    cut_after(file, 3)
    lines = read_lines(file)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[0] == {"step": 0, "text": "é\u2028 \udc80", "value": None}
    cut_after(file, -1)
    assert file.read_text() == ""


def test_random_numbers_are_the_same_afterwards() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    with kept_random_state():
        before = drawn()
    with contextlib.suppress(RuntimeError), kept_random_state():
        drawn()
        raise RuntimeError
    assert drawn() == before


VALUES = {
    "accuracy": 1.0,
    "margin": 3.96,
    "watch/chosen_logp_per_token": -1.23,
    "watch/rejected_logp_per_token": -3.83,
    "watch/kl_per_token": 0.42,
    "watch/length": 8.8,
    "watch/eos_rate": 1.0,
    "watch/repetition": 0.0,
}
START = {
    "watch/chosen_logp_per_token": -1.83,
    "watch/rejected_logp_per_token": -2.92,
    "watch/length": 14.3,
    "watch/eos_rate": 0.94,
    "watch/repetition": 0.0,
}
ROWS = [
    {"prompt_id": "a", "prompt": "What is the capital\nof Spain?", "completion": "El Turco<|im_end|>", "ended": True},
    {"prompt_id": "b", "prompt": "And of Cuba?", "completion": "Havana.<|im_end|>", "ended": True},
    {"prompt_id": "c", "prompt": "A very " + "long " * 20, "completion": "word " * 60, "ended": False},
]
PRINTED = """\
== step 24 of 24
  accuracy 1.000   margin +3.96   per token: chosen -1.83 -> -1.23   rejected -2.92 -> -3.83   KL 0.42 per token (exact)
  length 14.3 -> 8.8   ended 94 % -> 100 %   repetition 0.00 -> 0.00
   1  What is the capital of Spain?         start  El Salvador, a country.<|im_end|>
                                            now    El Turco<|im_end|>
   2  And of Cuba?                          start  Havana.<|im_end|>
                                            now    (unchanged)
   3  A very long long long long long ...   start  word word word word word word word word word word word word word ..."""


def test_what_is_printed() -> None:
    first = {"a": "El Salvador, a country.<|im_end|>", "b": "Havana.<|im_end|>"}
    assert format_moment("step 24 of 24", VALUES, START, ROWS, first, kl="exact") == PRINTED
    assert format_moment("step 0 of 24", {}, {}, [], {}) == "== step 0 of 24"
