"""Texts, ids, sections and groups are RewardBench's; vectors come from its own code, executed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tests.support import tiny
from tests.unit.scoring import rewardbench_cases as cases
from tests.unit.scoring.execute_rewardbench import VECTORS
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.scoring.rewardbench import best_of, sections
from trl_dpo_ext.scoring.rewardbench.rows import BenchRow, read_rows
from trl_dpo_ext.scoring.rewardbench.tokens import BenchTokenizer, tokenize_rows

EXECUTED = json.loads(VECTORS.read_text(encoding="utf-8"))


def _rows(*rows: dict[str, Any]) -> list[BenchRow]:
    return [read_rows(Dataset.from_list([row]))[0] for row in rows]


def _sides(tokenizer: Any, row: BenchRow) -> list[dict[str, list[int]]]:
    return [
        {"prompt": each.prompt.tolist(), "completion": each.completion.tolist()}
        for each in BenchTokenizer(tokenizer)(row).sequences
    ]


@pytest.mark.parametrize("name", cases.TOKENIZERS)
def test_token_ids_are_those_of_rewardbench(name: str) -> None:
    rows = _rows(*cases.ROWS[name])
    assert len(rows) == len(EXECUTED["tokens"][name])
    for row, theirs in zip(rows, EXECUTED["tokens"][name], strict=True):
        expected = [{part: cases.ids_of(ids) for part, ids in theirs[side].items()} for side in ("chosen", "rejected")]
        assert _sides(cases.TOKENIZERS[name](), row) == expected


def test_long_rows_are_said_to_be_cut() -> None:
    rows = _rows(*cases.ROWS["words"])
    found = [each.cut for each in tokenize_rows(tiny.tokenizer(), rows)]
    assert found == [False] * 6 + [True] * 3 + [False] * 2 + [True] * 2 + [False]


def test_the_longest_of_several_answers_decides_whether_the_prompt_is_cut() -> None:
    prompt = (" ".join(["long"] * 300),)
    whole, cut = (BenchTokenizer(tiny.tokenizer())(BenchRow(prompt, answers)) for answers in (
        ("yes", "no", "no"), ("yes", "no", " ".join(["no"] * 1900)),
    ))  # fmt: skip
    assert [len(each.prompt) for each in whole.sequences] == [302] * 3
    assert [len(each.prompt) for each in cut.sequences] == [128] * 3


def test_a_tokenizer_without_template_or_eos_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"chat template.*\n.*EOS token"):
        BenchTokenizer(tokenizer)


class TestLayouts:
    def test_all_layouts_of_one_pair_are_one_row(self) -> None:
        say, yes, no = ({"role": role, "content": text} for role, text in (
            ("user", "say"), ("assistant", "yes"), ("assistant", "no"),
        ))  # fmt: skip
        rows = _rows(
            {"prompt": "say", "chosen": "yes", "rejected": "no"},
            {"prompt": [say], "chosen": "yes", "rejected": "no"},
            {"prompt": [say], "chosen": [yes], "rejected": [no]},
            {"prompt": "say", "chosen": [yes], "rejected": [no]},
            {"chosen": [say, yes], "rejected": [say, no]},
            {"prompt": "anything", "chosen": [say, yes], "rejected": [say, no]},
            {"prompt": "say", "chosen": ["yes"], "rejected": ["no"], "num_correct": 1},
        )
        assert set(rows) == {BenchRow(("say",), ("yes", "no"))}

    def test_several_right_answers_come_first(self) -> None:
        row = {"prompt": "say", "chosen": ["yes", "si"], "rejected": ["no"], "num_correct": 2}
        assert _rows(row) == [BenchRow(("say",), ("yes", "si", "no"), right=2)]

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"prompt": "say", "chosen": "yes"}, "needs the columns 'chosen' and 'rejected'.*prompt, chosen"),
            ({"chosen": "yes", "rejected": "no"}, "there is no prompt.*Add a column 'prompt'"),
            ({"prompt": [], "chosen": "yes", "rejected": "no"}, "the prompt is empty"),
            (
                {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "chosen": "yes", "rejected": "no"},
                "even number of messages.*first in row 0 .2 messages.*Remove system messages",
            ),
            ({"prompt": "say", "chosen": ["yes"], "rejected": ["no"], "num_correct": 2}, "num_correct is not"),
            ({"prompt": "say", "chosen": None, "rejected": "no"}, "chosen is neither a text"),
            ({"prompt": "say", "chosen": "yes", "rejected": [""] * 0}, "rejected is neither a text"),
            ({"prompt": "say", "chosen": [{"role": "assistant", "content": "a"}] * 3, "rejected": "no"}, "several messages"),
            ({"prompt": [{"role": "user", "content": None}], "chosen": "yes", "rejected": "no"}, "a message has no text"),
        ],
    )  # fmt: skip
    def test_rows_that_do_not_fit_are_named(self, row: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            _rows(row)

    def test_all_rows_that_do_not_fit_are_counted(self) -> None:
        rows = Dataset.from_list([{"prompt": text, "chosen": "yes", "rejected": "no"} for text in ("say", None, None)])
        with pytest.raises(InputError, match="wrong in 2 of 3 rows, first in row 1"):
            read_rows(rows)

    def test_changed_roles_and_prompts_that_differ_are_told(self, caplog: pytest.LogCaptureFixture) -> None:
        user, assistant = ({"role": role, "content": role} for role in ("user", "assistant"))
        _rows({"prompt": [assistant, user, user], "chosen": "yes", "rejected": "no"})
        _rows({"chosen": [user, assistant], "rejected": [{"role": "user", "content": "else"}, assistant]})
        assert ["1 prompts have other roles" in caplog.text, "1 rejected conversations" in caplog.text] == [True, True]


class TestSections:
    @pytest.mark.parametrize("place", range(len(cases.accuracies())))
    def test_scores_are_those_of_rewardbench(self, place: int) -> None:
        found, executed = cases.accuracies()[place], EXECUTED["sections"][place]
        ours = sections.section_scores(found)
        assert {name: ours[name] or 0 for name in sections.SECTIONS} == pytest.approx(executed["sections"], rel=1e-12)
        assert sections.overall_score(ours) == (
            pytest.approx(executed["overall"], rel=1e-12) if "overall" in executed else None
        )

    def test_a_section_without_subsets_has_no_score(self) -> None:
        assert sections.section_scores({"hep-go": 0.5})["Chat"] is None

    def test_other_names_are_no_sections(self) -> None:
        assert sections.section_table(["capital", None], *(np.ones(2, int) for _ in range(3))) is None

    def test_names_of_which_half_are_rewardbenchs_give_a_table_that_says_what_is_absent(self) -> None:
        names = ["hep-go", "hep-go", "capital", None, "alpacaeval-easy"]
        chosen, rejected = np.array([1, 2, 3, 4, 5]), np.array([2, 2, 9, 9, 1])
        table = sections.section_table(names, np.array([True, False, True, True, True]), chosen, rejected)
        assert table is not None
        assert table["subsets"]["hep-go"] | {"interval": None} == {
            "n": 2, "correct": 1, "accuracy": 0.5, "interval": None, "longer_wins": 0.25,
        }  # fmt: skip
        assert table["sections"]["Chat"]["score"] == 1.0
        assert "hep-go" not in table["sections"]["Reasoning"]["absent"]
        assert len(table["sections"]["Reasoning"]["absent"]) == 6
        assert (table["overall"], table["other_subsets"]) == (None, ["capital"])


class TestSeveralAnswers:
    rows = cases.groups()

    def _columns(self, rows: list[dict[str, Any]]) -> list[list[Any]]:
        names = ("subset", "id", "scores", "num_correct")
        return [[np.array(row[name]) if name == "scores" else row[name] for row in rows] for name in names]

    def test_ties_at_the_top_share_the_credit_as_in_rewardbench(self) -> None:
        single = [(row, theirs) for row, theirs in zip(self.rows, EXECUTED["groups"]["best"], strict=True)
                  if row["subset"] == "Focus"]  # fmt: skip
        for row, theirs in single:
            table = best_of.best_of_table(*self._columns([row]))
            assert table["subsets"]["Focus"]["accuracy"] == pytest.approx(theirs, rel=1e-12)
        assert len({theirs for _, theirs in single}) == 4

    def test_the_score_of_ties_is_rewardbenchs(self) -> None:
        table = best_of.best_of_table(*self._columns(self.rows))
        assert table["subsets"]["Ties"]["score"] == pytest.approx(EXECUTED["groups"]["ties"], rel=1e-12)
        assert table["mean_of_subsets"] is None

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"id": "7"}, "neither 'ref:N' nor 'tied:N'.*'7'"),
            ({"id": None}, "neither 'ref:N' nor 'tied:N'"),
            ({"id": "ref:1"}, "occurs twice"),
            ({"id": "tied:0", "num_correct": 1}, "at least 2 right"),
            ({"num_correct": 2}, "at least 1 right and one wrong"),
            ({"num_correct": 0}, "at least 1 right and one wrong"),
        ],
    )
    def test_rows_of_ties_that_do_not_fit_are_named(self, changed: dict[str, Any], words: str) -> None:
        rows = [{"subset": "ties", "id": f"ref:{at}", "num_correct": 1, "scores": [1.0, 0.0]} for at in range(2)]
        rows[0] |= changed
        with pytest.raises(InputError, match=words):
            best_of.best_of_table(*self._columns(rows))

    def test_ties_without_a_couple_have_no_score(self) -> None:
        row = {"subset": "Ties", "id": "ref:1", "num_correct": 1, "scores": [1.0, 0.0]}
        table = best_of.best_of_table(*self._columns([row]))
        assert (table["subsets"]["Ties"]["score"], table["subsets"]["Ties"]["ref_accuracy"]) == (None, 1.0)
