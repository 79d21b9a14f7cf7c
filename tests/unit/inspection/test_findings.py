"""Every finding of `inspect`: data that has it, and data that nearly has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import processors

from tests.support import runs, tiny
from trl_dpo_ext import inspect_preferences
from trl_dpo_ext.data.findings import NAMES

PROMPT, LONG = "say ", "well let me think about that it is a very good question"
ROW = {"prompt": PROMPT, "chosen": "yes it is", "rejected": "no"}


def said(text: str, role: str = "assistant") -> dict[str, str]:
    return {"role": role, "content": text}


MESSAGES = {"prompt": [said("say", "user")], "chosen": [said("yes it is")], "rejected": [said("no")]}


def row(**values: Any) -> dict[str, Any]:
    return {**ROW, **values}


def talk(**values: Any) -> dict[str, Any]:
    return {**MESSAGES, **values}


def different(count: int, **values: Any) -> list[dict[str, Any]]:
    """Rows that differ in their prompts."""
    words = tiny.SENTENCE.split()
    return [row(prompt=f"{words[at % 10]} {words[at // 10]} {words[at % 7]} ", **values) for at in range(count)]


def tokenizer(**changes: Any) -> Any:
    tiny_one = tiny.tokenizer()
    if changes.pop("bos", False):
        tiny_one.bos_token = "<user>"
        first = processors.TemplateProcessing(single="<user> $A", special_tokens=[("<user>", tiny_one.bos_token_id)])
        tiny_one.backend_tokenizer.post_processor = first
    for name, value in changes.items():
        setattr(tiny_one, name, value)
    return tiny_one


def inspect(rows: list[dict], folder: Any, test: list[dict] | None = None, token: Any = None, **settings: Any) -> Any:
    data = {"train": Dataset.from_list(rows)} | ({"test": Dataset.from_list(test)} if test else {})
    return inspect_preferences(data, token or tokenizer(), runs.config(folder, **settings))


@dataclass
class Case:
    """Rows that have a finding in some places, and rows that nearly have it."""

    name: str
    rows: list[dict]
    at: list[int]
    near: list[dict]
    level: str = "warning"
    settings: dict = field(default_factory=dict)
    near_settings: dict | None = None
    test: list[dict] | None = None
    near_test: list[dict] | None = None
    says: str = ""
    token: dict = field(default_factory=dict)
    near_token: dict | None = None


DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ date_string + ' ' }}" + tiny.CHAT_TEMPLATE
)
KEEP_END = {"truncation_mode": "keep_end"}
SWAPPED = row(chosen="no", rejected="yes it is")
TEN = "what is the capital of france paris well let me"
NOT_TEN = "what is the capital of france paris well let think"
TWELVE = [row(prompt="france "), *different(11)]
CASES = [
    Case("layout", [{"prompt": "a", "answer": "b"}], [], [ROW], "error", says="has no column 'chosen'"),
    Case(
        "layout",
        [row(chosen=["yes", "no"])],
        [],
        [row(chosen=["yes"])],
        "error",
        says="chosen is a list of several answers",
    ),
    Case("empty_answer", [row(chosen="")], [], [row(chosen="yes")], "error", says="the chosen completion is empty"),
    Case("empty_answer", [ROW, row(rejected=" ")], [1], [ROW, row(rejected="no")]),
    Case(
        "all_dropped",
        [ROW] * 2,
        [],
        [ROW, row(prompt="say yes ")],
        "error",
        {"max_length": 1},
        {"max_length": 2},
        says="the shortest prompt has 1 tokens",
    ),
    Case(
        "dropped",
        [ROW, row(prompt="say yes no ")],
        [1],
        [ROW, row(prompt="say yes ")],
        settings={"max_length": 3},
        says="1 of 2 rows dropped",
    ),
    Case(
        "prompt_lost",
        [row(prompt="say yes no four ", chosen="yes no")],
        [0],
        [row(prompt="say yes no four ", chosen="yes no")],
        settings={"max_length": 4, **KEEP_END},
        near_settings={"max_length": 5, **KEEP_END},
    ),
    Case(
        "identical_after_truncation",
        [ROW, row(chosen="yes it is blue", rejected="yes it is four")],
        [1],
        [ROW, row(chosen="yes it is blue", rejected="yes it is four")],
        settings={"max_length": 4},
        near_settings={"max_length": 5},
        says="in 1 of 2 rows",
    ),
    Case("identical", [ROW, row(rejected="yes it is")], [1], [ROW, row(rejected="yes it")]),
    Case(
        "loss_column",
        [row(margin=0.0), *different(1, margin=0.0)],
        [],
        [row(margin=0.0), *different(1, margin=0.5)],
        settings={"loss_type": "margin"},
        says="margin is 0 in every row, so the loss margin is DPO",
    ),
    Case("identical_after_truncation", [row(chosen="yes  it", rejected="yes it")], [0], [ROW], says="the same tokens"),
    Case("near_identical", [row(chosen=TEN, rejected=NOT_TEN)], [0], [row(chosen=TEN[8:], rejected=NOT_TEN[8:])]),
    Case(
        "contradictory", [*different(3), ROW, SWAPPED], [3, 4], [*different(3), ROW, row(chosen="no", rejected="yes")]
    ),
    Case("duplicate_row", [ROW, *different(3), ROW], [4], [ROW, *different(3), row(chosen="yes it")]),
    Case(
        "many_per_prompt",
        [row(chosen=word) for word in tiny.SENTENCE.split()[:9]],
        [*range(9)],
        [row(chosen=word) for word in tiny.SENTENCE.split()[:8]],
        "note",
        says="9 of 9 rows share their prompt with at least 8 others (1 prompt, at most 9 rows each)",
    ),
    Case("train_test_overlap", [ROW], [1], [ROW], test=[*different(1), ROW], near_test=different(2)),
    Case(
        "answer_cut",
        [ROW],
        [0],
        [ROW],
        settings={"max_length": 4},
        near_settings={"max_length": 5},
        says="chosen in 1, rejected in 0",
    ),
    Case("eos_cut", [ROW], [0], [ROW], settings={"max_length": 4}, near_settings={"max_length": 5}, says="100 %"),
    Case("double_eos", [ROW, row(chosen="yes <eos> ")], [1], [ROW, row(chosen="yes <eos>")]),
    Case("special_token_in_text", [ROW, row(chosen="yes <eos> no")], [1], [ROW, row(chosen="yes eos no")]),
    Case("special_token_in_text", [talk(prompt=[said("say <eos>", "user")])], [0], [MESSAGES], says="a message"),
    Case("special_token_in_text", [row(prompt="say <eos> ")], [0], [ROW], "note", says="the prompt"),
    Case("prompt_not_prefix", [row(prompt="say", chosen="yes"), ROW], [0], [row(prompt="say ", chosen="yes")]),
    Case(
        "prompt_guessed",
        [{"chosen": "say yes", "rejected": "say no"}],
        [0],
        [ROW],
        "note",
        says="the characters with which both texts begin",
    ),
    Case(
        "prompt_guessed",
        [{"chosen": "yes it", "rejected": "no it"}],
        [0],
        [{"chosen": "say yes", "rejected": "no it", "prompt": "say "}],
        says="no common start",
    ),
    Case("prompt_repeated", [row(chosen="say yes", rejected="say no")], [0], [row(chosen="say yes", rejected="no")]),
    Case(
        "last_turn",
        [MESSAGES, talk(chosen=[said("yes"), said("well", "user")])],
        [1],
        [MESSAGES, talk(chosen=[said("yes"), said("well", "tool"), said("no")])],
    ),
    Case(
        "prompt_ends_open",
        [talk(prompt=[said("say", "user"), said("well")])],
        [0],
        [talk(prompt=[said("say", "user"), said("well"), said("say", "user")])],
    ),
    Case(
        "one_token_answer", [row(chosen="yes it", rejected="no")], [0], [row(chosen="yes it", rejected="no no")], "note"
    ),
    Case("first_token_unscored", [row(prompt="")], [0], [ROW], "note"),
    Case("length_bias", different(100), [*range(100)], different(99), says="the longer answer is the chosen one"),
    Case("unused_column", [row(source="web")], [], [ROW], "note", says="source"),
    Case("unicode", [ROW, row(chosen="yes \ufffd it")], [1], [ROW, row(chosen="yes é it")]),
    Case("unicode", [row(chosen="donâ€™t it")], [0], [row(chosen="don’t it")], says="cp1252"),
    Case("unicode", [row(chosen="NÃ©e it")], [0], [row(chosen="NÃO it")], says="cp1252"),
    *(
        Case("unicode", [row(chosen=wrong)], [0], [row(chosen=right)], says="cp1252")
        for wrong, right in (
            ("Ãœber allem", "“AMANHÔ"),
            ("Ã‰cole", "IRMÃ’s"[:4] + "”."),
            ("ESPAÃ‘A", "âge pâle"),
            ("10Â°", "10°"),
            ("Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "ESPAÑ… SEÑOR"),
            ("ðŸ˜€", "ð þ"),
        )
    ),
    Case("unicode", [row(chosen="a\x00b it")], [0], [row(chosen="ab it")], says="NUL"),
    Case("unicode", [row(chosen="a\u202eb it")], [0], [row(chosen="a\u200db it")], "note", says="bidirectional"),
    Case("unicode", [row(chosen="a\u200bb it")], [0], [row(chosen="مرحبا it")], "note", says="zero-width"),
    Case("unicode", [row(chosen="e\u0301 it")], [0], [row(chosen="é it")], "note", says="NFC"),
    Case(
        "script_differs", [row(chosen="да нет", rejected="yes no")], [0], [row(chosen="42 да", rejected="нет")], "note"
    ),
    Case(
        "script_differs",
        [row(chosen="日本語 です", rejected="yes no")],
        [0],
        [row(chosen="これは日本", rejected="日本語")],
        "note",
    ),
    Case(
        "long_tail",
        [*different(20), row(chosen="yes " * 30)],
        [20],
        [*different(20), row(chosen="yes " * 15)],
        "note",
        says="longer than 4 times the median",
    ),
    Case(
        "template_drops",
        [MESSAGES, talk(chosen=[{**said(""), "reasoning_content": "yes"}])],
        [1],
        [MESSAGES, talk(chosen=[{**said("it"), "reasoning_content": "yes"}])],
    ),
    Case(
        "dated_template",
        [MESSAGES],
        [],
        [talk(chat_template_kwargs={"date_string": "26 Jul 2024"})],
        "note",
        says="change every day",
        token={"chat_template": DATED},
    ),
    Case(
        "dated_template",
        [MESSAGES],
        [],
        [MESSAGES],
        "note",
        token={"chat_template": "{{ strftime_now('%Y') }}" + tiny.CHAT_TEMPLATE},
        near_token={"chat_template": "{% set unused = strftime_now %}" + tiny.CHAT_TEMPLATE},
    ),
    Case(
        "ties",
        [{**ROW, "winner": "tie"}, {**ROW, "winner": "1"}],
        [0],
        [{**ROW, "winner": "0"}, {**ROW, "winner": "1"}],
        settings={"dataset_columns": {"a": "chosen", "b": "rejected", "winner": "winner", "winner_is_b": "1"}},
    ),
    Case(
        "torn",
        [{"chosen": "say yes please", "rejected": "say yes"}, {"chosen": "say yes", "rejected": "say no"}],
        [0],
        [{"chosen": "say yes please", "rejected": "say yes no"}],
    ),
]


def has(result: Any, case: Case) -> list[dict]:
    """The findings of a case, by name, level and words."""
    return [
        found
        for found in result.data["findings"]
        if (found["name"], found["level"]) == (case.name, case.level) and case.says in found["sentence"]
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_data_has_the_finding_and_its_near_miss_has_not(tmp_path: Any, case: Case) -> None:
    result = inspect(case.rows, tmp_path, case.test, tokenizer(**case.token), **case.settings)
    (found,) = has(result, case)
    assert found["rows"] == case.at[:5]
    assert found["sentence"][-1] not in ".:;,"
    if case.at:
        assert found["count"] == len(case.at)
    settings = case.settings if case.near_settings is None else case.near_settings
    token = case.token if case.near_token is None else case.near_token
    near = inspect(case.near, tmp_path, case.near_test, tokenizer(**token), **settings)
    assert not has(near, case)


def test_eos_that_the_tokenizer_does_not_know_is_missing(tmp_path: Any) -> None:
    """A template that ends a turn with another token than EOS."""
    (found,) = [
        each for each in inspect([MESSAGES], tmp_path, token=tokenizer(eos_token="<pad>")).data["findings"]
        if each["name"] == "missing_eos"
    ]  # fmt: skip
    assert found["level"] == "warning"
    assert "'<pad>'" in found["sentence"]
    assert "missing_eos" not in names(inspect([MESSAGES], tmp_path))
    # The end of a turn is known from the generation configuration, too.
    data = Dataset.from_list([MESSAGES])
    known = inspect_preferences(data, tokenizer(eos_token="<pad>"), runs.config(tmp_path), eos_ids=[2])
    assert "missing_eos" not in names(known)


def test_a_tokenizer_without_eos_is_named(tmp_path: Any) -> None:
    (found,) = [
        each for each in inspect([MESSAGES] * 2, tmp_path, token=tokenizer(eos_token=None)).data["findings"]
        if each["name"] == "missing_eos"
    ]  # fmt: skip
    assert (found["level"], found["count"]) == ("warning", 2)
    assert "the tokenizer has no EOS token" in found["sentence"]
    (refused,) = inspect([ROW], tmp_path, token=tokenizer(eos_token=None)).data["findings"]
    assert refused["level"] == "error"
    known = inspect_preferences(
        Dataset.from_list([MESSAGES]), tokenizer(eos_token=None), runs.config(tmp_path), eos_ids=[2]
    )
    assert "missing_eos" not in names(known)


def test_padding_with_eos_changes_nothing(tmp_path: Any) -> None:
    plain = inspect([MESSAGES, ROW and MESSAGES], tmp_path)
    padded = inspect([MESSAGES, MESSAGES], tmp_path, token=tokenizer(pad_token="<eos>"))
    assert padded.data["findings"] == plain.data["findings"]


def test_bos_that_is_written_beside_the_tokenizers_own_is_double(tmp_path: Any) -> None:
    rows = [row(prompt="<user> say ", chosen="yes it")]
    assert "double_bos" in names(inspect(rows, tmp_path, token=tokenizer(bos=True)))
    assert "double_bos" not in names(inspect(rows, tmp_path))
    assert "double_bos" not in names(inspect([ROW], tmp_path, token=tokenizer(bos=True)))


def test_a_template_that_opens_turns_with_bos_is_sound(tmp_path: Any) -> None:
    """SmolLM2's BOS is its start of a turn."""
    token = tokenizer()
    token.bos_token = "<user>"
    assert "double_bos" not in names(inspect([MESSAGES], tmp_path, token=token))


def test_what_the_template_writes_behind_eos_is_a_note(tmp_path: Any) -> None:
    token = tokenizer()
    token.chat_template = tiny.CHAT_TEMPLATE.replace("' <eos> '", "' <eos> please '")
    (found,) = [
        f for f in inspect([MESSAGES], tmp_path, token=token).data["findings"] if f["name"] == "scored_after_eos"
    ]
    assert (found["level"], found["count"]) == ("note", 1)
    assert "scored in 2 answers: 'please' in 2" in found["sentence"]
    assert "scored_after_eos" not in names(inspect([MESSAGES], tmp_path))


def test_bos_scores_the_first_token_of_an_answer_without_a_prompt(tmp_path: Any) -> None:
    rows = [row(prompt="", chosen="yes it", rejected="no it")]
    assert "first_token_unscored" in names(inspect(rows, tmp_path))
    assert "first_token_unscored" not in names(inspect(rows, tmp_path, token=tokenizer(bos=True)))


def test_a_few_cut_answers_are_a_note(tmp_path: Any) -> None:
    long = row(chosen="yes it is it", rejected="no no no no")
    few = [long, *different(39, chosen="yes", rejected="no")]
    levels = {f["name"]: f["level"] for f in inspect(few, tmp_path, max_length=6).data["findings"]}
    assert "answer_cut" not in levels
    levels = {f["name"]: f["level"] for f in inspect(few, tmp_path, max_length=5).data["findings"]}
    assert (levels["answer_cut"], levels["eos_cut"]) == ("note", "note")


def test_sound_data_has_no_finding(tmp_path: Any) -> None:
    rows = [
        row(prompt="say ", chosen="yes it is", rejected="no no please"),
        row(prompt="say that ", chosen="no sky", rejected="let me think"),
    ]
    assert names(inspect(rows, tmp_path)) == []
    talks = [
        talk(chosen=[said(each["chosen"])], rejected=[said(each["rejected"])], prompt=[said(each["prompt"], "user")])
        for each in rows
    ]
    assert names(inspect(talks, tmp_path)) == []


def test_ignored_findings_are_listed_as_such(tmp_path: Any) -> None:
    data = Dataset.from_list([ROW, ROW])
    result = inspect_preferences(data, tokenizer(), runs.config(tmp_path), ignore=["duplicate_row"])
    (found,) = [f for f in result.data["findings"] if f["name"] == "duplicate_row"]
    assert found["ignored"]
    assert result.worst() == "note"
    of_the_run = inspect_preferences(data, tokenizer(), runs.config(tmp_path, ignore_findings=["duplicate_row"]))
    assert of_the_run.data["findings"] == result.data["findings"]


def test_every_finding_is_tried() -> None:
    apart = {"missing_eos", "double_bos", "scored_after_eos"}
    apart |= {
        "lists_left_out",
        "answers_unscored",
        "answers_contradictory",
        "answers_repeated",
        "lists_as_pairs",
        "not_gathered",
    }  # data/lists/test_reading.py
    assert {case.name for case in CASES} | apart == set(NAMES)


def names(result: Any) -> list[str]:
    return [found["name"] for found in result.data["findings"]]


@pytest.mark.parametrize("spelled", ["caf\u00e9", "cafe\u0301"])
def test_the_same_text_in_two_unicode_forms_is_one(tmp_path: Any, spelled: str) -> None:
    rows = [ROW, row(chosen="caf\u00e9"), row(chosen=spelled), row(chosen="cafe")]
    found = [each["rows"] for each in inspect(rows, tmp_path).data["findings"] if each["name"] == "duplicate_row"]
    assert found == [[2]]
