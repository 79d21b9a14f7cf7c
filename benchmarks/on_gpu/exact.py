"""Packed rows on real kernels: as close to float64 as the model's own rows are, and finite where cuDNN is not.

In float32 and bf16, for models with every feature of attention: log-probs and gradients of TRL's padded rows, and of
packed rows, both against the same weights in float64 on the CPU. bf16 goes through torch's kernel for sequences of
different lengths; in a dry run an emulation stands in for it, so that the code around it runs.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from .book import Book
from .clocks import free

# Cases of tests/support/architectures.py, in sizes that GPU kernels take.
CASES = ("llama", "gpt2", "gemma3", "qwen2-window", "olmo2", "mistral-window", "gemma2")
EXPERTS = ("qwen3-moe", "mixtral-window", "gpt-oss", "deepseek-v3")
"""In float32 alone: rounding to bf16 sends tokens to other experts."""
HEAD = 64
LENGTHS = ((100, 51, 71), (33, 2, 90), (1, 90, 20), (64, 65, 64), (0, 40, 41), (127, 65, 33))
"""Prompt, chosen and rejected of each pair; the widest row has 192 tokens, which is 64 modulo 128."""
TIMES_ERROR = 1.5
"""By how much the error of packed rows may exceed that of the model's own rows."""


def run(book: Book) -> None:
    for case in book.some((*CASES, *EXPERTS)):
        for dtype in (torch.float32,) if case in EXPERTS else book.some((torch.bfloat16, torch.float32)):
            name = f"{case}, {str(dtype).removeprefix('torch.')}"
            if book.wanted(name, 5):
                with book.cell(name) as out:
                    compare(book, case, dtype, out)
                free()
    if book.wanted("gradients where cuDNN's are NaN", 5):
        with book.cell("gradients where cuDNN's are NaN") as out:
            planted(book, out)


def compare(book: Book, case: str, dtype: torch.dtype, out: dict[str, Any]) -> None:
    from tests.support import architectures

    model = build(case).to(dtype)
    with architectures.double_precision():
        exact = build(case).to(dtype).double()
        truth = _log_probs_and_gradients(exact, with_head(exact), torch.device("cpu"))
    model = with_head(model.to(book.device))
    rows = _log_probs_and_gradients(model, model, book.device)
    errors = {"own rows": _errors(rows, truth)}
    with counted_varlen(book) as calls:
        for name, share in {"share_prompt": True, "padding_free": False}.items():
            errors[name] = _errors(_log_probs_and_gradients(model, _packed(model, share), book.device), truth)
    out["error of log-probs and gradients, relative to float64"] = errors
    out["calls of varlen_attn"] = calls[0]
    half = dtype is not torch.float32
    fits = model.config.get_text_config()._attn_implementation == "sdpa" and case != "deepseek-v3"
    has_kernel = book.dry or _varlen_has_windows()
    book.check(out, f"varlen_attn is {'' if half and fits and has_kernel else 'not '}called",
               (calls[0] > 0) == (half and fits and has_kernel))  # fmt: skip
    floor = 1e-3 if half else 1e-5
    for name in ("share_prompt", "padding_free"):
        allowed = [TIMES_ERROR * each + floor for each in errors["own rows"].values()]
        near = all(found <= most for found, most in zip(errors[name].values(), allowed, strict=True))
        book.check(out, f"{name}: error at most {TIMES_ERROR} times that of its own rows", near)


def build(case: str) -> Any:
    """A model of the case with heads of `HEAD`, on the CPU, in float32."""
    from tests.support import architectures

    name, settings = architectures.EXACT[case]
    sizes = {"hidden_size": 4 * HEAD, "intermediate_size": 512, "max_position_embeddings": 512}
    if name == "GPT2":
        sizes = {"n_embd": 4 * HEAD, "n_positions": 512, "max_position_embeddings": 512}
    if "head_dim" in settings:
        sizes["head_dim"] = HEAD
    if settings.get("sliding_window"):
        sizes["sliding_window"] = 48
    model = architectures.construct(name, {**settings, **sizes})
    with torch.no_grad():  # as far from a uniform distribution as small models are, so that a wrong mask shows
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.25)
    return model


def with_head(model: Any) -> Any:
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model, outputs=("log_probs",))
    return model


def _packed(model: Any, share: bool) -> Any:
    from trl_dpo_ext.forward.packed_model import PackedModel, PairPacker

    return PackedModel(model, model, PairPacker(share))


def batch(device: torch.device) -> dict[str, torch.Tensor]:
    """Pairs of `LENGTHS` as TRL's collator lays them out, chosen half first, padded on the right."""
    draw = torch.Generator().manual_seed(0)
    width = max(prompt + max(sides) for prompt, *sides in LENGTHS)
    made = {name: torch.zeros(2 * len(LENGTHS), width, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    made["labels"] = torch.full((2 * len(LENGTHS), width), -100)
    for pair, (prompt, *sides) in enumerate(LENGTHS):
        beginning = torch.randint(3, 64, (prompt,), generator=draw)
        for side, length in enumerate(sides):
            row, answer = side * len(LENGTHS) + pair, torch.randint(3, 64, (length,), generator=draw)
            made["input_ids"][row, : prompt + length] = torch.cat([beginning, answer])
            made["attention_mask"][row, : prompt + length] = 1
            made["labels"][row, max(prompt, 1) : prompt + length] = made["input_ids"][
                row, max(prompt, 1) : prompt + length
            ]
    return {name: tensor.to(device) for name, tensor in made.items()}


def _log_probs_and_gradients(model: Any, call: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(scored,) and (weights,), float64 on the CPU; no two tokens weigh the same in the loss."""
    inputs = batch(device)
    model.zero_grad()
    log_probs = call(**inputs, fused_lm_head=True, use_cache=False).log_probs
    log_probs = log_probs[inputs["labels"][:, 1:] != -100]
    (log_probs * torch.linspace(-1.0, 2.0, len(log_probs), device=device, dtype=log_probs.dtype)).sum().backward()
    gradient = torch.cat([p.grad.double().flatten().cpu() for p in model.parameters() if p.grad is not None])
    return log_probs.detach().double().cpu(), gradient


def _errors(got: tuple[torch.Tensor, ...], truth: tuple[torch.Tensor, ...]) -> dict[str, float]:
    return {
        name: float((a - b).norm() / b.norm())
        for name, a, b in zip(("log-probs", "gradients"), got, truth, strict=True)
    }


@contextlib.contextmanager
def counted_varlen(book: Book) -> Iterator[list[int]]:
    """Inside, calls of torch's kernel are counted; in a dry run they go to the tests' emulation."""
    calls = [0]
    if not book.dry and not _varlen_has_windows():
        yield calls
        return
    with contextlib.ExitStack() as inside:
        if book.dry:
            from tests.support import kernels
            from trl_dpo_ext.forward import tree_attention

            def kernel(q: Any, k: Any, v: Any, *cumulative: Any, scale: Any, window_size: Any, **_: Any) -> Any:
                calls[0] += 1
                return kernels.varlen(q, k, v, *cumulative, softmax_scale=scale, causal=True, window_size=window_size)

            stand_in: Any = ModuleType("torch.nn.attention.varlen")
            inside.enter_context(mock.patch.object(tree_attention, "_has_varlen", return_value=True))
        else:
            from torch.nn.attention import varlen

            stand_in, real = varlen, varlen.varlen_attn

            @functools.wraps(real)
            def kernel(*args: Any, **keywords: Any) -> Any:
                calls[0] += 1
                return real(*args, **keywords)

        inside.enter_context(mock.patch.object(stand_in, "varlen_attn", kernel, create=True))
        inside.enter_context(mock.patch.dict(sys.modules, {"torch.nn.attention.varlen": stand_in}))
        inside.enter_context(mock.patch.object(torch.nn.attention, "varlen", stand_in, create=True))
        yield calls


def _varlen_has_windows() -> bool:
    """Whether this torch has the kernel with windows, as from 2.11 on."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def planted(book: Book, out: dict[str, Any]) -> None:
    """Scores around -120 at widths of 64 modulo 128, where cuDNN's gradient under a mask is NaN (pytorch#196678)."""
    model = build("gpt2")
    hidden = model.config.n_embd
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, : 2 * hidden] *= 0.02
            block.attn.c_attn.bias[: 2 * hidden] = 0.0
            block.attn.c_attn.bias[0:hidden:HEAD] = 1.0
            block.attn.c_attn.bias[hidden : 2 * hidden : HEAD] = -120.0 * math.sqrt(HEAD)
    model = with_head(model.to(torch.bfloat16).to(book.device))
    width = batch(book.device)["input_ids"].size(1)
    assert width % 128 == 64, width
    found = {}
    with counted_varlen(book):
        for name, call in {
            "own rows": model,
            "share_prompt": _packed(model, True),
            "padding_free": _packed(model, False),
        }.items():
            log_probs, gradient = _log_probs_and_gradients(model, call, book.device)
            found[name] = int((~log_probs.isfinite()).sum()) + int((~gradient.isfinite()).sum())
    out["values that are not finite"] = found  # of the model's own rows: TRL's, too
    for name in ("share_prompt", "padding_free"):
        book.check(out, f"{name}: all finite", not found[name])
