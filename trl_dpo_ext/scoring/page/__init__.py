"""The page of `score`: one HTML file with statistics, charts and rows, that works without network."""

from .build import page
from .rows import RowTexts, row_texts, sample

__all__ = ["RowTexts", "page", "row_texts", "sample"]
