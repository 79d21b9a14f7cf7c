"""Write the demo's questions with four answers each: right or wrong, short or padded, in lists with scores.

The right answers are those of the pairs in ``preferences.py``. The wrong ones state what another fact of the topic is
about, in the same words and with the same padding, so that neither the length nor the wording of an answer says
whether it is right. That other fact is a held-out one just where the question is: what is trained on as a right answer
is a wrong one to other questions as often, and what is held out was neither.

``python -m demo.lists FOLDER`` writes ``train.jsonl`` and ``test.jsonl``; with ``--dataset_name FOLDER``, the demo's
recipe trains on them with ``--loss_type pl --loss_weights 1``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.preferences import Question, make_questions

SEED = 11
SCORES = {"right, short": 10.0, "right, padded": 7.0, "wrong, short": 4.0, "wrong, padded": 1.0}
"""Kind of answer -> its score, the best first."""


@dataclass(frozen=True)
class AnswerList:
    """A question with one answer of each kind."""

    question: Question
    answers: dict[str, str]
    """By kind, in the order in which a row lists them."""

    def record(self) -> dict[str, object]:
        """Return the list in conversational format, with the fact and the kinds of answers in columns beside."""
        return {
            "prompt": [{"role": "user", "content": self.question.text}],
            "completions": [[{"role": "assistant", "content": text}] for text in self.answers.values()],
            "scores": [SCORES[kind] for kind in self.answers],
            "kinds": list(self.answers),
            "answer": self.question.fact[1],
            "topic": self.question.topic.name,
        }


def answer(question: Question, others: Sequence[Question], chance: random.Random) -> AnswerList:
    """Answer a question in all ways, listed in random order; wrong answers are right ones to `others`."""
    right = question.fact[1]
    wrong = chance.choice(sorted({other.fact[1] for other in others if other.topic == question.topic} - {right}))
    texts = (question.direct(right), question.padded(right), question.direct(wrong), question.padded(wrong))
    listed = list(zip(SCORES, texts, strict=True))
    chance.shuffle(listed)
    return AnswerList(question, dict(listed))


def make_lists() -> tuple[list[AnswerList], list[AnswerList]]:
    """Return the lists to train on and the held-out ones; they are the same in every call."""
    return answer_all(random.Random(SEED))


def answer_all(chance: random.Random) -> tuple[list[AnswerList], list[AnswerList]]:
    """Draw lists for the questions to train on and for the held-out ones."""
    train, held_out = ([answer(each, part, chance) for each in part] for part in make_questions())
    return train, held_out


def write(folder: Path) -> tuple[int, int]:
    """Write ``train.jsonl`` and ``test.jsonl`` and return how many lists each holds."""
    made = make_lists()
    folder.mkdir(parents=True, exist_ok=True)
    for name, lists in zip(("train", "test"), made, strict=True):
        text = "".join(json.dumps(each.record(), ensure_ascii=False) + "\n" for each in lists)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return len(made[0]), len(made[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files into the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m demo.lists", description="Write the lists of the demo.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="gets train.jsonl and test.jsonl")
    folder = parser.parse_args(argv).folder
    print("wrote {} training lists and {} held-out lists to {}".format(*write(folder), folder))


if __name__ == "__main__":
    main()
