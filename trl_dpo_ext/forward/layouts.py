"""Layouts of a batch of pairs for a backbone, and the place of each token of the batch in them.

The batch comes as TRL's collator makes it: 2 x pairs rows, chosen half first, padded on the right. Only what changes a
scored log-prob has to be fed: not the padding, not the last token of a sequence (it is predicted), and what both
sequences of a pair begin with only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .tree_rows import PADDING, SHARED_PREFIX, UNSCORED


@dataclass(frozen=True, slots=True)
class LayoutKind:
    """A way to feed a batch."""

    share: bool
    """A pair is one row: the prefix that both sequences share, then the rest of each as a branch."""
    pack: bool
    """The batch is one row, without padding."""


@dataclass(frozen=True, slots=True)
class Extents:
    """Number of tokens of each sequence that are fed, and of those that both sequences of a pair share."""

    fed: torch.Tensor
    """(2 x pairs,)"""
    shared_prefix: torch.Tensor
    """(pairs,)"""

    @property
    def suffixes(self) -> torch.Tensor:
        """Number of tokens after the shared prefix, (2, pairs)."""
        return (self.fed.view(2, -1) - self.shared_prefix).clamp(min=0)

    def rows(self, share: bool) -> torch.Tensor:
        """Return the length of every row before packing."""
        return self.shared_prefix + self.suffixes.sum(dim=0) if share else self.fed


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch in the layout in which it is fed."""

    input_ids: torch.Tensor
    """(rows, width)"""
    labels: torch.Tensor
    """(scored,), in the row-major order of TRL's batch"""
    scored: torch.Tensor
    """(scored,): flat index into (rows x width) at which each label is predicted."""
    token_index: torch.Tensor
    """(2 x pairs, tokens): flat index of each token of TRL's batch."""
    position_ids: torch.Tensor | None
    branch: torch.Tensor | None
    segment: torch.Tensor | None
    """(rows, width) each; None if the rows are ordinary causal ones."""


def measure_lengths(input_ids: torch.Tensor, attention_mask: torch.Tensor, with_last: bool = False) -> Extents:
    """Measure a batch, without waiting for its device.

    Args:
        input_ids, attention_mask: (2 x pairs, tokens).
        with_last: feed the last tokens too, which a mixture of experts counts for its auxiliary loss.
    """
    lengths = attention_mask.sum(dim=1)
    fed = lengths if with_last else (lengths - 1).clamp(min=0)
    (chosen, rejected), (left, right) = input_ids.chunk(2), attention_mask.bool().chunk(2)
    shared = ((chosen == rejected) & left & right).long().cumprod(dim=1).sum(dim=1)
    return Extents(fed, torch.minimum(shared, fed.view(2, -1).amax(dim=0)))


def shapes(ways: Sequence[LayoutKind], measured: Extents) -> list[torch.Tensor]:
    """Return the width of the fed rows in each layout, scalars on the device; `rows_of` gives their number."""
    return [measured.rows(way.share).sum() if way.pack else measured.rows(way.share).max() for way in ways]


def rows_of(way: LayoutKind, pairs: int) -> int:
    """Return the number of fed rows."""
    return 1 if way.pack else pairs if way.share else 2 * pairs


def build_layout(
    way: LayoutKind, width: int, measured: Extents, input_ids: torch.Tensor, labels: torch.Tensor, plain: bool = False
) -> Layout:
    """Lay a batch out.

    Args:
        way: the kind of layout.
        width: of the rows to build, at least that of `shapes`.
        measured: the batch's lengths, from `measure_lengths`.
        input_ids, labels: (2 x pairs, tokens); labels as TRL gives them, not shifted, -100 where not scored.
        plain: leave positions and branches out, if the rows are ordinary causal ones.
    """
    lengths = measured.rows(way.share)
    starts, row, place = _places(way, width, lengths)
    inside = place < lengths[row]
    source, token, branch = _origin(way, measured, row, place)
    branch = torch.where(inside, branch, PADDING)
    token = torch.where(inside, token, 0)
    shifted = labels[:, 1:].flatten()
    scored = (shifted != UNSCORED).nonzero().squeeze(1)  # the host waits for their number, once
    token_index = _token_index(way, measured, starts, input_ids.size(1))
    return Layout(
        input_ids=torch.where(inside, input_ids[source, token], 0),
        labels=shifted[scored],
        scored=token_index[:, :-1].flatten()[scored],
        token_index=torch.where(
            torch.arange(input_ids.size(1), device=token_index.device) < measured.fed[:, None], token_index, 0
        ),
        position_ids=None if plain else token,
        branch=None if plain else branch,
        segment=row if way.pack else None,
    )


def _places(way: LayoutKind, width: int, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the flat index of each row's start, (rows before packing,), and every fed place's row and index in it."""
    index = torch.arange(width, device=lengths.device)
    if not way.pack:
        rows = torch.arange(len(lengths), device=lengths.device)
        return rows * width, rows[:, None].expand(-1, width).contiguous(), index.expand(len(lengths), -1)
    ends = lengths.cumsum(0)
    row = torch.searchsorted(ends, index, right=True).clamp(max=len(lengths) - 1)
    return ends - lengths, row[None], (index - (ends - lengths)[row])[None]


def _origin(
    way: LayoutKind, measured: Extents, row: torch.Tensor, place: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the row of TRL's batch, the token in it, and the branch of every fed place."""
    if not way.share:
        return row, place, torch.full_like(place, SHARED_PREFIX)
    prefix, pairs = measured.shared_prefix[row], len(measured.shared_prefix)
    ahead = measured.suffixes[0][row]
    rejected = place >= prefix + ahead
    # Where the chosen sequence is a prefix of the rejected one, the prefix has to be read from the other.
    short = (place >= measured.fed[row]) & (place < prefix)
    token = torch.where(rejected, place - ahead, place)
    branch = torch.where(place < prefix, SHARED_PREFIX, torch.where(rejected, 2, 1))
    return row + pairs * (rejected | short), token, branch


def _token_index(way: LayoutKind, measured: Extents, starts: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the flat index of every token of TRL's batch, (2 x pairs, tokens); arbitrary if a token is not fed."""
    token = torch.arange(tokens, device=starts.device)
    if not way.share:
        return starts[:, None] + token
    behind = token >= measured.shared_prefix[:, None]
    rejected = starts[:, None] + token + behind * measured.suffixes[0][:, None]
    return torch.cat([starts[:, None] + token, rejected])
