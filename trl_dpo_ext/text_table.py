"""Text tables with aligned columns, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

GAP = "  "


def format_table(rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Format rows as lines of text with aligned columns.

    Args:
        rows: cells of each row, the same number in each; the header, if any, is the first row.
        align: `<` or `>` for each column, in order; columns beyond its end are aligned to the left.

    Example:
        >>> print(format_table([("part", "GiB"), ("weights", "13.5"), ("head", "1.1")], "<>"))
        part      GiB
        weights  13.5
        head      1.1
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = align.ljust(len(widths), "<")
    return "\n".join(
        GAP.join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in rows
    )
