"""What the card gives: ceilings, rates of attention by kernel, which kernel `sdpa` takes, its first time, its NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from .attention import (
    CUDNN,
    EFFICIENT,
    FLASH,
    HEADS,
    Heads,
    causal,
    causal_mask,
    compiled_flex,
    cudnn,
    forced,
    gradients,
    masked,
    segments_at,
    segments_at_once,
    starts,
    tensors,
)
from .book import NOT_MEASURED, Book
from .clocks import free, milliseconds, once, reserved_mib, times


def run(book: Book) -> None:
    torch.manual_seed(0)
    if book.stage == "rates":
        rates(book)
        flex(book)
        return
    ceilings(book)
    nan_case(book)
    which_kernel(book)
    first_time(book)
    beside_the_pool(book)


def ceilings(book: Book) -> None:
    if book.wanted("ceilings"):
        with book.cell("ceilings") as out:
            count = 2**20 if book.dry else 2**31
            source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=book.device)
            target = torch.empty_like(source)
            taken = milliseconds(book, lambda: target.copy_(source))
            out["copy_tb_per_s_read_and_written"] = 2 * count / taken / 1e9
            del source, target
            side = 256 if book.dry else 8192
            left, right = (torch.randn(side, side, device=book.device, dtype=torch.bfloat16) for _ in range(2))
            taken = milliseconds(book, lambda: left @ right)
            out["bf16_8192_tflops"] = 2 * side**3 / taken / 1e9
        free()


def nan_case(book: Book) -> None:
    """pytorch#196678: a mask, a width of 64 modulo 128, and rows whose logsumexp is far below zero."""
    kinds: dict[str, tuple[Any, bool, bool]] = {  # backend or None for the default, cuDNN allowed, with a mask
        "default": (None, True, True),
        "default, cuDNN off": (None, False, True),
        "default without a mask": (None, True, False),
        "flash without a mask": (FLASH, True, False),
        "cuDNN without a mask": (CUDNN, True, False),
        "mem-efficient": (EFFICIENT, True, True),
    }
    cases = [("default", 64, width, -120.0, "bool") for width in (128, 192, 224, 320, 448, 704)]
    cases += [("default", 64, 192, shift, "bool") for shift in (-60.0, -85.0, -95.0)]
    cases += [("default", 128, 192, -120.0, "bool"), ("default", 64, 192, -120.0, "additive")]
    cases += [(kind, 64, width, -120.0, "bool") for kind in list(kinds)[1:] for width in (192, 704)]
    if not book.wanted("nan"):
        return
    with book.cell("nan") as out:
        out["not_finite (of grad_q, grad_k, grad_v, output)"] = found = {}
        for kind, size, width, shift, form in cases[:2] + cases[-1:] if book.dry else cases:
            backend, allowed, with_mask = kinds[kind]
            name = f"{kind}: d {size}, width {width}, logsumexp {shift:.0f}, {form if with_mask else 'causal'} mask"
            try:
                with cudnn(allowed), forced(backend, book.device):
                    found[name] = _not_finite(book, size, width, shift, form if with_mask else None)
            except RuntimeError as error:
                found[name] = f"{type(error).__name__}: {str(error)[:120]}"
        safe = [value for name, value in found.items() if not name.startswith("default: ")]
        book.check(
            out, "finite without cuDNN, and without a mask", not any(sum(v) for v in safe if isinstance(v, list))
        )


def _not_finite(book: Book, size: int, width: int, shift: float, form: str | None) -> list[int]:
    heads = Heads(1, 1, size)
    query, key, value, given = tensors(heads, 1, width, book.device)
    with torch.no_grad():
        query.mul_(0.1)[..., 0] = 1.0
        key.mul_(0.1)[..., 0] = shift * math.sqrt(size)
    mask = causal_mask(width, book.device)
    if form == "additive":
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
    out = (
        F.scaled_dot_product_attention(query, key, value, is_causal=True)
        if form is None
        else F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    )
    got = gradients(out, (query, key, value), given)
    counts = [int((~one.isfinite()).sum()) for one in (*got, out)]
    return counts


def which_kernel(book: Book) -> None:
    """Names of the kernels behind `sdpa`, as the profiler reads them."""
    if not book.wanted("which kernel"):
        return
    with book.cell("which kernel") as out:
        for name, heads in book.some(HEADS.items()):
            inputs = tensors(heads, 2, 192, book.device)
            mask = causal_mask(192, book.device)
            calls: dict[str, tuple[bool, Callable[..., Any]]] = {
                "mask": (True, partial(masked, mask=mask)),
                "mask, cuDNN off": (False, partial(masked, mask=mask)),
                "no mask": (True, causal),
            }
            for kind, (allowed, call) in calls.items():
                with cudnn(allowed):
                    _step(call, inputs)
                    out[f"{name}, {kind}"] = _kernels(lambda call=call, inputs=inputs: _step(call, inputs))


def _step(call: Callable[..., Any], inputs: list[torch.Tensor]) -> None:
    gradients(call(*inputs[:3]), inputs[:3], inputs[3])


def _kernels(run: Callable[[], object]) -> list[str]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    names = [event.key for event in seen.key_averages() if event.self_device_time_total > 0]
    telling = ("flash", "fmha", "cudnn", "attention", "sdpa", "AttentionKernel")
    return [name[:90] for name in names if any(word.lower() in name.lower() for word in telling)]


def first_time(book: Book) -> None:
    """Milliseconds of a shape's first forward and backward, and of its second."""
    if not book.wanted("first time", 15):
        return
    with book.cell("first time") as out:
        heads, widths = HEADS["d64"], (137,) if book.dry else (137, 211, 283, 351, 433, 509)
        for kind, allowed in book.some(({"cuDNN": True, "cuDNN off": False}).items()):
            taken: dict[str, list[float]] = {"forward": [], "backward": [], "forward again": [], "backward again": []}
            with cudnn(allowed):
                for width in widths:
                    inputs, mask = tensors(heads, 8, width, book.device), causal_mask(width, book.device)
                    for again in ("", " again"):
                        results: list[torch.Tensor] = []
                        first = once(book, lambda: results.append(masked(*inputs[:3], mask)))  # noqa: B023
                        taken[f"forward{again}"].append(first)
                        taken[f"backward{again}"].append(
                            once(book, lambda: gradients(results[0], inputs[:3], inputs[3]))  # noqa: B023
                        )
            out[kind] = taken


def rates(book: Book) -> None:
    """Milliseconds and TFLOP/s (on the visible half) of a layer's attention, 8192 positions in rows of one width."""
    for name, heads in book.some(HEADS.items()):
        for width in (64,) if book.dry else (1024, 512, 256, 2048):
            cell = f"rates {name} width {width}"
            if not book.wanted(cell, 6):
                continue
            rows = 2 if book.dry else 8192 // width
            with book.cell(cell) as out:
                out["rows"] = rows
                out["forward ms, backward ms, TFLOP/s forward, backward, host ms of both"] = found = {}
                inputs, mask = tensors(heads, rows, width, book.device), causal_mask(width, book.device)
                added = torch.zeros_like(mask, dtype=torch.bfloat16).masked_fill(~mask, float("-inf"))
                ways: dict[str, tuple[Any, Callable[..., Any]]] = {
                    "flash, causal": (FLASH, causal),
                    "cuDNN, bool mask": (CUDNN, partial(masked, mask=mask)),
                    "mem-efficient, bool mask": (EFFICIENT, partial(masked, mask=mask)),
                    "varlen": (None, _varlen(rows, width, book, segments_at)),
                    "varlen, operator": (None, _varlen(rows, width, book, segments_at_once)),
                }
                if width in (1024, 64):
                    ways |= {
                        "cuDNN, causal": (CUDNN, causal),
                        "cuDNN, additive mask": (CUDNN, partial(masked, mask=added)),
                        "mem-efficient, additive mask": (EFFICIENT, partial(masked, mask=added)),
                    }
                for way, (backend, call) in ways.items():
                    try:
                        with forced(backend, book.device):
                            found[way] = _rate(book, call, inputs, heads, rows, width)
                    except RuntimeError as error:
                        found[way] = f"{type(error).__name__}: {str(error)[:200]}"
            free()


def _varlen(rows: int, width: int, book: Book, attend: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    if book.dry:
        return causal
    at = starts([width] * rows, book.device)

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        flat = [one.transpose(1, 2).flatten(0, 1) for one in (query, key, value)]
        out = attend(*flat, at, at, width, width)
        return out.unflatten(0, (rows, width)).transpose(1, 2)

    return call


def _rate(
    book: Book, call: Callable[..., Any], inputs: list[torch.Tensor], heads: Heads, rows: int, width: int
) -> list[float]:
    with torch.no_grad():
        forward = milliseconds(book, lambda: call(*inputs[:3]))
    both, host = times(book, lambda: _step(call, inputs))
    operations = 2 * rows * heads.queries * width**2 * heads.size  # the visible half of two products
    backward = max(both - forward, 1e-6)
    return [forward, backward, operations / forward / 1e9, 2.5 * operations / backward / 1e9, host]


def beside_the_pool(book: Book) -> None:
    """What driver, cuBLAS and cuDNN hold outside PyTorch's pool, this process being alone on the card."""
    if book.wanted("beside the pool"):
        with book.cell("beside the pool") as out:
            unused, total = (NOT_MEASURED, NOT_MEASURED) if book.dry else torch.cuda.mem_get_info()
            out["gib"] = (total - unused) / 2**30 - reserved_mib(book) / 2**10


def flex(book: Book) -> None:
    """Compiled flex attention on the same causal rows; compiling is timed too."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    for name, heads in book.some(HEADS.items()):
        cell = f"flex {name} width 1024"
        if not book.wanted(cell, 30):
            continue
        with book.cell(cell) as out:
            rows, width = (1, 128) if book.dry else (8, 1024)
            inputs = tensors(heads, rows, width, book.device)
            out["block_mask_ms"] = milliseconds(
                book,
                lambda width=width: create_block_mask(_causal, None, None, width, width, device=book.device),
                repeats=3,
            )
            blocks = create_block_mask(_causal, None, None, width, width, device=book.device)
            if book.dry:  # uncompiled, and a CPU knows no gradient of it
                plain = [one.detach() for one in inputs[:3]]
                flex_attention(*plain, block_mask=blocks, enable_gqa=True)
                continue
            call = partial(compiled_flex(), block_mask=blocks, enable_gqa=True)
            out["compile_s"] = once(book, lambda call=call, inputs=inputs: _step(call, inputs)) / 1000
            out["forward ms, backward ms, TFLOP/s forward, backward, host ms of both"] = _rate(
                book, call, inputs, heads, rows, width
            )


def _causal(_row: Any, _head: Any, query: Any, key: Any) -> Any:
    return key <= query
