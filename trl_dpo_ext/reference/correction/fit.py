"""Fit the low-rank terms of a quantized model to what flows through its layers.

A layer's weights W have become W'. Of all terms of rank r, U U' (W - W') leaves the least error in the layer's outputs
on the inputs x, where U, (out, r), are the leading eigenvectors of the outputs' error (W - W') E[x x'] (W - W')'. This
is the solution of QERA (arXiv 2410.06040) and of EoRA (2410.21271), without the inverse of the inputs' second moments
that they need; LQER (2402.02446) takes the diagonal of these. U is found by subspace iteration, which needs no
decomposition of a large matrix.

All terms are fitted in one forward of the quantized model: when a layer is reached, its term is fitted to the inputs
that the corrected layers before it give, added, and used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from .layers import LowRank, attach, dequantized, has_term, quantized_layers

RIDGE = 0.01
"""Share of the inputs' mean square that is added in every direction, so that those without inputs count a little."""
TOKENS_PER_RANK = 4
"""Fewest tokens for each rank of a term."""
_EXTRA, _ROUNDS = 16, 12  # of the subspace iteration
_SEED = 20

Weights = Callable[[str], torch.Tensor]
"""From the name of a layer to its unquantized weights, (out, in)."""


def fit(model: nn.Module, weights: Weights, rank: int, forward: Callable[[], Any], mask: torch.Tensor) -> None:
    """Fit and attach the terms of all quantized layers of a model.

    Args:
        model: quantized, without terms.
        weights: of the model that it was quantized from.
        rank: of every term.
        forward: runs the model's layers once, on all sequences.
        mask: (rows, tokens) bool, true on the tokens of the sequences that `forward` runs.
    """
    layers = quantized_layers(model)
    with _fitting(layers, weights, rank, mask), torch.no_grad():
        forward()
    for layer in layers.values():  # such as an expert that no token was routed to
        if not has_term(layer):
            attach(layer, empty_term(layer, rank))


def check(model: nn.Module, rank: int, tokens: int, option: str, more: str) -> None:
    """Check that terms of a rank can be fitted to a model.

    Args:
        model: quantized, without terms.
        rank: of the terms.
        tokens: number of those to fit them on.
        option: what errors call the rank, which the caller was given under that name.
        more: what errors say of how to give more tokens.

    Raises:
        InputError: there are too few tokens, or the rank is larger than a layer's.
    """
    shapes = [(x.out_features, x.in_features) for x in quantized_layers(model).values()]
    problems = rank_problems(rank, shapes, option)
    if tokens < TOKENS_PER_RANK * rank:
        problems.append(
            f"A correction of rank {rank} needs at least {TOKENS_PER_RANK * rank} tokens to be fitted on; got "
            f"{tokens}. {more}, or set a smaller {option}."
        )
    if problems:
        raise InputError(*problems)


def rank_problems(rank: int, shapes: list[tuple[int, int]], option: str) -> list[str]:
    """Return why layers cannot have terms of a rank.

    Args:
        rank: of the terms.
        shapes: (out, in) of each layer.
        option: what errors call the rank.
    """
    smallest = min((min(shape) for shape in shapes), default=0)
    if rank <= smallest:
        return []
    return [
        f"{option}={rank} is larger than the rank of the smallest quantized layer ({smallest}). Set it to "
        f"{smallest} or less."
    ]


@contextmanager
def _fitting(layers: dict[str, nn.Linear], weights: Weights, rank: int, mask: torch.Tensor) -> Iterator[None]:
    last: dict[str, torch.Tensor] = {}  # the inputs of the layer before, which may be those of the next one, too

    def moments_of(x: torch.Tensor) -> torch.Tensor:
        if last.get("inputs") is not x:
            rows = x[mask] if x.shape[:2] == mask.shape else x.reshape(-1, x.size(-1))
            last.update(inputs=x, moments=second_moments(rows.float()))
        return last["moments"]

    def fit_layer(name: str) -> Callable[[Any, Any], None]:
        def hook(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if has_term(layer):  # called a second time in this forward
                return
            x = inputs[0]
            with torch.autocast(x.device.type, enabled=False):
                error = weights(name).to(x.device, torch.float32) - dequantized(layer).to(x.device)
                attach(layer, term(error, moments_of(x), rank))

        return hook

    handles = [layer.register_forward_pre_hook(fit_layer(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def second_moments(inputs: torch.Tensor) -> torch.Tensor:
    """The second moments of a layer's inputs, (in, in), with the ridge.

    Args:
        inputs: (tokens, in) in float32.
    """
    moments = inputs.T @ inputs / max(len(inputs), 1)
    moments.diagonal().add_(RIDGE * moments.diagonal().mean())
    return moments


def term(error: torch.Tensor, moments: torch.Tensor, rank: int) -> LowRank:
    """The term of a rank that removes most of a layer's error.

    Args:
        error: of the layer's weights, (out, in) in float32.
        moments: of the layer's inputs, (in, in).
        rank: at most the smaller side of `error`.
    """
    up = leading(error, moments, rank)
    return LowRank(up.T @ error, up)


def leading(error: torch.Tensor, moments: torch.Tensor, rank: int) -> torch.Tensor:
    """The leading eigenvectors of the outputs' error, (out, rank), orthonormal."""
    generator = torch.Generator().manual_seed(_SEED)
    width = min(rank + _EXTRA, error.size(0))
    basis = torch.randn(error.size(0), width, generator=generator).to(error)
    for _ in range(_ROUNDS):
        basis = error @ (moments @ (error.T @ torch.linalg.qr(basis).Q))
    basis = torch.linalg.qr(basis).Q
    back = error.T @ basis
    return basis @ torch.linalg.eigh(back.T @ moments @ back).eigenvectors.flip(1)[:, :rank]


def empty_term(layer: nn.Linear, rank: int) -> LowRank:
    """A term that adds nothing, on the layer's device."""
    device = layer.weight.device
    return LowRank(
        torch.zeros(rank, layer.in_features, device=device), torch.zeros(layer.out_features, rank, device=device)
    )
