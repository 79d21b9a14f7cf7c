"""What of a test set is also in the training set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.batches import read_batches
from ..data.findings import WARNING, Finding
from .contents import Contents
from .list_table import keys_of_lists
from .pair_table import PairTable
from .row_texts import COLUMNS
from .rule import found

Keys = dict[str, npt.NDArray[np.void]]
_PARTS = {"prompts": (0,), "chosen": (1,), "prompt_chosen": (0, 1)}
"""What is compared -> the places of its columns in `COLUMNS`."""


def overlap(test: PairTable, train: PairTable) -> tuple[dict[str, Any], list[Finding]]:
    """Compare two splits by what they say, in Unicode's NFC and with whitespace as one blank; then by lower case.

    Returns:
        Counts of test prompts, chosen answers, prompts with chosen answers, and rows that are in the training set; and
        the finding.
    """
    block: dict[str, Any] = {"n": len(test)}
    seen = np.zeros(len(test.rows), dtype=bool)
    for how, fold in (("exact", False), ("case_folded", True)):
        ours, others = (_keys(table, fold) for table in (test, train))
        for name in ours:
            inside = np.isin(ours[name], others[name])
            block.setdefault(name, {})[how] = int(inside.sum())
            if name == "prompts" and not fold:
                seen = inside[test.examples.of]
    return block, [*_finding(test, seen, train)]


def _finding(test: PairTable, seen: npt.NDArray[np.bool_], train: PairTable) -> Iterator[Finding]:
    sentence = f"the prompts of {{rows}} are also among the {len(train)} of the training set"
    names = {table.columns or COLUMNS for table in (test, train)}
    remedy = "Hold out by prompt."
    if all("prompt" in each for each in names):
        remedy = "Remove them: held = {*map(str, test['prompt'])}; "
        remedy += "train = train.filter(lambda row: str(row['prompt']) not in held)."
    yield from found(test, "train_test_overlap", WARNING, seen, sentence, remedy)


def _keys(table: PairTable, fold: bool) -> Keys:
    """Keys of what examples say; `chosen` is a best completion of a list, `rows` are all that it says."""
    texts = table.list_texts
    eos = table.kinds.tokenizer.eos_token if texts is None else None
    columns: list[list[npt.NDArray]] = [[], [], []]
    for batch in read_batches(table.dataset if texts is None else texts.dataset, COLUMNS):
        for place, name in enumerate(COLUMNS):
            contents = Contents.of(batch, name)
            contents = contents if name == "prompt" else contents.without_ending(eos)
            columns[place].append(contents.keys(loose=True, fold=fold))
    joined = [np.concatenate(each) if each else np.zeros(0, dtype="V16") for each in columns]
    keys = np.stack(joined, axis=1) if texts is None else keys_of_lists(table, joined)
    firsts = keys[table.examples.first]
    found = {
        name: np.ascontiguousarray(firsts[:, list(places)]).view(f"V{16 * len(places)}").reshape(-1)
        for name, places in _PARTS.items()
    }
    return found | {"rows": table.example_keys(keys)}
