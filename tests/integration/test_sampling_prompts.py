"""Prompts of samples: the tokens that training feeds, the same ones in any order of the rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support import runs, tiny
from tests.support.sampling_runs import sampler, trainer
from trl_dpo_ext import InputError


@pytest.mark.parametrize("conversational", [False, True])
def test_prompts_are_the_tokens_that_training_feeds(tmp_path, conversational: bool) -> None:
    data = tiny.preferences(8, conversational)
    run = trainer(tmp_path, train_dataset=data, eval_dataset=data, watch_prompts=8)
    chosen = sampler(run).prompts
    assert {prompt.ids for prompt in chosen} == {tuple(ids) for ids in run.eval_dataset["prompt_ids"]}
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in data["prompt"]))
    run = trainer(tmp_path, train_dataset=data, eval_dataset=data, watch_prompts_file=str(file))
    of_file = sampler(run)
    assert {prompt.ids for prompt in of_file.prompts} == {prompt.ids for prompt in chosen}
    assert all(("<user>" in prompt.text) == conversational for prompt in of_file.prompts)  # special tokens can be seen


def test_a_text_in_a_file_of_prompts_is_a_message_where_training_has_messages(tmp_path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "say yes"}\n\n{"prompt": "say yes"}\n{"prompt": "is the sky blue"}\n')
    run = trainer(tmp_path, train_dataset=tiny.preferences(8, True), eval_dataset=None, watch_prompts_file=str(file))
    texts = [prompt.text for prompt in sampler(run).prompts]
    assert texts == ["<user> say yes <assistant>", "<user> is the sky blue <assistant>"]
    assert [row["last_message"] for row in sampler(run).sample(0).rows] == ["say yes", "is the sky blue"]


@pytest.mark.parametrize("line", ["not json", '{"text": "a"}', '{"prompt": ""}', '{"prompt": [{"role": "user"}]}', ""])
def test_a_line_without_a_prompt_is_named(tmp_path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "say yes"}\n' * bool(line) + line + "\n")
    with pytest.raises(InputError, match="line 2 has none" if line else "it is empty"):
        runs.config(tmp_path, watch_prompts_file=str(file))


def test_the_same_prompts_are_chosen_in_any_order_of_the_rows(tmp_path) -> None:
    rows = tiny.preferences(8)
    found = []
    for data in (
        rows,
        rows.shuffle(seed=3),
        rows.select([*range(8), 2, 3]),
        {"first": rows.shuffle(seed=5), "b": rows},
    ):
        run = trainer(tmp_path, eval_dataset=data, watch_prompts=3)
        chosen = sampler(run)
        found.append([prompt.name for prompt in chosen.prompts])
    assert len(set(found[0])) == 3
    assert all(each == found[0] for each in found)
    assert chosen.source == "of the evaluation set 'first'"
    run = trainer(tmp_path, eval_dataset=None, watch_prompts=3)
    assert sampler(run).source == "of the training set"
    run = trainer(tmp_path, eval_dataset=rows.to_iterable_dataset(), watch_prompts=3)
    assert [prompt.name for prompt in sampler(run).prompts] == found[0]


def test_prompts_leave_room_for_the_answer_where_positions_are_learned(tmp_path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny.tokenizer()), **sizes))
    run = trainer(tmp_path, model=model, watch_prompts=8, watch_max_new_tokens=20, max_length=24)
    prompts = sampler(run).prompts
    assert {len(prompt.ids) for prompt in prompts} == {2, 4}
    run = trainer(tmp_path, model=model, watch_max_new_tokens=23, max_length=24)
    with pytest.warns(UserWarning, match="no prompts of the evaluation set that leave room for 23 tokens"):
        off = sampler(run)
    assert not off.is_on
