"""Sentences of movie reviews and the scorer that serves as ground truth, both from VADER's source distribution.

`vaderSentiment` 3.3.2 (MIT license) holds 10,605 snippets of reviews from rotten.tomatoes.com, which Hutto and Gilbert
(ICWSM 2014) had rated; by their README they derive from Pang and Lee's (2004) movie reviews. pip downloads the
distribution when the benchmark runs; nothing of it is part of this repository, and nothing is installed.
"""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

DISTRIBUTION = "vaderSentiment==3.3.2"
_SENTENCES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

Scorer = Callable[[str], float]
"""VADER's compound score of a text, from -1 (negative) to 1 (positive)."""


def fetch(folder: Path) -> None:
    """Download and unpack the source distribution, unless the folder has it."""
    if (folder / "reviews.tsv").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "vaderSentiment"]
        subprocess.run([*command, "--dest", place, DISTRIBUTION], check=True)
        (archive,) = Path(place).glob("*.tar.gz")
        _unpack(archive, Path(place) / "whole")
        (root,) = (Path(place) / "whole").iterdir()
        _unpack(root / "additional_resources" / "hutto_ICWSM_2014.tar.gz", root)
        for name in ("vaderSentiment.py", "vader_lexicon.txt", "emoji_utf8_lexicon.txt"):
            (folder / name).write_bytes((root / "vaderSentiment" / name).read_bytes())
        (folder / "LICENSE.txt").write_bytes((root / "LICENSE.txt").read_bytes())
        (folder / "reviews.tsv").write_bytes((root / _SENTENCES).read_bytes())  # last: it says that all is there


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")


def scorer(folder: Path) -> Scorer:
    """Return VADER's scorer of the unpacked distribution."""
    spec = importlib.util.spec_from_file_location("vader_of_benchmark", folder / "vaderSentiment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    analyzer = module.SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])


def sentences(folder: Path, shortest: int, longest: int) -> list[str]:
    """Return the sentences of `shortest` to `longest` words in random, but always the same, order."""
    lines = (folder / "reviews.tsv").read_text(encoding="utf-8").splitlines()
    texts = [" ".join(line.split("\t")[2].split()) for line in lines if line.count("\t") >= 2]
    kept = sorted({text for text in texts if shortest <= len(text.split()) <= longest})
    random.Random(0).shuffle(kept)
    return kept


def prefix(sentence: str, words: int) -> str:
    """Return a sentence's first words."""
    return " ".join(sentence.split()[:words])
