"""The arguments of tool calls reach the chat template in the form that it prints."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from trl.trainer import dpo_trainer

from tests.support import runs, tiny
from trl_dpo_ext.data.prepare import checked_datasets
from trl_dpo_ext.data.tool_calls import argument_form, fit_tool_calls
from trl_dpo_ext.errors import InputError

from .listing import Kind

tools = Kind("Tool calls")

HEAD = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + (m['content'] or '') + ' ' }}{% for c in m.tool_calls or [] %}"
)
TAIL = "{% endfor %}{{ '<eos> ' if m['role'] == 'assistant' else '' }}{% endfor %}"
PRINTS = {
    "mapping": "{{ c.function.name + c.function.arguments | tojson }}",
    "text": "{{ c.function.name + c.function.arguments }}",
    None: "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}",
    "nothing": "{{ c.function.name }}",
}
"""Qwen2.5 and Llama 3; DeepSeek; Qwen3; none that is known."""


def tokenizer(form: str | None) -> Any:
    found = tiny.tokenizer()
    found.chat_template = HEAD + PRINTS[form] + TAIL
    return found


def call(arguments: Any, nested: bool = True) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": function} if nested else function]}
    return message


def row(arguments: Any, **more: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": "say yes"}]
    return {"prompt": prompt, "chosen": [call(arguments, **more)], "rejected": [{"role": "assistant", "content": "no"}]}


def loaded(*rows: dict[str, Any], **how: Any) -> Dataset:
    return Dataset.from_list(list(rows), **how)


def arguments_of(dataset: Any) -> list[Any]:
    calls = [found["chosen"][0]["tool_calls"][0] for found in dataset]
    return [(c.get("function") or c)["arguments"] for c in calls]


@pytest.mark.parametrize("form", ["mapping", "text", None])
def test_the_form_that_a_template_prints(form: str | None) -> None:
    assert argument_form(tokenizer(form)) == form


def test_a_template_that_prints_no_calls_takes_any_form() -> None:
    assert argument_form(tiny.tokenizer()) is None
    assert argument_form(tokenizer("nothing")) is None
    without = tiny.tokenizer()
    without.chat_template = None
    assert argument_form(without) is None


TEXT, MAPPING = '{"city": "paris", "n": 2}', {"city": "paris", "n": 2}


@pytest.mark.parametrize("nested", [True, False], ids=["function", "flat"])
@pytest.mark.parametrize(
    ("form", "given", "expected"),
    [
        tools.case(
            "arguments as JSON text, and a template that prints a mapping (Qwen2.5, Llama 3)",
            "they become mappings; TRL trains on escaped text",
            "mapping",
            TEXT,
            MAPPING,
        ),
        tools.case(
            "arguments as mappings, and a template that prints text (DeepSeek)",
            "they become JSON text; TRL fails, or trains on Python's spelling",
            "text",
            MAPPING,
            TEXT,
        ),
        tools.case("no arguments, as empty text", "an empty mapping", "mapping", "", {}),
        tools.case("arguments in the form that the template prints", "they stay", "mapping", MAPPING, MAPPING),
        tools.case("a template that prints both forms (Qwen3)", "they stay", None, TEXT, TEXT),
    ],
)
def test_arguments_reach_the_template_in_its_form(form: str | None, given: Any, expected: Any, nested: bool) -> None:
    data = loaded(row(given, nested=nested))
    found = fit_tool_calls(data, tokenizer(form), "train_dataset")
    assert arguments_of(found) == [expected]
    assert (found is data) == (given == expected)
    assert fit_tool_calls(found, tokenizer(form), "train_dataset") is found


@tools("arguments in both forms, row by row", "each row is converted")
def test_rows_in_both_forms() -> None:
    data = loaded(row(TEXT), row(MAPPING), on_mixed_types="use_json")
    assert arguments_of(fit_tool_calls(data, tokenizer("mapping"), "d")) == [MAPPING, MAPPING]
    assert arguments_of(fit_tool_calls(data, tokenizer("text"), "d")) == [TEXT, TEXT]


@tools("mappings of other keys in each row, which `datasets` fills up with None", "those keys are dropped")
def test_keys_that_datasets_has_added_are_dropped() -> None:
    data = loaded(row({"city": "paris"}), row({"n": {"a": 2}}), row({"n": {"b": 3}}))
    assert arguments_of(data)[0] == {"city": "paris", "n": None}
    assert arguments_of(fit_tool_calls(data, tokenizer("mapping"), "d")) == [
        {"city": "paris"},
        {"n": {"a": 2}},
        {"n": {"b": 3}},
    ]


def test_a_none_that_was_meant_stays() -> None:
    data = loaded(row({"city": None}), row("text"), on_mixed_types="use_json").select([0])
    assert fit_tool_calls(data, tokenizer("mapping"), "d") is data


@tools(
    "arguments that are no JSON object, where the template prints a mapping", "error with the count and the first row"
)
@pytest.mark.parametrize("text", ["city=paris", "[1]", '"paris"'])
def test_arguments_that_are_no_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(dpo_trainer, "create_model_from_path", None)
    data = loaded(row(TEXT), row(text), row(text))
    with pytest.raises(InputError, match=r"train_dataset: .* not a JSON object; wrong in 2 of 3 rows, first in row 1"):
        runs.trainer(tmp_path, model=str(tmp_path), train_dataset=data, processing_class=tokenizer("mapping"))


def test_training_and_evaluation_read_what_was_meant(tmp_path: Path) -> None:
    data, parts = loaded(*[row(TEXT)] * 4), loaded(*[row(MAPPING)] * 4)
    given = {"processing_class": tokenizer("mapping"), "per_device_train_batch_size": 2}
    run = runs.trainer(tmp_path, train_dataset=data, eval_dataset={"a": data}, **given)
    meant = runs.trainer(tmp_path, train_dataset=parts, **given)
    assert run.train_dataset["chosen_ids"][0] == meant.train_dataset["chosen_ids"][0]
    assert run.eval_dataset["a"]["chosen_ids"][0] == meant.train_dataset["chosen_ids"][0]
    assert run.evaluate(data)["eval_loss"] == run.evaluate(parts)["eval_loss"]


def test_a_stream_is_converted_as_it_comes() -> None:
    stream = IterableDataset.from_generator(lambda: iter([row(TEXT), row("city")]))
    rows = iter(fit_tool_calls(stream, tokenizer("mapping"), "train_dataset"))
    assert next(rows)["chosen"][0]["tool_calls"][0]["function"]["arguments"] == MAPPING
    with pytest.raises(InputError, match=r"train_dataset: the arguments of a tool call .* in a streamed row"):
        next(rows)


@tools("answers that are tool calls alone, and a template that prints none", "warning with the count")
def test_tool_calls_that_are_not_printed_are_told(tmp_path: Path) -> None:
    data = loaded(*[row(json.dumps({"n": n})) for n in range(3)], {**row(TEXT), "chosen": row(TEXT)["rejected"]})
    with pytest.warns(UserWarning, match=r"in 3 of 4 rows an answer is in .*tool_calls alone"):
        runs.trainer(tmp_path, train_dataset=data)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*an answer is in")
        runs.trainer(tmp_path, train_dataset=data, processing_class=tokenizer("mapping"))


PLAIN = {**row(MAPPING), "chosen": [{"role": "assistant", "content": "yes"}]}


@tools("`chat_template_kwargs` as JSON text", "a mapping; TRL fails")
def test_kwargs_of_the_template_as_json_text(tmp_path: Path) -> None:
    data = loaded({**PLAIN, "chat_template_kwargs": '{"thinking": true}'}, {**PLAIN, "chat_template_kwargs": ""})
    found = checked_datasets({}, runs.config(tmp_path), train_dataset=data)["train_dataset"]
    assert found["chat_template_kwargs"][:] == [{"thinking": True}, {}]
    broken = loaded({**PLAIN, "chat_template_kwargs": "{}"}, {**PLAIN, "chat_template_kwargs": "thinking"})
    with pytest.raises(InputError, match=r"chat_template_kwargs holds text .*; wrong in 1 of 2 rows, first in row 1"):
        checked_datasets({}, runs.config(tmp_path), train_dataset=broken)
