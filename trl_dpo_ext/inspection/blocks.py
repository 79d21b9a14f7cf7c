"""The statistics of one split, as JSON holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import statistics
from ..data.rows import SIDES
from .contents import SCRIPTS, scripts_differ
from .examples import Examples
from .pair_measures import Rows
from .pair_rules import MANY
from .pair_table import Measured, PairTable
from .token_rules import tail_counts
from .truncation_rules import ends_lost

_STEP, _FEW_CUT = 64, 0.01
_MOST = 10
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))


def split_blocks(table: PairTable, args: Any, subset_column: str | None = None) -> dict[str, Any]:
    """Return every block of statistics of a split, by its name.

    Args:
        table: the split's measures.
        args: the run's configuration.
        subset_column: column by whose values the length bias is also given.
    """
    return {
        "rows": _rows(table),
        "lengths": _lengths(table),
        "max_length": _limit(table),
        "truncation": _truncation(table),
        "difference": _difference(table.rows),
        "length_bias": _length_bias(table, subset_column),
        "duplicates": _duplicates(table),
        "eos_bos": _eos_bos(table),
        "roles": _roles(table),
        "tokens": _tokens(table, args),
        "text": _text(table),
    }


def _rows(table: PairTable) -> dict[str, Any]:
    kept = len(table)
    loaded = table.loaded if table.origin is None else len(table.origin)
    share = kept / table.loaded if table.loaded else None
    block = {"loaded": loaded, "dropped": table.loaded - kept, "kept": kept, "kept_share": share}
    if not table.of_lists:
        return block
    examples = table.examples
    return block | {"lists": table.loaded, "completions": int(examples.once.sum()), "pairs": len(examples.shown)}


def _lengths(table: PairTable) -> dict[str, Any]:
    rows, examples = table.rows, table.examples
    starts, longest = examples.starts, rows.prompt + rows.sides.max(axis=1, initial=0)
    before = {"prompt": rows.prompt[starts], **_by_side(rows.sides, examples), "pair": examples.max(longest)}
    prompts, fed = (examples.max(each.max(axis=1, initial=0)) for each in (rows.prompt_kept, rows.fed))
    after = {"prompt": prompts, **_by_side(rows.kept, examples), "pair": fed}
    return {
        name: {"before": statistics.length_summary(before[name]), "after": statistics.length_summary(after[name])}
        for name in before
    }


def _by_side(values: npt.NDArray, examples: Examples) -> dict[str, npt.NDArray]:
    """Values of completions, each once, by side."""
    return {side: values[examples.once[:, number], number] for number, side in enumerate(SIDES)}


def _limit(table: PairTable) -> dict[str, Any] | None:
    rows, limit = table.rows, table.truncation.max_length
    if limit is None or not len(rows):
        return None
    every = [table.measured, *filter(None, [table.dropped_measured])]
    longest_prompt = max(int(each.rows.prompt.max()) for each in every)
    ordered = np.sort(table.whole_examples)
    allowed = int(np.ceil(_FEW_CUT * len(ordered))) - 1  # fewer than 1 % are cut
    needed = max(int(ordered[len(ordered) - 1 - max(allowed, 0)]), longest_prompt + 1)
    suggested = -(-needed // _STEP) * _STEP
    whole = -(-int(ordered[-1]) // _STEP) * _STEP
    return {
        "value": limit,
        "truncation_mode": "keep_end" if table.truncation.keeps_end else "keep_start",
        "uncut_share": float(1 - table.examples.any(np.any(rows.cut > 0, axis=1)).mean()),
        "suggested": {"value": suggested, **positions_at(every, suggested)},
        "keeps_all": {"value": whole, **positions_at(every, whole)},
    }


def positions_at(every: Sequence[Measured], limit: int) -> dict[str, int]:
    """Return the positions of an epoch if sequences were cut behind `limit` tokens.

    Args:
        every: measures of all examples.
        limit: in tokens.
    """
    plain = shared = 0
    for measured in every:
        prompt, kept = _kept_at(measured.rows, limit)
        fed = (prompt[:, None] + kept)[measured.examples.once]
        plain += int(fed.sum())
        prompt, kept = _kept_at(measured.chain, limit)
        shared += int((prompt + np.minimum(measured.chain.common_whole, kept.min(axis=1))).sum())
    return {"plain": plain, "share_prompt": plain - shared}


def _kept_at(rows: Rows, limit: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tokens that are left of prompts, (rows,), and of both completions, (rows, 2)."""
    prompt = np.minimum(rows.prompt, limit).astype(np.int64)
    return prompt, np.minimum(rows.sides, limit - prompt[:, None])


def _truncation(table: PairTable) -> dict[str, Any] | None:
    if table.truncation.max_length is None:
        return None
    lost = ends_lost(table)
    blocks = {}
    for number, side in enumerate(SIDES):
        once = table.examples.once[:, number]
        cut, whole = table.rows.cut[once, number], int(table.rows.sides[once, number].sum())
        blocks[side] = {
            "rows": int((cut > 0).sum()),
            "tokens": int(cut.sum()),
            "median": statistics.quantiles(cut[cut > 0])["p50"],
            "share_of_tokens": int(cut.sum()) / whole if whole else None,
            "rows_without_eos": int(lost[once, number].sum()),
        }
    return blocks


def _difference(rows: Rows) -> dict[str, Any]:
    scored = int(rows.scored.sum())
    return {
        "rows": int((~rows.same).sum()),
        "first": statistics.quantiles(rows.common[~rows.same]),
        "common_share": int(2 * rows.common.sum()) / scored if scored else None,
    }


def _length_bias(table: PairTable, subset_column: str | None) -> dict[str, Any]:
    rows = table.rows
    block: dict[str, Any] = {
        "before": statistics.length_bias(*rows.sides.T),
        "after": statistics.length_bias(*rows.kept.T),
    }
    scores = score_differences(table)
    if scores is not None:
        known = np.isfinite(scores)
        lengths = (rows.kept[:, 0] - rows.kept[:, 1]).astype(float)[known]
        block["scores"] = {
            "n": int(known.sum()),
            "pearson": statistics.pearson(lengths, scores[known]),
            "spearman": statistics.spearman(lengths, scores[known]),
        }
    if subset_column is not None:
        values = np.array([str(value) for value in _column(table, subset_column)])
        block["subsets"] = {
            name: {
                "before": statistics.length_bias(*rows.sides[values == name].T),
                "after": statistics.length_bias(*rows.kept[values == name].T),
            }
            for name in sorted(set(values.tolist()))
        }
    return block


def score_differences(table: PairTable) -> npt.NDArray[np.float64] | None:
    """Return score of chosen minus score of rejected, or the margin, (rows,); None where there are no such columns."""
    if table.of_lists:
        return None if table.order == "best" else table.measured.gaps
    names = set(table.dataset.column_names)
    for chosen, rejected in _SCORES:
        if {chosen, rejected} <= names:
            with np.errstate(over="ignore", invalid="ignore"):  # beyond float64 or NaN is no known difference
                return _numbers(_column(table, chosen)) - _numbers(_column(table, rejected))
    return _numbers(_column(table, "margin")) if "margin" in names else None


def _column(table: PairTable, name: str) -> list[Any]:
    """A column's value of each row."""
    if not table.of_lists or table.origin is None:
        return table.dataset.with_format(None)[name][:]
    values = table.origin.with_format(None)[name][:]
    return [values[number] for number in table.numbers.tolist()]


def _numbers(values: Sequence[Any]) -> npt.NDArray[np.float64]:
    return np.array([value if isinstance(value, (int, float)) else np.nan for value in values], dtype=float)


def _duplicates(table: PairTable) -> dict[str, Any]:
    prompts, counts = np.unique(table.keys[table.examples.starts, 0], return_counts=True)
    whole = {
        name: sum(f.count for f in table.findings if f.name == name) for name in ("duplicate_row", "contradictory")
    }
    return {
        "distinct_prompts": len(prompts),
        "largest_group": int(counts.max(initial=0)),
        "rows_per_prompt": statistics.histogram(counts),
        "repeated_rows": whole["duplicate_row"],
        "contradictory_rows": whole["contradictory"],
        "prompts_in_many_rows": int((counts > MANY).sum()),
    }


def _eos_bos(table: PairTable) -> dict[str, Any]:
    rows, tokenizer = table.rows, table.kinds.tokenizer
    whole = (rows.cut == 0) & (rows.ending > 0)
    ends = (whole | ((rows.ending > 0) & (rows.cut < rows.ending))) & table.examples.once
    return {
        "eos_token": tokenizer.eos_token,
        "eos_ids": table.kinds.eos_ids.tolist(),
        "bos_token": tokenizer.bos_token,
        "bos_id": table.kinds.bos_id,
        "end_with_eos": {side: int(ends[:, number].sum()) for number, side in enumerate(SIDES)},
        "double_eos": {
            side: int((rows.double_eos & table.examples.once)[:, number].sum()) for number, side in enumerate(SIDES)
        },
        "double_bos": int(table.examples.any(rows.double_bos).sum()),
        "behind_eos": [list(item) for item in tail_counts(table)[:_MOST]],
        "prompt_tokens_left_out": [list(item) for item in table.left_out_texts.most_common(_MOST)],
    }


def _roles(table: PairTable) -> dict[str, Any] | None:
    if table.texts.are_texts:
        return None
    sequences, last = Counter(), {side: Counter() for side in SIDES}
    with_system = 0
    found = table.texts.roles(table.examples.shown)
    for (prompt, *sides), count in found.items():
        sequences[" | ".join([prompt, *sides])] += count
        with_system += count * prompt.startswith(("system", "developer"))
        for side, roles in zip(SIDES, sides, strict=True):
            last[side][roles.split(" ")[-1]] += count
    return {
        "sequences": statistics.counted(sequences, _MOST),
        "last": {side: dict(statistics.counted(counts, _MOST)) for side, counts in last.items()},
        "system_share": with_system / found.total() if found else None,
    }


def _tokens(table: PairTable, args: Any) -> dict[str, Any]:
    rows, examples = table.rows, table.examples
    plain = int(rows.fed[examples.once].sum())
    shared = plain - int(table.measured.chain.shared.sum())
    _, prompts = np.unique(rows.prompt_key, return_index=True)
    _, completions = np.unique(rows.side_key.reshape(-1), return_index=True)
    passed = int(rows.prompt_kept.max(axis=1)[prompts].sum() + rows.kept.reshape(-1)[completions].sum())
    return {
        "scored": {side: int(values.sum()) for side, values in _by_side(rows.scored, examples).items()},
        "fed": {
            "plain": plain,
            "padded": _padded(table, args),
            "batch_size": args.per_device_train_batch_size,
            "share_prompt": shared,
            "reference_pass": passed,
            "ratio": plain / shared if shared else None,
        },
    }


def _padded(table: PairTable, args: Any) -> int:
    """Positions of an epoch in padded batches, which hold an even number of sequences of each example."""
    examples, batch, multiple = table.examples, args.per_device_train_batch_size, args.pad_to_multiple_of or 1
    longest = examples.max(table.rows.fed.max(axis=1))
    starts = np.arange(0, len(table), batch)
    widths = np.maximum.reduceat(longest, starts) if len(table) else longest
    widths = -(-widths.astype(np.int64) // multiple) * multiple
    sizes = np.bincount(examples.of, weights=examples.once.sum(axis=1), minlength=len(table)).astype(np.int64)
    sequences = np.add.reduceat(sizes + sizes % 2, starts) if len(table) else sizes
    return int((sequences * widths).sum())


def _text(table: PairTable) -> dict[str, Any]:
    scripts, examples = table.texts.scripts, table.examples
    counts = {side: np.bincount(each, minlength=len(SCRIPTS)) for side, each in _by_side(scripts, examples).items()}
    return {
        **{name: int(examples.any(mask).sum()) for name, mask in table.texts.characters.items()},
        "scripts": {side: _named(found) for side, found in counts.items()},
        "script_differs": int(examples.any(scripts_differ(*scripts.T)).sum()),
    }


def _named(counts: npt.NDArray) -> dict[str, int]:
    return {name: int(count) for name, count in zip(SCRIPTS, counts, strict=True) if count}
