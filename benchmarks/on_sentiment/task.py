"""Prepares the task once: language model, continuations, preferences, and what held-out prefixes are judged by."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import text
from .language_model import fit, loaded, loss_of, sample, tokenizer_of, untrained
from .preferences import Pair, pairs_of


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the task consists of; another value is another task, with runs of its own."""

    model: str = ""
    """A checkpoint to start from; empty for a model from scratch."""
    hidden: int = 128
    layers: int = 3
    vocabulary: int = 2048
    epochs: float = 4.0
    rate: float = 3e-3
    longest: int = 18
    """Words of a sentence, at most."""
    prefix: int = 3
    """Words of a prefix."""
    tokens: int = 12
    """Of a continuation, at most."""
    continuations: int = 4
    pairs_per_prefix: int = 2
    prefixes: int = 400
    held_out: int = 256
    """Prefixes that expected rewards are measured on."""
    pool: int = 8
    """Continuations of each held-out prefix that best-of-n draws from."""
    sentences: int = 0
    """Sentences to use, at most; 0 for all."""

    @property
    def fingerprint(self) -> str:
        """Eight hex digits of the settings."""
        return fingerprint(self)


def fingerprint(settings: Any) -> str:
    """Return eight hex digits of a dataclass's values."""
    return hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Task:
    """A prepared task."""

    settings: Settings
    folder: Path
    scorer: text.Scorer
    pairs: list[Pair]
    """To train on."""
    held_out_pairs: list[Pair]
    held_out: list[str]
    """Prefixes."""
    pool: list[list[float]]
    """Scores of the reference's continuations: one row for each held-out prefix."""
    facts: dict[str, Any]

    @property
    def reference(self) -> Path:
        """The folder of the model that every run starts from."""
        return self.folder / "reference"

    def score(self, prefix: str, continuation: str) -> float:
        """The ground-truth reward of a continuation: VADER's score of the whole sentence."""
        return self.scorer(prefix + continuation)


def prepare(folder: Path, settings: Settings, device: str) -> Task:
    """Load the task from its folder, and make first what the folder does not have."""
    text.fetch(folder / "vader")
    place = folder / f"task-{settings.fingerprint}"
    scorer = text.scorer(folder / "vader")
    if not (place / "reference").is_dir():
        _make_reference(folder, place, settings, device)
    if not (place / "task.json").is_file():
        _write(place / "task.json", _made(folder, place, settings, scorer, device))
    found = json.loads((place / "task.json").read_text(encoding="utf-8"))
    pairs, held = ([Pair(**each) for each in found[name]] for name in ("pairs", "held_out_pairs"))
    return Task(settings, place, scorer, pairs, held, found["held_out"], found["pool"], found["facts"])


def _parts(folder: Path, settings: Settings) -> tuple[list[str], list[str], list[str]]:
    """Sentences for the language model, for the preferences, and held out."""
    found = text.sentences(folder / "vader", settings.prefix + 3, settings.longest)
    found = found[: settings.sentences or None]
    first, second = settings.held_out, settings.held_out + settings.prefixes
    if len(found) <= second:
        raise ValueError(f"{len(found)} sentences are too few for {second} prefixes.")
    return found[second:], found[first:second], found[:first]


def _make_reference(folder: Path, place: Path, settings: Settings, device: str) -> None:
    texts, _, held_out = _parts(folder, settings)
    if settings.model:
        model, tokenizer = loaded(settings.model, device)
    else:
        tokenizer = tokenizer_of(texts, settings.vocabulary)
        model = untrained(tokenizer, settings.hidden, settings.layers).to(device)
    fit(model, tokenizer, texts, settings.epochs, settings.rate)
    print(f"language model: held-out loss {loss_of(model, tokenizer, held_out):.3f} nats per token", flush=True)
    unfinished = place / "reference.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(place / "reference")


def _made(folder: Path, place: Path, settings: Settings, scorer: text.Scorer, device: str) -> dict[str, Any]:
    texts, preferences, held_out = _parts(folder, settings)
    model, tokenizer = loaded(place / "reference", device)

    def scored(sentences: Sequence[str], each: int, seed: int) -> list[tuple[str, list[str], list[float]]]:
        prefixes = [text.prefix(sentence, settings.prefix) for sentence in sentences]
        repeated = [prefix for prefix in prefixes for _ in range(each)]
        made = sample(model, tokenizer, repeated, settings.tokens, seed)
        answers = [tokenizer.decode(ids, skip_special_tokens=True) for ids in made]
        scores = [scorer(prefix + answer) for prefix, answer in zip(repeated, answers, strict=True)]
        return [
            (prefix, answers[start : start + each], scores[start : start + each])
            for prefix, start in zip(prefixes, range(0, len(answers), each), strict=True)
        ]

    def comparable(row: tuple[str, list[str], list[float]]) -> tuple[str, list[str], list[float]]:
        """Without continuations that are empty or go on a word, which are read otherwise than they were sampled."""
        prefix, answers, scores = row
        start = tokenizer(prefix)["input_ids"]
        whole = [tokenizer(prefix + answer)["input_ids"] for answer in answers]
        kept = [len(ids) > len(start) == _common(ids, start) for ids in whole]
        return prefix, [*itertools.compress(answers, kept)], [*itertools.compress(scores, kept)]

    random_ = random.Random(0)
    train = scored(preferences, settings.continuations, seed=1)
    judged = scored(held_out, settings.pool, seed=2)
    pairs = [pair for row in train for pair in pairs_of(*comparable(row), settings.pairs_per_prefix)]
    held = [pair for row in judged for pair in pairs_of(*comparable(row), 1)]
    random_.shuffle(pairs)
    return {
        "settings": asdict(settings),
        "pairs": [asdict(pair) for pair in pairs],
        "held_out_pairs": [asdict(pair) for pair in held],
        "held_out": [prefix for prefix, _, _ in judged],
        "pool": [scores for _, _, scores in judged],
        "facts": {
            "sentences": len(texts) + len(preferences) + len(held_out),
            "sentences_of_language_model": len(texts),
            "parameters": sum(each.numel() for each in model.parameters()),
            "held_out_loss": loss_of(model, tokenizer, held_out),
        },
    }


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of equal tokens at the beginning."""
    return next(
        (place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


def _write(file: Path, content: Any) -> None:
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.replace(file)
