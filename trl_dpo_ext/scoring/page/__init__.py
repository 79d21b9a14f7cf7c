"""The page of `score`: one HTML file with statistics, charts and rows, that works without network."""

from .build import page
from .lists import list_page
from .rows import RowTexts, row_texts, sample

__all__ = ["RowTexts", "list_page", "page", "row_texts", "sample"]
