"""torch's variable-length attention: how unequal lengths line up, whether a shared row is right, and what it takes."""

from __future__ import annotations

import math
import statistics
from functools import partial
from typing import Any

import torch

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
    segments_at,
    segments_at_once,
    segments_by_hand,
    starts,
    tensors,
)
from .book import Book, free


def run(book: Book) -> None:
    torch.manual_seed(0)
    if book.stage == "layers":
        layers(book)
        return
    alignment(book)
    shared_row(book)


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
            out["bottom right"] = got_error[0] < 0.02 and max(got_error) < 0.05


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


def shared_row(book: Book) -> None:
    """Trunk and two branches as three segments, against attention with the tree's dense mask."""
    if not book.wanted("shared row"):
        return
    with book.cell("shared row") as out:
        heads = HEADS["d64"]
        lengths = [(100, 50, 70), (33, 1, 90)]
        tree = Tree(lengths, book.device)
        inputs = _packed(heads, tree.tokens, tree.tokens, book.device)
        results = []
        for way in (tree.attend, partial(tree.attend, by=segments_at_once), tree.dense):
            exact = way == tree.dense
            leaves = [(one.double() if exact else one).detach().clone().requires_grad_() for one in inputs[:3]]
            made = way(*leaves)
            results.append([made, *gradients(made, leaves, inputs[3].to(made.dtype))])
        out["relative error of output, grad_q, grad_k, grad_v"] = _errors(results[0], results[2])
        out["... by the operator"] = _errors(results[1], results[2])


class Tree:
    """Pairs in one packed row: trunk, chosen branch, rejected branch, one pair after the other."""

    def __init__(self, lengths: list[tuple[int, int, int]], device: torch.device) -> None:
        self.lengths, self.device = lengths, device
        self.tokens = sum(map(sum, lengths))
        self.of_query, self.of_key, keys, at = [], [], [], 0
        for trunk, chosen, rejected in lengths:
            here = torch.arange(at, at + trunk + chosen + rejected)
            parts = here[:trunk], here[trunk : trunk + chosen], here[trunk + chosen :]
            self.of_query += [trunk, chosen, rejected]
            self.of_key += [trunk, trunk + chosen, trunk + rejected]
            keys += [parts[0], parts[0], parts[1], parts[0], parts[2]]
            at += len(here)
        self.keys = torch.cat(keys).to(device)
        self.at_query, self.at_key = starts(self.of_query, device), starts(self.of_key, device)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, by: Any = segments_at
    ) -> torch.Tensor:
        """(tokens, heads, size) each."""
        key, value = key[self.keys], value[self.keys]
        if self.device.type == "cpu":
            return segments_by_hand(query, key, value, self.of_query, self.of_key)
        most = max(self.of_query), max(self.of_key)
        return by(query, key, value, self.at_query, self.at_key, *most)

    def seen(self) -> torch.Tensor:
        """(tokens, tokens) bool: what each place sees."""
        pair, branch = [], []
        for number, parts in enumerate(self.lengths):
            for which, length in enumerate(parts):
                pair += [number] * length
                branch += [which] * length
        pairs, branches = torch.tensor(pair, device=self.device), torch.tensor(branch, device=self.device)
        same = (branches[None] == 0) | (branches[None] == branches[:, None])
        return ((pairs[None] == pairs[:, None]) & same).tril()

    def dense(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The same with a mask over all of the row."""
        groups = query.size(1) // key.size(1)
        key, value = (one.repeat_interleave(groups, dim=1).transpose(0, 1) for one in (key, value))
        scores = query.transpose(0, 1) @ key.transpose(1, 2) / math.sqrt(query.size(2))
        return (scores.masked_fill(~self.seen(), float("-inf")).softmax(-1) @ value).transpose(0, 1)


def layers(book: Book) -> None:
    """A layer's attention, forward and backward, for whole micro-batches of pairs with real lengths."""
    from train_step import pairs

    for lengths in ("hh", "ultrafeedback"):
        for name, heads in HEADS.items():
            cell = f"layer {name} {lengths}, micro-batch 4"
            if not book.wanted(cell, 8):
                continue
            with book.cell(cell) as out:
                for number in range(1 if book.dry else 2):
                    drawn = pairs(lengths, 4, 1000, seed=number)
                    parts = [tuple(len(pair[f"{p}_ids"]) for p in ("prompt", "chosen", "rejected")) for pair in drawn]
                    for way, value in _layer(book, heads, parts).items():
                        out.setdefault(way, []).append(value)
                out |= {f"{way}, median": statistics.median(values) for way, values in list(out.items())}
            free()


def _layer(book: Book, heads: Heads, parts: list[Any]) -> dict[str, float]:
    """Milliseconds (forward and backward) of each way to feed these pairs, on the device and for the host to ask."""
    device = book.device
    tree = Tree(parts, device)
    plain = max(p + max(c, r) for p, c, r in parts)
    shared = max(map(sum, parts))
    two = tensors(heads, 2 * len(parts), plain, device)
    one = tensors(heads, len(parts), shared, device)
    packed = [each.requires_grad_() for each in _packed(heads, tree.tokens, tree.tokens, device)[:3]]
    given = torch.randn_like(packed[0])
    plain_mask = torch.ones(2 * len(parts), 1, plain, plain, dtype=torch.bool, device=device).tril()
    mask = torch.stack([_padded(Tree([part], device).seen(), shared) for part in parts])[:, None]
    ways: dict[str, Any] = {
        "TRL's rows, cuDNN, mask": (CUDNN, lambda: (masked(*two[:3], plain_mask), two)),
        "TRL's rows, mem-efficient, mask": (EFFICIENT, lambda: (masked(*two[:3], plain_mask), two)),
        "TRL's rows, flash, causal": (FLASH, lambda: (causal(*two[:3]), two)),
        "shared rows, cuDNN, mask": (CUDNN, lambda: (masked(*one[:3], mask), one)),
        "shared rows, mem-efficient, mask": (EFFICIENT, lambda: (masked(*one[:3], mask), one)),
        "shared and packed, varlen": (None, lambda: (tree.attend(*packed), [*packed, given])),
        "shared and packed, operator": (None, lambda: (tree.attend(*packed, segments_at_once), [*packed, given])),
    }
    found = {"positions, TRL": 2 * len(parts) * plain, "positions, shared": len(parts) * shared}
    found["positions, packed"] = tree.tokens
    for way, (backend, call) in ways.items():

        def step(call: Any = call) -> None:
            made, inputs = call()
            gradients(made, inputs[:3], inputs[3])

        with forced(backend, device):
            found[f"{way}, ms"], found[f"{way}, host ms"] = book.times(step, repeats=5)
    return found


def _padded(seen: torch.Tensor, width: int) -> torch.Tensor:
    wide = torch.eye(width, dtype=torch.bool, device=seen.device)
    wide[: seen.size(0), : seen.size(0)] |= seen
    return wide
