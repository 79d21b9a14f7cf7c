"""Show rows in a terminal: tokens, what truncation cuts, where the sides begin to differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_SIDE_STYLES = {"chosen": ("green", "bright_green"), "rejected": ("red", "bright_red")}
_SPECIAL = "reverse"
_SHOWN = " \N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
"""Not printable by themselves; the joiners make up emoji, and words of Persian or Hindi."""


def show_row(row: Mapping[str, Any], console: Console, ids: bool = False) -> None:
    """Print one row: its prompt, and both answers with what truncation cuts.

    Args:
        row: as `Inspection.rows` gives it.
        console: where to.
        ids: whether token ids are printed, too.
    """
    console.print()
    counts = [f"prompt {_of(row['kept']['prompt_chosen'], row['n_prompt'])}"]
    counts += [f"{side} {_of(row['kept'][side], row[f'n_{side}'])}" for side in ("chosen", "rejected")]
    title = Text(f"row {row['row']}", style="bold")
    title.append(f" of {row['split']}   {'  '.join(counts)}", style="")
    title.append(f"   {', '.join(row['findings'])}" if row["findings"] else "", style="dim")
    console.print(title)
    prompt = Text(style="dim")
    _append(prompt, row["prompt"], row["kept"]["prompt_chosen"], ("", ""))
    console.print(_labeled("[prompt]", prompt))
    for side, styles in _SIDE_STYLES.items():
        text = Text()
        _append(text, row[side], row["kept"][side], styles, row["first_difference"])
        console.print(_labeled(f"{side}", text))
        if ids:
            console.print(_labeled("", Text(" ".join(map(str, row[f"{side}_ids"])), style="dim")))
    if ids:
        console.print(_labeled("", Text("prompt " + " ".join(map(str, row["prompt_ids"])), style="dim")))


def _labeled(label: str, text: Text) -> Padding:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=9, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(label, style="bold"), text)
    return Padding(grid, (0, 0, 0, 2))


def _append(
    text: Text, pieces: Sequence[str | None], kept: Sequence[int], styles: tuple[str, str], first: int | None = None
) -> None:
    """Append tokens; those outside `kept` as `[cut: ...]`."""
    start, end = kept
    if start:
        text.append(f"[cut: {visible(pieces[:start])}]", style="strike dim")
    shown = 0
    for at in range(start, end):
        piece = pieces[at]
        if piece is None:
            continue
        style = styles[shown % 2]
        if piece.startswith("<") and piece.endswith(">") and len(piece) > 2:
            style = f"{style} {_SPECIAL}".strip()
        if first is not None and at - start == first:
            style = f"{style} underline bold".strip()
        text.append(visible([piece]), style=style)
        shown += 1
    if end < len(pieces):
        text.append(f"[cut: {visible(pieces[end:])}]", style="strike dim")


def visible(pieces: Iterable[str | None]) -> str:
    """Join token texts, with signs for newlines, tabs, and other characters that a terminal would not show."""
    joined = "".join(piece or "" for piece in pieces).replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    return "".join(each if each.isprintable() or each in _SHOWN else f"<U+{ord(each):04X}>" for each in joined)


def _of(kept: Sequence[int], whole: int) -> str:
    count = kept[1] - kept[0]
    return str(count) if count == whole else f"{count} of {whole}"
