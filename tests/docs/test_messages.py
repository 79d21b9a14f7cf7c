"""The page on troubleshooting has every text that users are told, and each says what to do."""

from __future__ import annotations

import textwrap

import pytest

from tools import messages
from tools.messages import Message, collect, read

ALL = collect()
TEXTS = {message.text for message in ALL}


def told(source: str) -> list[str]:
    return [text for text, _ in read(textwrap.dedent(source))]


@pytest.mark.parametrize(
    "source",
    [
        "raise InputError(f'--flag {file.name}: this is a folder. Name a file.')",
        "raise InputError(f'--flag {name}: this is' f' a folder. Name a file.') from None",
        "problems.append(f'--flag {name}: this is a folder. Name a file.')",
        "problems += [f'--flag {name}: this is a folder. Name a file.' for name in names]",
        "warnings.warn(f'--flag {name}: this is a folder. Name a file.', stacklevel=2)",
        "logger.warning(f'--flag {name}: this is a folder. Name a file.')",
        "def file_problem(name):\n    return f'--flag {name}: this is a folder. Name a file.'",
        "@_check\ndef pitfall(c):\n    yield f'--flag {name}: this is a folder. Name a file.'",
        "_FOLDER = '--flag <name>: this is a folder. Name a file.'\nraise InputError(_FOLDER)",
        "def f():\n    hint = f'--flag {name}: this is a folder. Name a file.' if x else ''\n    raise InputError(hint)",
    ],
)
def test_a_text_is_found_wherever_it_is_told(source: str) -> None:
    assert told(source) == ["--flag <name>: this is a folder. Name a file."]


@pytest.mark.parametrize(
    "source",
    [
        "print('This is not an error at all.')",
        "title = 'This is not an error at all.'",
        "def f():\n    '''Return what is wrong with this.'''\n    return 1",
        "raise InputError('too short')",
    ],
)
def test_other_texts_are_left_out(source: str) -> None:
    assert told(source) == []


def test_texts_of_each_kind_are_found_in_the_package() -> None:
    for text in (
        "warmup_ratio was replaced: use warmup_steps; a number below 1 is a ratio (warmup_steps: 0.1).",
        "No recipes found in <package>. Reinstall trl-dpo-ext.",
        "No dataset: set --dataset_name (a hub id, a folder or a file), or `datasets:` in the YAML.",
        "reference_free=True has no effect: <chosen> needs no reference. Remove it.",
    ):
        assert text in TEXTS
    assert len(ALL) > 600


WITHOUT_REMEDY = {
    "core/variant.py": 1,  # what is missing is named as the keyword to pass
    "data/lists/reading.py": 1,  # the remedy of a finding
    "data/layouts.py": 1,  # the doubt is a text with a remedy
    "data/tool_calls.py": 1,  # the error names it
    "data/validation.py": 1,  # the text names it
    "distributed/checkpoints.py": 1,  # says where the run goes on
    "estimate/pitfalls.py": 1,  # names the number that keeps the batch
    "inspection/pair_rules.py": 2,  # remedies of findings
    "inspection/pair_table.py": 1,  # a defect of ours
    "inspection/terminal.py": 1,  # a note
    "inspection/truncation_rules.py": 1,  # the remedy of a finding
    "migration/dataset_info.py": 2,  # what differs in effect
    "preflight.py": 1,  # a caution
    "reference/model/loading.py": 1,  # names the other way
    "reference/precompute/processes.py": 1,  # another process says it
    "reference/store/keys.py": 1,  # for callers from Python
    "reference/store/shared_memory.py": 1,  # handled inside
    "reports/page/samples.py": 1,  # a note
    "trainer.py": 1,  # the problem names it
}
"""Number of sentences without a remedy of their own, by module, and why."""


def test_every_message_says_what_to_do() -> None:
    found: dict[str, list[str]] = {}
    for message in ALL:
        if message.is_whole and not message.says_what_to_do:
            found.setdefault(message.module, []).append(message.text)
    wrong = {module: texts for module, texts in found.items() if len(texts) > WITHOUT_REMEDY.get(module, 0)}
    assert wrong == {}, "say what to do about it: which flag to set, what to rename, where to look"


def test_a_message_is_taken_apart_into_cause_and_remedy() -> None:
    message = Message(
        "ref_dtype=<dtype> is not possible (see a.b). Set --ref_dtype auto, or remove it.", "reference/x.py", 1
    )
    assert message.parts == ("ref_dtype=<dtype> is not possible (see a.b).", "Set --ref_dtype auto, or remove it.")
    assert message.options(frozenset({"ref_dtype", "beta"})) == ["ref_dtype"]
    assert message.topic == "References and the store"


def test_the_page_has_every_message_under_a_heading() -> None:
    page = messages.as_markdown(frozenset({"ref_store", "beta"}))
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == list(messages.TOPICS)
    for message in ALL:
        cause, remedy = message.parts if message.is_whole else (message.text, "")
        assert cause in page
        assert remedy in page
    assert "Options: `ref_store`." in page
