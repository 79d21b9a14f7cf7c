"""The number that each row had when it was loaded, as a column that goes through TRL's preparation."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

ROW = "__row__"
"""The column's name; one that a dataset has itself is left out of the passes."""


def numbered(dataset: Dataset) -> Dataset:
    """Add the column `ROW`, unless the dataset has it."""
    if ROW in dataset.column_names:
        return dataset
    return dataset.add_column(ROW, np.arange(len(dataset)))  # type: ignore[return-value, arg-type]
