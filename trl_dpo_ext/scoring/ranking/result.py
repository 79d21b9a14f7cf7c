"""The result of scoring any number of completions per prompt."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ...data.lists.groups import Groups
from ...statistics import finite
from ..arrangement import Arrangement
from ..column_values import labels
from ..measures import score_of
from ..output import Written, write_columns
from ..plan import Scored
from ..rewardbench.best_of import SUBSETS, TIES, best_of_table, check_ties
from ..summary import SummaryOptions, heading
from .groups import GroupScores, ranking_columns, ranking_summary


@dataclass
class RankedCompletions:
    """The result of `rank_completions`; `data` is what JSON and terminal show."""

    scored: Scored = field(repr=False)
    """What the passes have found, in rows of their own."""
    groups: GroupScores
    options: SummaryOptions
    described: dict[str, Any] = field(default_factory=dict)
    """What else `data` says of its arguments."""

    @classmethod
    def of(
        cls, arrangement: Arrangement, scored: Scored, options: SummaryOptions, described: Mapping[str, Any]
    ) -> RankedCompletions:
        """Compute the rewards of completions from what the passes have found."""
        assert arrangement.groups is not None
        completions = arrangement.completions(scored)
        with np.errstate(invalid="ignore", over="ignore"):
            rewards = arrangement.beta(scored) * score_of(completions, options.normalize, options.reference_free)
        found = GroupScores(arrangement.groups, completions, rewards, arrangement.loaded)
        return cls(arrangement.described(scored), found, options, dict(described))

    @functools.cached_property
    def columns(self) -> dict[str, pa.Array]:
        """The columns that are written, one value per loaded row."""
        return ranking_columns(self.groups)

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """All statistics: `kind`, `format`, `versions`, `date`, `arguments`, `ranking`, `rewardbench_2`, `notes`."""
        options = self.options.completed(self.groups.columns)
        arguments = {**self.scored.described, **self.described}
        return finite(
            {
                **heading(options, arguments["beta"], arguments),
                "rows": {"loaded": len(self.groups.columns)},
                "ranking": ranking_summary(self.groups),
                "rewardbench_2": self._rewardbench(options.subset_column),
                "notes": self.scored.notes,
            }
        )

    def _rewardbench(self, column: str | None) -> dict[str, Any] | None:
        """Results by subset where the rows have RewardBench 2's layout; None otherwise."""
        rows = bench_columns(self.groups.columns, self.groups.groups, column)
        if rows is None:
            return None
        rewards = [rewards for rewards, _ in self.groups]
        complete = [at for at, values in enumerate(rewards) if np.isfinite(values).all()]
        subsets, ids, right = rows
        table = best_of_table(
            [subsets[at] for at in complete],
            [ids[at] for at in complete],
            [rewards[at] for at in complete],
            [right[at] for at in complete],
        )
        return {**table, "left_out": len(rewards) - len(complete)}

    @property
    def accuracy(self) -> float | None:
        """Share of the pairs of completions ordered by the given scores whose rewards have the same order."""
        return self.data["ranking"]["pairs"]["accuracy"]

    def write(self, file: Path, recorded: Mapping[str, Any], overwrite: bool = False) -> Written:
        """Write the loaded rows with `columns`; see `write_columns`."""
        return write_columns(file, self.groups.columns, self.columns, recorded, overwrite)

    def json(self) -> str:
        """Return `data` as JSON text."""
        return json.dumps(self.data, ensure_ascii=False, allow_nan=False, indent=1)


def bench_columns(loaded: Dataset, groups: Groups, column: str | None) -> tuple[list[Any], list[Any], list[int]] | None:
    """Return subset, id and number of right answers of each row of RewardBench 2; None for rows of another kind.

    Args:
        loaded: the loaded split.
        groups: of its completions.
        column: of the subsets.

    Raises:
        InputError: rows of the subset Ties do not fit.
    """
    if column is None or not groups.in_lists or not {"chosen", "rejected"} <= set(loaded.column_names):
        return None
    names = labels(loaded, column)
    if not {str(name).lower() for name in names} & {name.lower() for name in SUBSETS}:
        return None
    ids = loaded["id"][:] if "id" in loaded.column_names else [None] * len(names)
    right = [int((groups.scores[where] == 1).sum()) for where in groups]
    ties = [at for at, name in enumerate(names) if str(name).lower() == TIES]
    sizes = np.diff(groups.bounds)
    check_ties([ids[at] for at in ties], [int(sizes[at]) for at in ties], [right[at] for at in ties])
    return names, ids, right


def check_ranking(arrangement: Arrangement, options: SummaryOptions) -> None:
    """Check what the statistics of several completions read, before anything is computed.

    Raises:
        InputError: rows of RewardBench 2's subset Ties do not fit.
    """
    assert arrangement.groups is not None
    column = options.completed(arrangement.loaded).subset_column
    bench_columns(arrangement.loaded, arrangement.groups, column)
