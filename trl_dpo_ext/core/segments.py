"""Sums, means, and log-sum-exps over the answers to each prompt, which stand in one flat tensor.

`segment` is the index of each value's prompt; no axis is padded, so no value stands for "no answer".

Tests in tests/unit/core/test_lists.py.
"""

from __future__ import annotations

import torch

from .numerics import clamp_min


def segment_sum(values: torch.Tensor, segment: torch.Tensor, segments: int) -> torch.Tensor:
    """Sum the values of each segment, shape (segments,); an empty segment has the sum 0."""
    return values.new_zeros(segments).index_add(0, segment, values)


def segment_mean(values: torch.Tensor, segment: torch.Tensor, segments: int) -> torch.Tensor:
    """Average the values of each segment, shape (segments,); an empty segment has the mean 0."""
    return segment_sum(values, segment, segments) / clamp_min(segment_sizes(segment, segments), 1)


def segment_sizes(segment: torch.Tensor, segments: int) -> torch.Tensor:
    """Count the values of each segment, int64, shape (segments,)."""
    return segment_sum(torch.ones_like(segment), segment, segments)


@torch.no_grad()
def segment_max(values: torch.Tensor, segment: torch.Tensor, segments: int) -> torch.Tensor:
    """Return the largest value of each segment, without gradient, shape (segments,); an empty segment has -inf."""
    lowest = values.new_full((segments,), -torch.inf)
    return lowest.scatter_reduce(0, segment, values.detach(), "amax")


def segment_logsumexp(values: torch.Tensor, segment: torch.Tensor, segments: int) -> torch.Tensor:
    """Return log(sum(exp(values))) of each segment, with the maximum taken out, shape (segments,).

    Every segment must hold a value: that of an empty one would be -inf.
    """
    largest = segment_max(values, segment, segments)
    return largest + segment_sum(torch.exp(values - largest[segment]), segment, segments).log()


def segment_log_softmax(values: torch.Tensor, segment: torch.Tensor, segments: int) -> torch.Tensor:
    """Return the log-softmax within each segment, in the shape of `values`."""
    return values - segment_logsumexp(values, segment, segments)[segment]


def within_segments(segment: torch.Tensor, segments: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index of both values of every ordered pair within a segment, each value with itself included.

    Args:
        segment: index of each value's segment, ascending from 0, shape (values,).
        segments: their number.
    """
    sizes = segment_sizes(segment, segments)
    partners = sizes[segment]
    first = torch.arange(segment.numel(), device=segment.device).repeat_interleave(partners)
    return first, (sizes.cumsum(0) - sizes)[segment[first]] + segment_place(first)


def segment_place(segment: torch.Tensor) -> torch.Tensor:
    """Return the place of each value in its segment, from 0 on, where segments stand one after another."""
    index = torch.arange(segment.numel(), device=segment.device)
    begins = segment.diff(prepend=segment[:1] - 1) != 0
    return index - torch.where(begins, index, torch.zeros_like(index)).cummax(0).values
