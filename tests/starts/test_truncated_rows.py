"""What max_length and the chat template leave of prompts and answers is counted."""

from __future__ import annotations

from typing import Any

import pytest

from trl_dpo_ext.errors import InputError

from .listing import Kind
from .rows import ROW, YES, construct

truncated = Kind("Prompts and answers beyond max_length")
LONG = [{"prompt": "say " * 6, "chosen": "yes", "rejected": "no no no"}]
SHORT = [{"prompt": "say ", "chosen": "yes", "rejected": "no no no"}]


def named(told: list[str], name: str) -> list[str]:
    """The lines of one finding."""
    return [line for line in told if f"(ignore_findings: {name})" in line]


@truncated("prompts that all fill `max_length`", "error: all rows dropped, with the length of the shortest prompt")
def test_a_run_without_rows_is_stopped(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"all 8 rows dropped: the prompt alone fills max_length=4.* has 6 tokens"):
        construct(tmp_path, LONG * 8, max_length=4)


@truncated("prompts that fill `max_length` in some rows", "warning with their number")
def test_dropped_rows_are_counted(tmp_path: Any) -> None:
    trainer, told = construct(tmp_path, LONG * 2 + SHORT * 6, max_length=5)
    assert len(trainer.train_dataset) == 6
    assert named(told, "dropped") == [
        "train dataset: 2 of 8 rows dropped: the prompt alone fills max_length=5. Raise max_length to 64, or filter these "
        "rows. (ignore_findings: dropped)"
    ]
    assert [line for line in told if line not in named(told, "dropped")] == named(told, "duplicate_row")


@truncated("answers that `max_length` cuts", "warning with their number on each side")
def test_cut_answers_are_counted(tmp_path: Any) -> None:
    _, told = construct(tmp_path, SHORT * 3, max_length=4)
    (line,) = named(told, "answer_cut")
    assert "max_length=4 cuts the answers of 3 of 3 rows (chosen in 0, rejected in 3)" in line
    (line,) = named(told, "eos_cut")
    assert "takes EOS from 0 chosen (0 %) and 3 rejected answers (100 %)" in line
    assert len(told) == 3
    assert named(told, "duplicate_row")


SAME = [{"prompt": "say ", "chosen": "yes it is blue", "rejected": "yes it is four"}]


@truncated("pairs that are identical after truncation", "warning with their number")
def test_pairs_made_identical_by_truncation_are_counted(tmp_path: Any) -> None:
    _, told = construct(tmp_path, SAME * 2 + SHORT, max_length=4)
    (line,) = named(told, "identical_after_truncation")
    assert "identical after truncation to max_length=4 in 2 of 3 rows" in line
    assert "Raise max_length to 5, which tells all of them apart." in line
    _, told = construct(tmp_path, SAME, max_length=5)
    assert not named(told, "identical_after_truncation")


@truncated("`keep_end`, with answers that are longer than `max_length`", "warning: nothing of the prompt is left")
def test_lost_prompts_are_counted(tmp_path: Any) -> None:
    rows = [{"prompt": "say ", "chosen": "yes no yes", "rejected": "no no yes"}]
    _, told = construct(tmp_path, rows * 2, max_length=3, truncation_mode="keep_end")
    (line,) = named(told, "answer_cut")
    assert "cuts the answers of 2 of 2 rows" in line
    (line,) = named(told, "identical_after_truncation")  # what is left of both is "no yes <eos>"
    assert "identical after truncation to max_length=3 in 2 of 2" in line
    (line,) = named(told, "prompt_lost")
    assert "leaves nothing of the prompt in 2 of 2 rows" in line


@truncated("an answer in `reasoning_content`, which the chat template does not print", "warning: the answer is empty")
def test_answers_that_the_template_drops_are_counted(tmp_path: Any) -> None:
    thought = {"role": "assistant", "content": None, "reasoning_content": "yes it is"}
    _, told = construct(
        tmp_path, [{**ROW, "chosen": [thought]}, {**ROW, "chosen": [{**YES, "reasoning_content": None}]}]
    )
    (line,) = named(told, "template_drops")
    assert "in 1 of 2 rows an answer is in reasoning_content alone" in line
