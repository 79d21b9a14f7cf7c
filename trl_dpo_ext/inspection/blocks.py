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
from .pair_measures import Rows
from .pair_rules import MANY
from .pair_table import PairTable
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
        "lengths": _lengths(table.rows),
        "max_length": _limit(table),
        "truncation": _truncation(table),
        "difference": _difference(table.rows),
        "length_bias": _length_bias(table, subset_column),
        "duplicates": _duplicates(table),
        "eos_bos": _eos_bos(table),
        "roles": _roles(table),
        "tokens": _tokens(table.rows, args),
        "text": _text(table),
    }


def _rows(table: PairTable) -> dict[str, Any]:
    kept = len(table)
    share = kept / table.loaded if table.loaded else None
    return {"loaded": table.loaded, "dropped": table.loaded - kept, "kept": kept, "kept_share": share}


def _lengths(rows: Rows) -> dict[str, Any]:
    before = {"prompt": rows.prompt, **_by_side(rows.sides), "pair": rows.prompt + rows.sides.max(axis=1)}
    after = {"prompt": rows.prompt_kept.max(axis=1), **_by_side(rows.kept), "pair": rows.fed.max(axis=1)}
    return {
        name: {"before": statistics.length_summary(before[name]), "after": statistics.length_summary(after[name])}
        for name in before
    }


def _by_side(values: npt.NDArray) -> dict[str, npt.NDArray]:
    return dict(zip(SIDES, values.T, strict=True))


def _limit(table: PairTable) -> dict[str, Any] | None:
    rows, limit, every = table.rows, table.truncation.max_length, table.measured
    if limit is None or not len(rows):
        return None
    longest_prompt = int(every.prompt.max())
    ordered = np.sort(table.whole_pairs)
    allowed = int(np.ceil(_FEW_CUT * len(ordered))) - 1  # fewer than 1 % are cut
    needed = max(int(ordered[len(ordered) - 1 - max(allowed, 0)]), longest_prompt + 1)
    suggested = -(-needed // _STEP) * _STEP
    whole = -(-int(ordered[-1]) // _STEP) * _STEP
    return {
        "value": limit,
        "truncation_mode": "keep_end" if table.truncation.keeps_end else "keep_start",
        "uncut_share": float((rows.cut == 0).all(axis=1).mean()),
        "suggested": {"value": suggested, **positions_at(every, suggested)},
        "keeps_all": {"value": whole, **positions_at(every, whole)},
    }


def positions_at(rows: Rows, limit: int) -> dict[str, int]:
    """Return the positions of an epoch if sequences were cut behind `limit` tokens."""
    prompt = np.minimum(rows.prompt, limit).astype(np.int64)
    kept = np.minimum(rows.sides, limit - prompt[:, None])
    common = np.minimum(rows.common_whole, kept.min(axis=1))
    plain = int((2 * prompt + kept.sum(axis=1)).sum())
    return {"plain": plain, "share_prompt": int((prompt + kept.sum(axis=1) - common).sum())}


def _truncation(table: PairTable) -> dict[str, Any] | None:
    if table.truncation.max_length is None:
        return None
    lost = ends_lost(table)
    blocks = {}
    for number, side in enumerate(SIDES):
        cut, whole = table.rows.cut[:, number], int(table.rows.sides[:, number].sum())
        blocks[side] = {
            "rows": int((cut > 0).sum()),
            "tokens": int(cut.sum()),
            "median": statistics.quantiles(cut[cut > 0])["p50"],
            "share_of_tokens": int(cut.sum()) / whole if whole else None,
            "rows_without_eos": int(lost[:, number].sum()),
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
    names = set(table.dataset.column_names)
    for chosen, rejected in _SCORES:
        if {chosen, rejected} <= names:
            return _numbers(_column(table, chosen)) - _numbers(_column(table, rejected))
    return _numbers(_column(table, "margin")) if "margin" in names else None


def _column(table: PairTable, name: str) -> list[Any]:
    return table.dataset.with_format(None)[name][:]


def _numbers(values: Sequence[Any]) -> npt.NDArray[np.float64]:
    return np.array([value if isinstance(value, (int, float)) else np.nan for value in values], dtype=float)


def _duplicates(table: PairTable) -> dict[str, Any]:
    prompts, _place, counts = np.unique(table.keys[:, 0], return_inverse=True, return_counts=True)
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
    ends = whole | ((rows.ending > 0) & (rows.cut < rows.ending))
    return {
        "eos_token": tokenizer.eos_token,
        "eos_ids": table.kinds.eos_ids.tolist(),
        "bos_token": tokenizer.bos_token,
        "bos_id": table.kinds.bos_id,
        "end_with_eos": {side: int(ends[:, number].sum()) for number, side in enumerate(SIDES)},
        "double_eos": {side: int(rows.double_eos[:, number].sum()) for number, side in enumerate(SIDES)},
        "double_bos": int(rows.double_bos.sum()),
        "behind_eos": [list(item) for item in tail_counts(table)[:_MOST]],
        "prompt_tokens_left_out": [list(item) for item in table.left_out_texts.most_common(_MOST)],
    }


def _roles(table: PairTable) -> dict[str, Any] | None:
    if table.are_texts:
        return None
    sequences, last = Counter(), {side: Counter() for side in SIDES}
    with_system = 0
    for (prompt, *sides), count in table.roles.items():
        sequences[" | ".join([prompt, *sides])] += count
        with_system += count * prompt.startswith(("system", "developer"))
        for side, roles in zip(SIDES, sides, strict=True):
            last[side][roles.split(" ")[-1]] += count
    return {
        "sequences": statistics.counted(sequences, _MOST),
        "last": {side: dict(statistics.counted(counts, _MOST)) for side, counts in last.items()},
        "system_share": with_system / len(table) if len(table) else None,
    }


def _tokens(rows: Rows, args: Any) -> dict[str, Any]:
    plain = int(rows.fed.sum())
    shared = int((rows.fed.sum(axis=1) - rows.shared).sum())
    batch = args.per_device_train_batch_size
    longest = rows.fed.max(axis=1)
    starts = np.arange(0, len(rows), batch)
    widths = np.maximum.reduceat(longest, starts) if len(rows) else longest
    multiple = args.pad_to_multiple_of or 1
    widths = -(-widths.astype(np.int64) // multiple) * multiple
    pairs = np.diff([*starts, len(rows)])
    _, prompts = np.unique(rows.prompt_key, return_index=True)
    _, completions = np.unique(rows.side_key.reshape(-1), return_index=True)
    passed = int(rows.prompt_kept.max(axis=1)[prompts].sum() + rows.kept.reshape(-1)[completions].sum())
    return {
        "scored": {side: int(rows.scored[:, number].sum()) for number, side in enumerate(SIDES)},
        "fed": {
            "plain": plain,
            "padded": int((2 * pairs * widths).sum()),
            "batch_size": batch,
            "share_prompt": shared,
            "reference_pass": passed,
            "ratio": plain / shared if shared else None,
        },
    }


def _text(table: PairTable) -> dict[str, Any]:
    left, right = table.scripts.T
    counts = {side: np.bincount(table.scripts[:, number], minlength=len(SCRIPTS)) for number, side in enumerate(SIDES)}
    return {
        **{name: int(mask.sum()) for name, mask in table.characters.items()},
        "scripts": {side: _named(found) for side, found in counts.items()},
        "script_differs": int(scripts_differ(left, right).sum()),
    }


def _named(counts: npt.NDArray) -> dict[str, int]:
    return {name: int(count) for name, count in zip(SCRIPTS, counts, strict=True) if count}
