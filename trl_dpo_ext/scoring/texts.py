"""The tokens of scored rows as text, with the log-ratio of each: what the page of scores shows."""

from __future__ import annotations

from collections.abc import Sequence

from ..inspection.token_kinds import TokenKinds
from ..reference.precompute.sequences import batch_sequences
from .page import RowTexts, row_texts
from .plan import Scored

_ROWS_AT_ONCE = 256


def texts_of(scored: Scored, places: Sequence[int]) -> dict[int, RowTexts | None]:
    """Return what the models have read of some rows.

    Args:
        scored: what the passes have found.
        places: numbers of loaded rows.

    Returns:
        None for a row that was dropped.
    """
    found: dict[int, RowTexts | None] = dict.fromkeys(places)
    kinds, rows = TokenKinds(scored.rows.processing_class), scored.rows
    at = {number: place for place, number in enumerate(rows.numbers) if number in found}
    numbers = [number for number in places if number in at]
    for start in range(0, len(numbers), _ROWS_AT_ONCE):
        some = numbers[start : start + _ROWS_AT_ONCE]
        batch = rows.collator([rows.dataset[at[number]] for number in some])
        sequences = list(batch_sequences(batch))
        for number, chosen, rejected in zip(some, sequences[: len(some)], sequences[len(some) :], strict=True):
            if chosen is not None and rejected is not None:
                sides = [chosen.completion.tolist(), rejected.completion.tolist()]
                found[number] = row_texts(kinds, chosen.prompt.tolist(), sides, _ratios(scored, at[number]))
    return found


def _ratios(scored: Scored, place: int) -> Sequence[Sequence[float]]:
    """Log-ratios of the scored tokens of both sides; empty without a reference."""
    if scored.reference is None:
        return ((), ())
    both = zip(*(model.of_tokens(scored.rows.keys, place) for model in (scored.policy, scored.reference)), strict=True)
    return [(ours - theirs).tolist() for ours, theirs in both]
