"""Every known pitfall is found, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.command_line import parse
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.estimate.formulas import Quantized, Training
from trl_dpo_ext.estimate.pitfalls import CHECKS, RunContext, find_pitfalls, format_warnings
from trl_dpo_ext.estimate.strategy import ParallelStrategy

SINGLE = ParallelStrategy("single", 1)
FULL_BF16 = Training(dtype="bfloat16")
LORA_BF16 = Training(dtype="bfloat16", adapter=True)
QLORA = Training(dtype="bfloat16", adapter=True, quantized=Quantized(4, True))


def context(**changes: Any) -> RunContext:
    given = {"training": Training(), "strategy": SINGLE, "learning_rate": 5e-7, "pairs_per_step": 128}
    return RunContext(**{**given, "losses": (("sigmoid", {"beta": 0.1}),), **changes})


CAUSES = {
    "bf16_weights": {"training": FULL_BF16},
    "float32_base": {"training": Training(adapter=True)},
    "small_beta": {"losses": (("sigmoid_norm", {"beta": 0.1}),)},
    "whole_4bit_weights": {"training": QLORA, "strategy": ParallelStrategy("fsdp2", 8)},
    "unsaved_states": {"training": Training(optimizer="adamw_bnb_8bit"), "strategy": ParallelStrategy("fsdp1", 8)},
    "other_batch": {"published_pairs_per_step": 64},
}


AVOIDS = {
    "bf16_weights": [{}, {"training": FULL_BF16, "strategy": ParallelStrategy("zero3", 8)}, {"training": LORA_BF16}],
    "float32_base": [
        {"training": LORA_BF16},
        {"training": Training(adapter=True), "strategy": ParallelStrategy("single", 1, on_cpu=True)},
    ],
    "small_beta": [{"losses": (("sigmoid_norm", {"beta": 5.0}),)}],
    "whole_4bit_weights": [{"training": QLORA}],
    "unsaved_states": [{"training": Training(optimizer="adamw_bnb_8bit")}, {"strategy": ParallelStrategy("fsdp1", 8)}],
    "other_batch": [{"published_pairs_per_step": 128}, {"published_pairs_per_step": None}],
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_pitfall_is_seen_and_nothing_else_is(name: str) -> None:
    found = find_pitfalls(context(**CAUSES[name]))
    assert list(found) == [name]
    (line,) = format_warnings(found)
    assert line.endswith(f"(ignore_pitfalls: {name})")
    assert find_pitfalls(context(**CAUSES[name]), ignore=[name]) == {}
    for harmless in AVOIDS[name]:
        assert find_pitfalls(context(**harmless)) == {}


def test_another_number_of_gpus_is_answered_with_the_accumulation_that_restores_the_batch() -> None:
    four = context(
        strategy=ParallelStrategy("zero3", 4),
        per_device=8,
        accumulation=2,
        pairs_per_step=64,
        published_pairs_per_step=128,
    )
    assert "Set gradient_accumulation_steps: 4" in find_pitfalls(four)["other_batch"][0]
    lists = replace(four, training=replace(four.training, completions=4))
    assert "on 64 lists (" in find_pitfalls(lists)["other_batch"][0]


def test_an_unknown_pitfall_is_an_error() -> None:
    with pytest.raises(InputError, match="ignore_pitfalls: unknown bf16_weight; one of bf16_weights"):
        parse("--ignore_pitfalls", "bf16_weight")
