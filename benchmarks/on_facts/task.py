"""Prepares a seed's task: a language model that knows the facts about half, and the lists of the demo's generator.

The model is trained from scratch on answers of all kinds to all questions, held-out ones included: mostly padded, and
more often right than not. So it can answer, and what is held out is which answers are preferred.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from on_sentiment.language_model import fit, tokenizer_of, untrained

from demo.facts import TOPICS
from demo.lists import SCORES, AnswerList, answer, answer_all
from demo.preferences import HELD_OUT_PADDING, TRAIN_PADDING, ask

SHARES = {"right, short": 0.15, "right, padded": 0.45, "wrong, short": 0.1, "wrong, padded": 0.3}
"""Of the texts that the language model learns, by kind of answer."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the task consists of; another value is another task, with runs of its own."""

    hidden: int = 64
    layers: int = 2
    vocabulary: int = 1024
    texts_per_fact: int = 32
    epochs: float = 2.0
    start_rate: float = 5e-3

    @property
    def fingerprint(self) -> str:
        """Eight hex digits of the settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Row:
    """A question with its answers, as texts."""

    prompt: str
    completions: list[str]
    """Each begins with a space."""
    scores: list[float]
    answer: str
    """The fact."""
    direct: tuple[str, ...]
    """All wordings of the answer that is right and short."""


@dataclass(frozen=True)
class Task:
    """A seed's lists, and the start that all seeds share."""

    start: Path
    train: list[Row]
    held_out: list[Row]


def row_of(made: AnswerList) -> Row:
    """Return a list as texts, without the messages of a chat."""
    asked, y = made.question, made.question.fact[1]
    direct = tuple(replace(asked, wording=wording).direct(y) for wording in asked.topic.answers)
    completions = [f" {text}" for text in made.answers.values()]
    return Row(asked.text, completions, [SCORES[kind] for kind in made.answers], y, direct)


def prepare(folder: Path, settings: Settings, seed: int) -> Task:
    """Draw the lists of a seed, and train the start unless the folder has it."""
    train, held_out = ([row_of(made) for made in part] for part in answer_all(random.Random(seed)))
    start = folder / f"task-{settings.fingerprint}" / "start"
    if not start.is_dir():
        _make_start(start, settings)
    return Task(start, train, held_out)


def texts(per_fact: int) -> list[str]:
    """Draw texts of a question and an answer, as many for each fact, by the shares of the kinds."""
    chance = random.Random(1000)
    kinds, shares = zip(*SHARES.items(), strict=True)
    found = []
    for topic in TOPICS:
        for fact in topic.facts:
            for kind in chance.choices(kinds, shares, k=per_fact):
                padding = chance.choice((TRAIN_PADDING, HELD_OUT_PADDING))
                question = ask(topic, fact, padding, chance)
                others = [replace(question, fact=other) for other in topic.facts]
                found.append(f"{question.text} {answer(question, others, chance).answers[kind]}")
    chance.shuffle(found)
    return found


def _make_start(start: Path, settings: Settings) -> None:
    learned: Sequence[str] = texts(settings.texts_per_fact)
    tokenizer: Any = tokenizer_of(learned, settings.vocabulary)
    model = untrained(tokenizer, settings.hidden, settings.layers)
    fit(model, tokenizer, learned, settings.epochs, settings.start_rate)
    unfinished = start.with_name(f"{start.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(start)
