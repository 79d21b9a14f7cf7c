"""Attention of one layer: how unequal lengths line up in torch's kernel, and what each way to feed pairs takes."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trl_dpo_ext.forward.packing import pack
from trl_dpo_ext.forward.tree_attention import TreeAttention, TreeMask

from .attention import (
    CUDNN,
    EFFICIENT,
    FLASH,
    HEADS,
    Heads,
    causal,
    forced,
    gradients,
    masked,
    segments,
    segments_by_hand,
    tensors,
)
from .book import Book
from .clocks import free, times


def run(book: Book) -> None:
    torch.manual_seed(0)
    alignment(book)
    layers(book)


def alignment(book: Book) -> None:
    """Queries and keys of unequal number: does the last query see the last key?"""
    for name, heads in {"grouped heads": Heads(4, 2, 64), "equal heads": Heads(4, 4, 128)}.items():
        if not book.wanted(f"alignment, {name}"):
            continue
        with book.cell(f"alignment, {name}") as out:
            of_query, of_key = (37, 64, 100, 1), (80, 64, 150, 33)
            inputs = _packed(heads, sum(of_query), sum(of_key), book.device)
            got, expected, other = _three(inputs, of_query, of_key)
            out["error against bottom right"] = got_error = _errors(got, expected)
            out["error against top left"] = _errors(got, other)
            book.check(out, "the last query sees the last key", got_error[0] < 0.02 and max(got_error) < 0.05)


def _packed(heads: Heads, queries: int, keys: int, device: torch.device) -> list[torch.Tensor]:
    counts = [(queries, heads.queries), (keys, heads.keys), (keys, heads.keys), (queries, heads.queries)]
    return [torch.randn(tokens, n, heads.size, device=device, dtype=torch.bfloat16) for tokens, n in counts]


def _three(inputs: list[torch.Tensor], of_query: Any, of_key: Any) -> list[list[torch.Tensor]]:
    """Output and gradients of the kernel, and of both conventions in double precision."""
    results = []
    for kind in ("kernel", "bottom right", "top left"):
        exact = kind != "kernel"
        leaves = [(one.double() if exact else one).detach().clone().requires_grad_() for one in inputs[:3]]
        if exact:
            out = segments_by_hand(*leaves, of_query, of_key, kind == "bottom right")
        else:
            out = segments(*leaves, of_query, of_key)
        results.append([out, *gradients(out, leaves, inputs[3].to(out.dtype))])
    return results


def _errors(got: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    return [float((a.double() - b).detach().norm() / b.detach().norm()) for a, b in zip(got, expected, strict=True)]


def layers(book: Book) -> None:
    """A layer's attention, forward and backward, for whole micro-batches of pairs with real lengths."""
    from lengths import pairs

    for lengths in book.some(("hh", "ultrafeedback")):
        for name, heads in book.some(HEADS.items()):
            cell = f"layer {name} {lengths}, micro-batch 4"
            if not book.wanted(cell, 8):
                continue
            with book.cell(cell) as out:
                of_batches: dict[str, list[float]] = {}
                for number in range(1 if book.dry else 2):
                    drawn = pairs(lengths, 4, 1000, seed=number)
                    for way, value in _layer(book, heads, drawn).items():
                        of_batches.setdefault(way, []).append(value)
                out["of each batch"] = of_batches
                out["median"] = {way: statistics.median(values) for way, values in of_batches.items()}
            free()


def _layer(book: Book, heads: Heads, pairs: list[dict[str, list[int]]]) -> dict[str, float]:
    """Milliseconds (forward and backward) of each way to feed these pairs, on the device and for the host to ask."""
    device = book.device
    # As the package packs them: only tokens that are fed, what a pair begins with once.
    both = [
        np.array(pair["prompt_ids"] + pair[f"{side}_ids"])[:-1] for pair in pairs for side in ("chosen", "rejected")
    ]
    trees = pack(both, [number // 2 for number in range(len(both))]).trees
    assert trees is not None
    plain = max(map(len, both)) + 1
    padded = tensors(heads, len(both), plain, device)
    packed = tensors(heads, 1, trees.width, device)
    mask = TreeMask.of(trees, (None, None), device)
    whole = torch.ones(len(both), 1, plain, plain, dtype=torch.bool, device=device).tril()
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal, module.training = heads.groups, True, True  # type: ignore[assignment]
    attend = TreeAttention("sdpa", ALL_ATTENTION_FUNCTIONS["sdpa"])

    def of_package() -> Any:
        return attend(module, *packed[:3], mask)[0].transpose(1, 2), packed

    def by_row() -> Any:
        return attend._by_row(trees, (None, None), module, *packed[:3]).transpose(1, 2), packed

    ways: dict[str, Any] = {
        "TRL's rows, cuDNN, mask": (CUDNN, lambda: (masked(*padded[:3], whole), padded)),
        "TRL's rows, mem-efficient, mask": (EFFICIENT, lambda: (masked(*padded[:3], whole), padded)),
        "TRL's rows, flash, causal": (FLASH, lambda: (causal(*padded[:3]), padded)),
        "share_prompt, as the package attends": (None, of_package),
        "share_prompt, one row for each sequence": (None, by_row),
    }
    found: dict[str, float] = {"positions, TRL": len(both) * plain, "positions, share_prompt": trees.width}
    for way, (backend, call) in ways.items():

        def step(call: Any = call) -> None:
            made, inputs = call()
            gradients(made, inputs[:3], inputs[3])

        with forced(backend, device):
            found[f"{way}, ms"], found[f"{way}, host ms"] = times(book, step, repeats=5)
    return found
