"""What `inspect` shows is what a run feeds: token for token, for every truncation and layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tests.support import runs, tiny
from trl_dpo_ext import InputError, inspect_preferences
from trl_dpo_ext.forward.packing import pack
from trl_dpo_ext.inspection import pair_table
from trl_dpo_ext.inspection.pair_measures import Truncation

LAYOUTS = {
    "texts": tiny.preferences(),
    "messages": tiny.preferences(conversational=True),
    "whole conversations": Dataset.from_list(
        [
            {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
            for row in tiny.preferences(conversational=True)
        ]
    ),
    "whole texts": Dataset.from_list(
        [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in tiny.preferences()]
    ),
    "a text prompt beside messages": Dataset.from_list(
        [{**row, "prompt": row["prompt"][0]["content"]} for row in tiny.preferences(conversational=True)]
    ),
}
TRUNCATIONS = [
    {"max_length": None},
    {"max_length": 9},
    {"max_length": 6},
    {"max_length": 7, "truncation_mode": "keep_end"},
]


def shown(row: dict[str, Any], side: str) -> tuple[list[int], int]:
    """The sequence of one side as it is shown, and how many of its tokens are the prompt."""
    start, end = row["kept"][f"prompt_{side}"]
    first, last = row["kept"][side]
    return row["prompt_ids"][start:end] + row[f"{side}_ids"][first:last], end - start


@pytest.mark.parametrize("settings", TRUNCATIONS, ids=str)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_run_feeds_what_was_shown(tmp_path: Any, layout: str, settings: dict[str, Any]) -> None:
    trainer = runs.trainer(tmp_path, train_dataset=LAYOUTS[layout], loss_type="simpo", **settings)
    result = inspect_preferences(LAYOUTS[layout], tiny.tokenizer(), runs.config(tmp_path, **settings))
    table = result.tables["train"]
    rows = result.rows(table.numbers.tolist())
    batch = trainer.data_collator([trainer.train_dataset[at] for at in range(len(trainer.train_dataset))])
    ids, attended, scored = (batch[name].numpy() for name in ("input_ids", "attention_mask", "completion_mask"))
    assert len(ids) == 2 * len(rows)
    for at, row in enumerate(rows):
        for half, side in enumerate(("chosen", "rejected")):
            line = at + half * len(rows)
            sequence, prompt = shown(row, side)
            length = int(attended[line].sum())
            assert ids[line, :length].tolist() == sequence
            assert scored[line, :length].tolist() == [0] * prompt + [1] * (length - prompt)
            assert row[f"cut_{side}"] == len(row[f"{side}_ids"]) - (length - prompt)
    fed = result.data["splits"]["train"]["tokens"]["fed"]
    assert fed["plain"] == attended.sum()
    dropped = len(LAYOUTS[layout]) - len(rows)
    assert result.data["splits"]["train"]["rows"]["dropped"] == dropped


@pytest.mark.parametrize("settings", [*TRUNCATIONS, {"max_length": 12, "truncation_mode": "keep_end"}], ids=str)
def test_share_prompt_feeds_as_many_positions_as_are_shown(tmp_path: Any, settings: dict[str, Any]) -> None:
    result = inspect_preferences(LAYOUTS["messages"], tiny.tokenizer(), runs.config(tmp_path, **settings))
    rows = result.rows(result.tables["train"].numbers.tolist())
    pairs = [[np.array(shown(row, side)[0]) for side in ("chosen", "rejected")] for row in rows]
    fed = result.data["splits"]["train"]["tokens"]["fed"]["share_prompt"]
    assert fed == sum(pack(pair, ["one", "one"]).input_ids.size for pair in pairs)


def test_a_training_run_gets_the_same_batches(tmp_path: Any) -> None:
    """In `train` itself, through the loader, shuffled: each sequence that is fed is one that was shown."""
    data = tiny.preferences(conversational=True)
    result = inspect_preferences(data, tiny.tokenizer(), runs.config(tmp_path, max_length=8))
    rows = result.rows(result.tables["train"].numbers.tolist())
    expected = {tuple(shown(row, side)[0]) for row in rows for side in ("chosen", "rejected")}
    fed: list[tuple[int, ...]] = []
    trainer = runs.trainer(
        tmp_path, train_dataset=data, loss_type="simpo", max_length=8, num_train_epochs=1, max_steps=-1
    )
    compute = trainer.compute_loss

    def watched(model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
            fed.append(tuple(index for index, seen in zip(ids, mask, strict=True) if seen))
        return compute(model, inputs, *more, **named)

    trainer.compute_loss = watched
    trainer.train()
    assert set(fed) == expected
    assert len(fed) == 2 * len(rows)


def test_rows_keep_the_numbers_of_the_loaded_split(tmp_path: Any) -> None:
    rows = [
        {"prompt": "say ", "a": "yes", "b": "no", "winner": "a"},
        {"prompt": "say ", "a": "yes it", "b": "no it", "winner": "tie"},
        {"prompt": "say yes no four ", "a": "yes", "b": "no", "winner": "b"},
        {"prompt": "say that ", "a": "blue", "b": "sky", "winner": "b"},
    ]
    columns = {"prompt": "prompt", "a": "a", "b": "b", "winner": "winner", "winner_is_b": "b"}
    settings = {"max_length": 4, "dataset_columns": columns}
    result = inspect_preferences(Dataset.from_list(rows), tiny.tokenizer(), runs.config(tmp_path, **settings))
    assert result.tables["train"].numbers.tolist() == [0, 3]
    assert result.rows([3])[0]["chosen"] == ["sky", " <eos>"]
    (dropped,) = [found for found in result.data["findings"] if found["name"] == "dropped"]
    assert dropped["rows"] == [2]
    with pytest.raises(InputError, match="Row 2 of the train split was dropped"):
        result.rows([2])
    with pytest.raises(InputError, match=r"Row 1 of the train split was dropped\."):
        result.rows([1])
    with pytest.raises(InputError, match="Row 9 of the train split does not exist; there are 4"):
        result.rows([9])


def test_another_truncation_than_trls_is_noticed(tmp_path: Any, monkeypatch: Any) -> None:
    def kept(self: Truncation, prompt: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return prompt, np.minimum(side, 2)

    monkeypatch.setattr(Truncation, "kept", kept)
    with pytest.raises(RuntimeError, match="TRL's collator truncates"):
        inspect_preferences(tiny.preferences(), tiny.tokenizer(), runs.config(tmp_path, max_length=9))


def test_data_is_not_changed(tmp_path: Any) -> None:
    data = tiny.preferences()
    before, columns = data[:], data.column_names
    inspect_preferences(data, tiny.tokenizer(), runs.config(tmp_path))
    assert data[:] == before
    assert data.column_names == columns


def test_prompts_of_a_long_dataset_are_sampled_evenly(tmp_path: Any, monkeypatch: Any) -> None:
    rows = [{"prompt": "say", "chosen": f"yes{at}", "rejected": "no"} for at in range(9)]
    monkeypatch.setattr("trl_dpo_ext.inspection.split.PROMPTS_TOKENIZED", 3)
    result = inspect_preferences(Dataset.from_list(rows), tiny.tokenizer(), runs.config(tmp_path))
    (found,) = [each for each in result.data["findings"] if each["name"] == "prompt_not_prefix"]
    assert found["rows"] == [0, 4, 8]
    assert "3 of 9 rows (of 3 that were looked at)" in found["sentence"]
    assert pair_table.PROMPTS_TOKENIZED == 20_000
