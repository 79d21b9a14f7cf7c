"""Every published preference recipe and example of other tools becomes a configuration that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from tests.unit.migration.published import REFUSED, TABLES, TRANSLATED
from trl_dpo_ext import InputError
from trl_dpo_ext.cli.arguments import option_names, read_for_another_machine
from trl_dpo_ext.cli.train import build_trainer
from trl_dpo_ext.migration.draft import Draft, Tool
from trl_dpo_ext.migration.tools import migrated, tool_of
from trl_dpo_ext.migration.write import as_yaml

each = pytest.mark.parametrize(("tool", "place"), TRANSLATED)
KNOWN = option_names()
FIRST = {tool: next(place for of, place in TRANSLATED if of == tool) for tool in TABLES}


def translation(tool: str, place: str) -> tuple[Tool, Draft]:
    return migrated(TABLES[tool][place], KNOWN, location=place)


def parsed(tool: Tool, draft: Draft, folder: Path) -> Any:
    file = folder / "migrated.yaml"
    file.write_text(as_yaml(draft, tool, "old.yaml"), encoding="utf-8")
    return read_for_another_machine(["--config", str(file)])


@each
def test_every_key_is_translated_or_left_out_with_a_reason(tool: str, place: str) -> None:
    found, draft = translation(tool, place)
    for key in (key for key, value in TABLES[tool][place].items() if value is not None):
        assert key in {*draft.keys, *draft.left_out, *found.rules, *found.together}, key
    assert not [key for key, reason in draft.left_out.items() if "not known" in reason]
    assert set(draft.keys) | set(draft.defaults) <= KNOWN


@each
def test_the_tool_is_told_by_its_keys(tool: str, place: str) -> None:
    assert tool_of(TABLES[tool][place]).name in (tool, "trl" if tool == "handbook" else tool)


@pytest.mark.parametrize(("place", "said"), REFUSED.items())
def test_what_trains_something_else_is_refused(place: str, said: str) -> None:
    (given,) = [table[place] for table in TABLES.values() if place in table]
    with pytest.raises(InputError, match=said):
        migrated(given, KNOWN, location=place)


@pytest.mark.parametrize("tool", sorted(TABLES))
def test_the_strict_parser_takes_one_of_each_tool(tool: str, tmp_path: Path) -> None:
    assert parsed(*translation(tool, FIRST[tool]), tmp_path).problems == ()


def on_a_tiny_model(draft: Draft, folder: Path) -> Draft:
    """The same run with a model and data that are here, and without what needs a GPU or the Hub."""
    for key in ("datasets", "dataset_config", "dataset_train_split", "dataset_test_split", "dataset_columns"):
        draft.keys.pop(key, None)
    for key in ("attn_implementation", "model_revision", "load_in_4bit", "load_in_8bit", "use_liger_kernel"):
        draft.keys.pop(key, None)
    for key in ("push_to_hub", "hub_model_id", "hub_strategy", "torch_compile", "tf32", "lora_target_modules"):
        draft.keys.pop(key, None)
    rows = folder / "rows.jsonl"
    tiny.preferences(40, conversational=True).to_json(str(rows))
    draft.keys |= {
        "model_name_or_path": tiny.saved_model(str(folder / "model")),
        "dataset_name": str(rows),
        "output_dir": str(folder / "out"),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "dataset_num_proc": 1,
    }
    if draft.keys.get("eval_strategy", "no") != "no":
        draft.keys["test_split_size"] = 0.25
    for key in draft.keys:
        draft.defaults.pop(key, None)
    return draft


@pytest.mark.features
@each
def test_its_trainer_is_built_on_a_tiny_model(tool: str, place: str, tmp_path: Path) -> None:
    found, draft = translation(tool, place)
    losses = draft.keys["loss_type"]
    arguments = parsed(found, on_a_tiny_model(draft, tmp_path), tmp_path)
    trainer = build_trainer(arguments)
    assert trainer.args.loss_type == ([losses] if isinstance(losses, str) else losses)
    for key in ("learning_rate", "max_length", "gradient_accumulation_steps", "num_train_epochs", "warmup_steps"):
        if key in draft.keys:
            assert getattr(trainer.args, key) == draft.keys[key], key
