"""The columns that `score` adds to rows, and the names that expressions know them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Value

from .measures import Measures
from .pair_scores import PairScores

PREFIX = "dpo_"
"""Neither TRL's `ref_chosen_logps`, which a later run would read, nor a loss's `score_chosen` begins so."""
RELABELED = "relabeled"
STATUS = f"{PREFIX}status"
_FLOAT32, _FLOAT64, _INT32, _TEXT = (Value(kind) for kind in ("float32", "float64", "int32", "string"))
TYPES: Mapping[str, Value] = {
    "dpo_policy_chosen_logps": _FLOAT32,
    "dpo_policy_rejected_logps": _FLOAT32,
    "dpo_ref_chosen_logps": _FLOAT32,
    "dpo_ref_rejected_logps": _FLOAT32,
    "dpo_reward_chosen": _FLOAT64,
    "dpo_reward_rejected": _FLOAT64,
    "dpo_margin": _FLOAT64,
    "dpo_p_chosen": _FLOAT64,
    "dpo_correct": _FLOAT64,
    "dpo_chosen_tokens": _INT32,
    "dpo_rejected_tokens": _INT32,
    "dpo_margin_per_token": _FLOAT64,
    STATUS: _TEXT,
}
"""Columns in the order in which they are written. Derived ones are float64, so that a file says what was decided."""


def written_columns(scores: PairScores, measures: Measures) -> dict[str, pa.Array]:
    """Return the columns of `TYPES`; null where a row has no log-probs, or no reference."""
    scored = scores.scored
    values: dict[str, Any] = {
        "dpo_policy_chosen_logps": scores.chosen.policy,
        "dpo_policy_rejected_logps": scores.rejected.policy,
        "dpo_ref_chosen_logps": scores.chosen.ref,
        "dpo_ref_rejected_logps": scores.rejected.ref,
        "dpo_reward_chosen": measures.reward_chosen,
        "dpo_reward_rejected": measures.reward_rejected,
        "dpo_margin": measures.margin,
        "dpo_p_chosen": measures.p_chosen,
        "dpo_correct": measures.correct,
        "dpo_chosen_tokens": scores.chosen.tokens,
        "dpo_rejected_tokens": scores.rejected.tokens,
        "dpo_margin_per_token": measures.margin_per_token,
    }
    columns = {
        name: pa.array(column, type=TYPES[name].pa_type, mask=~(scored & np.isfinite(column)))
        for name, column in values.items()
    }
    tokens = ("dpo_chosen_tokens", "dpo_rejected_tokens")  # known where a log-prob is not finite
    known = scores.status != "dropped"
    columns |= {name: pa.array(values[name], type=TYPES[name].pa_type, mask=~known) for name in tokens}
    return columns | {STATUS: pa.array([str(status) for status in scores.status], type=pa.string())}
