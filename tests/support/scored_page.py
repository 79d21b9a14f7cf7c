"""A page of scores with rows that try to leave their place."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support import tiny
from tests.support.scored import random_scored
from trl_dpo_ext.inspection.token_kinds import TokenKinds
from trl_dpo_ext.scoring.measures import measure
from trl_dpo_ext.scoring.page import RowTexts, page, row_texts, sample
from trl_dpo_ext.scoring.pair_scores import PairScores
from trl_dpo_ext.scoring.summary import SummaryOptions, summarize

NASTY = "</script><script>document.title='broken'</script>"
RIGHT_TO_LEFT, EMOJI = "مرحبا", "👩‍👩‍👧"
SPECIAL_ROW = 7
ARGUMENTS = {"policy": f"out {NASTY}", "reference": "its base with the adapter off", "dataset": "pairs.jsonl"}


def scores_of(number: int) -> PairScores:
    """Pairs in two subsets, with score columns."""
    columns = {
        "prompt": ["say "] * number,
        "chosen": ["yes"] * number,
        "rejected": [[{"role": "assistant", "content": "no"}]] * number,
        "subset": [f"even {NASTY}" if at % 2 == 0 else "odd" for at in range(number)],
        "score_chosen": [float(at % 10) for at in range(number)],
        "score_rejected": [3.0] * number,
    }
    return random_scored(number, columns=columns)


def texts_of(scores: PairScores, places: list[int]) -> dict[int, RowTexts | None]:
    """Tokens with log-ratios; none of the dropped row."""
    token = tiny.tokenizer()
    token.add_tokens([NASTY, RIGHT_TO_LEFT, EMOJI])
    kinds, words = TokenKinds(token), tiny.SENTENCE.split()
    generator = np.random.default_rng(0)
    made: dict[int, RowTexts | None] = {}
    for at in places:
        if scores.status[at] == "dropped":
            made[at] = None
            continue
        sentences = [
            f"{words[at % 37]} {words[at // 37 % 37]} say",
            " ".join(words[at % 20 : at % 20 + 1 + at % 9]),
            " ".join(words[at % 30 : at % 30 + 4 + at % 5]),
        ]
        if at == SPECIAL_ROW:
            sentences[1:] = [f"{NASTY} yes", f"{RIGHT_TO_LEFT} {EMOJI}"]
        ids = [token(sentence, add_special_tokens=False)["input_ids"] for sentence in sentences]
        ratios = [generator.normal(0, 1, len(each)).tolist() for each in ids[1:]]
        made[at] = row_texts(kinds, ids[0], ids[1:], ratios)
    return made


def made_page(number: int, most: int = 2000, options: SummaryOptions | None = None, **more: Any) -> str:
    """A page of random scores."""
    scores = scores_of(number)
    data = summarize(scores, options, ARGUMENTS, notes=["Weights of 4 bits."]) | more
    places = sample(scores, measure(scores), most)
    return page(data, scores, texts_of(scores, places))
