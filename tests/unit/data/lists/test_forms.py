"""However prompt, completions, and their order are written, the same lists are trained on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
from datasets import Dataset

from tests.support import runs
from trl_dpo_ext.data.findings import EVERY_ROW
from trl_dpo_ext.data.lists.reading import read_lists
from trl_dpo_ext.data.prepare import checked_datasets
from trl_dpo_ext.errors import InputError

SAID = ("yes it is", "no", "four legs", "paris", "blue sky")


def user(text: str, keys: Sequence[str] = ("role", "content")) -> dict[str, str]:
    return dict(zip(keys, ("user" if keys[0] == "role" else "human", text), strict=True))


def answer(text: str, keys: Sequence[str] = ("role", "content")) -> dict[str, str]:
    return dict(zip(keys, ("assistant" if keys[0] == "role" else "gpt", text), strict=True))


FROM = ("from", "value")
FORMS = {
    "text and messages": ("say", lambda text: [answer(text)]),
    "text and whole conversations": ("say", lambda text: [user("say"), answer(text)]),
    "messages and whole conversations": ([user("say")], lambda text: [user("say"), answer(text)]),
    "messages and texts": ([user("say")], lambda text: text),
    "one message each": ([user("say")], answer),
    "from and value": ([user("say", FROM)], lambda text: [answer(text, FROM)]),
    "from and value, one message each": ([user("say", FROM)], lambda text: answer(text, FROM)),
    "from and value, whole conversations": ("say", lambda text: [user("say", FROM), answer(text, FROM)]),
}


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_messages_in_every_form_make_the_same_rows(tmp_path: Any, size: int) -> None:
    scores, args = [float(size - at) for at in range(size)], runs.config(tmp_path)

    def rows(prompt: Any, form: Any) -> list[tuple[Any, ...]]:
        given = {"prompt": prompt, "completions": [form(text) for text in SAID[:size]], "scores": scores}
        made = checked_datasets({}, args, train_dataset=Dataset.from_list([given]))["train_dataset"]
        return [(row["prompt"], row["chosen"], row["rejected"]) for row in made]

    expected = rows([user("say")], lambda text: [answer(text)])
    assert expected[0] == ([user("say")], [answer(SAID[0])], [answer(SAID[1])])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert {name: rows(*form) for name, form in FORMS.items()} == dict.fromkeys(FORMS, expected)


def read(tmp_path: Any, row: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
    args = runs.config(tmp_path)
    found = read_lists(Dataset.from_list([{"prompt": "say ", **row}]), "train_dataset", args, EVERY_ROW, ())
    return [(each["chosen"], each["rejected"], each["list_scores"]) for each in found.rows]


@pytest.mark.parametrize("name", ["text", "content", "response", "answer", "completion"])
@pytest.mark.parametrize(("column", "values"), [("score", (2.0, 1.0)), ("rank", (1, 2)), ("overall_score", (2.0, 1.0))])
def test_completions_with_their_score_inside(tmp_path: Any, name: str, column: str, values: tuple) -> None:
    items = [{name: text, column: value, "model": "m"} for text, value in zip(SAID, values, strict=False)]
    ((better, worse, scores),) = read(tmp_path, {"completions": items})
    assert (better, worse) == SAID[:2]
    assert scores[0] > scores[1]


def test_the_index_of_the_best_may_be_a_whole_float_as_pandas_makes_it(tmp_path: Any) -> None:
    assert read(tmp_path, {"completions": [*SAID[:2]], "best": 1.0}) == [(*SAID[:2], [0.0, 1.0])]
    for wrong in (0.5, float("nan"), float("inf"), True):
        with pytest.raises(InputError, match=r"best is not the index.*Correct or filter these rows"):
            read(tmp_path, {"completions": [*SAID[:2]], "best": wrong})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"scores": ["2", "1"]}, r"a value of scores is not a number.*\('2'\)\. Convert it; give None for none"),
        ({"scores": [2.0]}, "scores does not have one value for each completion.* Give None for none"),
        ({"completions": '["yes", "no"]', "scores": [2.0, 1.0]}, "completions is not a list.* Give a list of texts"),
        ({"completions": [], "scores": []}, "no list is left to train on. 1 with fewer than two different completions"),
        (
            {"completions": [answer("yes", FROM), answer("", FROM)], "scores": [2.0, 1.0]},
            "a completion is empty.*Filter",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_remedy(tmp_path: Any, row: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(tmp_path, {"completions": [*SAID[:2]], **row})
