"""Tokenizes lists by TRL's preparation of pairs, and says of which lists nothing can be learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from ..findings import ERROR, WARNING, Finding
from ..truncation import without_limit
from .pair_rows import EQUAL_CUT, EQUAL_TOKENS, LIST_ROW, PROMPT_FILLS, GatheredLists, gathered


@dataclass
class ListPreparation:
    """TRL's `_prepare_dataset` for lists in rows of pairs, which gives one row for each list.

    Attributes:
        prepare: of pairs.
        found: what the last call gathered.
    """

    prepare: Callable[..., Any]
    found: GatheredLists | None = None

    def __call__(self, dataset: Any, processing_class: Any, args: Any, name: str) -> Dataset:
        """Return the tokenized lists of which something can be learned."""
        pairs = self.prepare(dataset, processing_class, without_limit(args), name)
        self.found = gathered(pairs, args.max_length, args.truncation_mode == "keep_end", name)
        return self.found.kept

    def lost(self, args: Any) -> Finding | None:
        """Return the finding of lists that are left out; None if all are kept.

        Args:
            args: the run's configuration.
        """
        assert self.found is not None
        lost = self.found.lost
        rows = np.unique(np.asarray(self.found.whole[LIST_ROW][:])[lost > 0]).tolist()
        total, count = len(lost), int((lost > 0).sum())
        if not count:
            return None
        limit = args.max_length
        reasons = {
            PROMPT_FILLS: f"the prompt alone fills max_length={limit}",
            EQUAL_CUT: f"all completions are identical after truncation to max_length={limit}",
            EQUAL_TOKENS: "all completions are different texts and the same tokens",
        }
        counts = {why: int((lost == why).sum()) for why in reasons}
        told = ", ".join(f"in {counts[why]} {text}" for why, text in reasons.items() if counts[why])
        which = "all" if count == total else f"{count} of"
        remedy = "Raise max_length, or filter these rows." if count > counts[EQUAL_TOKENS] else "Filter these rows."
        sentence = f"{which} {total} lists have nothing to learn and are left out, first in row {rows[0]}: {told}"
        if count < total:
            return Finding("dropped", WARNING, count, total, sentence, remedy, rows, "lists")
        return Finding("all_dropped", ERROR, count, total, sentence, remedy, rows, "lists")
