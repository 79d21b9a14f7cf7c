"""Write the demo's preference set: a short, direct, correct answer is preferred over the same answer, padded.

The set is generated from the facts in ``facts.py`` with a fixed seed, so that every machine gets the same bytes. Facts,
prompts and padding phrases are divided between training and held-out pairs: held-out pairs ask about facts that are not
trained on, and are padded with phrases that are not trained on, so that an improvement there is not memorization.

``python -m demo.preferences`` writes ``demo/data/train.jsonl`` and ``demo/data/test.jsonl``.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from demo.facts import TOPICS, Topic

DATA = Path(__file__).parent / "data"
SEED = 7
EVERY = 6
"""One fact in six is held out."""

# Where the padding goes: {a} is the direct answer, {q} the question; each other name is a list of phrases below.
SHAPES = (
    "{opener} {a}",
    "{filler} {a}",
    "{restate} {a}",
    "{a} {closer}",
    "{a} {repeat} {closer}",
    "{opener} {a} {repeat}",
    "{opener} {a} {closer}",
    "{filler} {a} {repeat}",
    "{a} {filler}",
)

TRAIN_PADDING = {
    "opener": (
        "That is a great question, and I am glad that you asked it.",
        "Well, let me think about this for a moment before I answer.",
        "Thank you for reaching out with this very interesting question!",
        "Sure, I would be more than happy to help you with that today.",
        "Okay, so, here is what I can tell you about what you asked.",
    ),
    "filler": (
        "There are many things that one could say about this topic, and many people have said them.",
        "This is something that a lot of people wonder about at one time or another.",
        "As you may or may not already know, this kind of thing comes up quite often in daily life.",
        "It is worth noting that this is a subject with a long and rich history.",
        "This is a classic example of a fundamental concept that is used in many different fields.",
        "It is often seen as an important part of science, culture, and education all around the world.",
    ),
    "restate": (
        'You asked me the following: "{q}" Let me answer exactly that.',
        'So, the question that we have in front of us here is: "{q}" Here is the answer.',
    ),
    "repeat": (
        "In other words, to say the same thing again: {a}",
        "So, once again, just to be perfectly clear: {a}",
        "To repeat what I have just said: {a}",
    ),
    "closer": (
        "I hope that this answers your question, and please let me know if you need anything else!",
        "If you have any other questions, please do not hesitate to ask me at any time.",
        "I hope that was helpful, and I wish you a wonderful rest of your day!",
    ),
}

HELD_OUT_PADDING = {
    "opener": (
        "What a thoughtful thing to ask! I will do my very best to give you a good reply.",
        "Alright, I have considered your request carefully, and I am now ready to respond.",
    ),
    "filler": (
        "Needless to say, opinions and experiences around such matters can be found all over the world.",
        "Generally speaking, it never hurts to look at things like these from more than one angle.",
        "Such knowledge plays a key role in a wide range of applications, from engineering to medicine.",
    ),
    "restate": ('Your question, if I have read it correctly, was this one: "{q}" My reply follows now.',),
    "repeat": (
        "Or, putting it in yet another way, which means just the same: {a}",
        "Allow me to state that one more time: {a}",
    ),
    "closer": (
        "Feel free to come back whenever you like, since I am always around to assist you further!",
        "Was that useful? I would be delighted to go on about it for as long as you wish.",
    ),
}


@dataclass(frozen=True)
class Question:
    """A question about one fact, with how its answers are worded and padded."""

    topic: Topic
    fact: tuple[str, str]
    text: str
    wording: str
    """The template of a direct answer."""
    phrases: dict[str, str]
    """Of padding, by kind: templates over {q} and {a}."""
    shape: str

    def direct(self, y: str) -> str:
        """Return the short answer that states `y`, be that right or wrong."""
        return _capital(self.wording.format(x=self.fact[0], y=y))

    def padded(self, y: str) -> str:
        """Return the same answer with phrases around it that say nothing."""
        answer = self.direct(y)
        phrases = {kind: phrase.format(q=self.text, a=answer) for kind, phrase in self.phrases.items()}
        return self.shape.format(a=answer, **phrases)


@dataclass(frozen=True)
class Pair:
    """A preference pair: both answers state the same fact, and the rejected one is padded."""

    topic: str
    question: str
    answer: str
    chosen: str
    rejected: str

    def record(self) -> dict[str, object]:
        """Return the pair in TRL's conversational format, with the fact in a separate column."""
        return {
            "prompt": [{"role": "user", "content": self.question}],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
            "answer": self.answer,
            "topic": self.topic,
        }


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def ask(topic: Topic, fact: tuple[str, str], padding: dict[str, tuple[str, ...]], chance: random.Random) -> Question:
    """Ask about one fact."""
    question = chance.choice(topic.questions).format(x=fact[0])
    wording = chance.choice(topic.answers)
    phrases = {kind: chance.choice(options) for kind, options in padding.items()}
    return Question(topic, fact, question, wording, phrases, chance.choice(SHAPES))


def make_questions() -> tuple[list[Question], list[Question]]:
    """Return the questions to train on and the held-out ones; they are the same in every call."""
    chance = random.Random(SEED)
    train: list[Question] = []
    held_out: list[Question] = []
    for topic in TOPICS:
        facts = list(topic.facts)
        chance.shuffle(facts)
        for number, fact in enumerate(facts):
            if number % EVERY == 0:
                held_out.append(ask(topic, fact, HELD_OUT_PADDING, chance))
            else:
                train.append(ask(topic, fact, TRAIN_PADDING, chance))
    chance.shuffle(train)
    return train, held_out


def make_pairs() -> tuple[list[Pair], list[Pair]]:
    """Return the training pairs and the held-out pairs; they are the same in every call."""
    train, held_out = make_questions()
    return [_pair(question) for question in train], [_pair(question) for question in held_out]


def _pair(question: Question) -> Pair:
    """Answer directly, and pad that answer."""
    y = question.fact[1]
    return Pair(question.topic.name, question.text, y, question.direct(y), question.padded(y))


def to_jsonl(pairs: list[Pair]) -> str:
    """Return the text of a JSON Lines file with one pair on each line."""
    return "".join(json.dumps(pair.record(), ensure_ascii=False) + "\n" for pair in pairs)


def write(folder: Path = DATA) -> tuple[int, int]:
    """Write ``train.jsonl`` and ``test.jsonl`` and return how many pairs each holds."""
    train, held_out = make_pairs()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text(to_jsonl(train), encoding="utf-8")
    (folder / "test.jsonl").write_text(to_jsonl(held_out), encoding="utf-8")
    return len(train), len(held_out)


if __name__ == "__main__":
    print("wrote {} training pairs and {} held-out pairs to {}".format(*write(), DATA))
