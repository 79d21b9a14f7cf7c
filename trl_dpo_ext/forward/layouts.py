"""Ways to feed a batch of pairs to a backbone, and where each token of the batch then stands.

The batch comes as TRL's collator makes it: 2 x pairs rows, chosen half first, padded on the right. Only what changes a
scored log-prob has to be fed: not the padding, not the last token of a sequence (it is predicted), and what both
sequences of a pair begin with only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .tree_rows import PADDING, TRUNK, UNSCORED


@dataclass(frozen=True, slots=True)
class LayoutKind:
    """A way to feed a batch."""

    share: bool
    """A pair is one row: what both sequences begin with, then the rest of each as a branch."""
    pack: bool
    """All of it stands in one row, without padding."""


@dataclass(frozen=True, slots=True)
class Extents:
    """How many tokens of each sequence are fed, and how many of them both sequences of a pair share."""

    fed: torch.Tensor
    """(2 x pairs,)"""
    trunk: torch.Tensor
    """(pairs,)"""

    @property
    def tails(self) -> torch.Tensor:
        """(2, pairs): what remains of both sequences behind the trunk."""
        return (self.fed.view(2, -1) - self.trunk).clamp(min=0)

    def rows(self, share: bool) -> torch.Tensor:
        """Length of every row before any packing."""
        return self.trunk + self.tails.sum(dim=0) if share else self.fed


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch as it is fed."""

    input_ids: torch.Tensor
    """(rows, width)"""
    labels: torch.Tensor
    """(scored,), in the row-major order of TRL's batch"""
    scored: torch.Tensor
    """(scored,): flat index into (rows x width) of where each label is predicted."""
    slots: torch.Tensor
    """(2 x pairs, tokens): flat index of where each token of TRL's batch stands."""
    position_ids: torch.Tensor | None
    branch: torch.Tensor | None
    segment: torch.Tensor | None
    """(rows, width) each; None where the rows are ordinary causal ones."""


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
    """Width of the fed rows in each way, scalars on the device; see `rows_of` for their number."""
    return [measured.rows(way.share).sum() if way.pack else measured.rows(way.share).max() for way in ways]


def rows_of(way: LayoutKind, pairs: int) -> int:
    """Number of fed rows."""
    return 1 if way.pack else pairs if way.share else 2 * pairs


def build_layout(
    way: LayoutKind, width: int, measured: Extents, input_ids: torch.Tensor, labels: torch.Tensor, plain: bool = False
) -> Layout:
    """The batch as `way` feeds it.

    Args:
        way: how to feed it.
        width: of the rows to build, at least what `shapes` gives.
        measured: see `measure_lengths`.
        input_ids, labels: (2 x pairs, tokens); labels as TRL gives them, not shifted, -100 where not scored.
        plain: leave positions and branches out, for rows that are ordinary causal ones.
    """
    lengths = measured.rows(way.share)
    starts, row, place = _places(way, width, lengths)
    inside = place < lengths[row]
    source, token, branch = _origin(way, measured, row, place)
    branch = torch.where(inside, branch, PADDING)
    token = torch.where(inside, token, 0)
    shifted = labels[:, 1:].flatten()
    scored = (shifted != UNSCORED).nonzero().squeeze(1)  # the host waits for their number, once
    slots = _slots(way, measured, starts, input_ids.size(1))
    return Layout(
        input_ids=torch.where(inside, input_ids[source, token], 0),
        labels=shifted[scored],
        scored=slots[:, :-1].flatten()[scored],
        slots=torch.where(torch.arange(input_ids.size(1), device=slots.device) < measured.fed[:, None], slots, 0),
        position_ids=None if plain else token,
        branch=None if plain else branch,
        segment=row if way.pack else None,
    )


def _places(way: LayoutKind, width: int, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flat index where each row starts, (rows before packing,); for every fed place, its row and its place there."""
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
    """For every fed place: the row of TRL's batch, the token in it, and the branch."""
    if not way.share:
        return row, place, torch.full_like(place, TRUNK)
    trunk, pairs = measured.trunk[row], len(measured.trunk)
    ahead = measured.tails[0][row]
    rejected = place >= trunk + ahead
    # Where the chosen sequence is the shorter one and shared whole, the trunk has to be read from the other.
    short = (place >= measured.fed[row]) & (place < trunk)
    token = torch.where(rejected, place - ahead, place)
    branch = torch.where(place < trunk, TRUNK, torch.where(rejected, 2, 1))
    return row + pairs * (rejected | short), token, branch


def _slots(way: LayoutKind, measured: Extents, starts: torch.Tensor, tokens: int) -> torch.Tensor:
    """Flat index of every token of TRL's batch, (2 x pairs, tokens); what is not fed gets an index without meaning."""
    token = torch.arange(tokens, device=starts.device)
    if not way.share:
        return starts[:, None] + token
    behind = token >= measured.trunk[:, None]
    rejected = starts[:, None] + token + behind * measured.tails[0][:, None]
    return torch.cat([starts[:, None] + token, rejected])
