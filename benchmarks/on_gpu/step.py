"""Training steps of TRL's trainer and of ours on the same batches, in turn, in one process: warm and the first time."""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from .attention import cudnn
from .book import NOT_MEASURED, Book
from .clocks import free, once, peak_mib, spread


@dataclass
class Contestant:
    """One way to run the step, and what was measured of it."""

    trainer: Any
    attention: str = "sdpa"
    cudnn: bool = True
    causal: bool = False
    """Without the mask of right-padded rows, as flash attention runs them: the same losses, another kernel."""
    cold: list[float] = field(default_factory=list)
    warm: list[list[float]] = field(default_factory=list)


def run(book: Book) -> None:
    if book.stage == "step":
        for lengths in book.some(("ultrafeedback", "hh")):
            compare(book, "qwen2.5-0.5b", lengths, micro_batch=4, batches=8, checkpointing=False)
        launches(book)
    else:
        for lengths in book.some(("ultrafeedback", "hh")):
            compare(book, "llama-3-8b", lengths, micro_batch=2, batches=4, checkpointing=True)


# Best first. The last comes from the Hub, and is found without a network where it was downloaded before.
FLASH_ATTENTION = ("flash_attention_3", "flash_attention_2", "kernels-community/flash-attn2")


def flash_attention(model: Any) -> tuple[str | None, dict[str, str]]:
    """The best flash attention of transformers that works here, and why those before it do not."""
    reasons, before = {}, model.config._attn_implementation
    for name in FLASH_ATTENTION:
        try:
            model.set_attn_implementation(name)
            model.set_attn_implementation(before)
            return name, reasons
        except Exception as error:
            reasons[name] = f"{type(error).__name__}: {str(error)[:160]}"
    model.set_attn_implementation(before)
    return None, reasons


def contestants(book: Book, options: argparse.Namespace, folder: str) -> tuple[dict[str, Contestant], dict[str, str]]:
    """All of them around one policy and one reference; and which kernels are missing here, with the reason."""
    from shapes import model
    from trl import DPOConfig, DPOTrainer

    from tests.support import tiny
    from trl_dpo_ext import DPOExtConfig, DPOExtTrainer

    policy, reference = model(options.model_shape, options, 0), model(options.model_shape, options, 1)
    settings = {"bf16": False, "use_cpu": book.dry, "report_to": "none", "max_length": None}
    settings["gradient_checkpointing"] = options.gradient_checkpointing
    data = {"train_dataset": tiny.preferences(), "processing_class": tiny.tokenizer()}
    flash, missing = flash_attention(policy)
    if book.dry:
        flash = "eager"  # for the code's sake
    trl = DPOTrainer(policy, reference, DPOConfig(f"{folder}/trl", **settings), **data)

    def ours(**flags: Any) -> Any:
        args = DPOExtConfig(f"{folder}/{next(iter(flags))}", verify_share_prompt=False, **flags, **settings)
        return DPOExtTrainer(policy, reference, args, **data)

    shared, packed = ours(share_prompt=True), ours(padding_free=True)
    if options.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    found = {
        "TRL": Contestant(trl),
        "TRL again": Contestant(trl),
        "TRL, cuDNN off": Contestant(trl, cudnn=False),
        "TRL, causal kernel": Contestant(trl, cudnn=False, causal=True),
        "share_prompt": Contestant(shared),
        "padding_free": Contestant(packed),
    }
    if flash:
        found |= {f"TRL, {flash}": Contestant(trl, flash), f"share_prompt, {flash}": Contestant(shared, flash)}
    if book.dry and options.gradient_checkpointing:  # those that differ in code from the small model's
        found = {name: found[name] for name in ("TRL", "TRL, causal kernel", "share_prompt", "padding_free")}
    return found, missing


def drawn(book: Book, lengths: str, count: int, vocabulary: int, seed: int) -> list[dict[str, list[int]]]:
    """Pairs with the lengths of real data; short ones in a dry run."""
    from lengths import pairs

    rows = pairs(lengths, count, vocabulary, seed=seed)
    return [{name: ids[:10] for name, ids in row.items()} for row in rows] if book.dry else rows


def compare(book: Book, shape: str, lengths: str, micro_batch: int, batches: int, checkpointing: bool) -> None:
    name = f"{shape}, {lengths}, micro-batch {micro_batch}"
    if not book.wanted(name, 45):
        return
    with book.cell(name) as out, tempfile.TemporaryDirectory() as folder:
        _compare(book, shape, lengths, micro_batch, batches, checkpointing, out, folder)
    free()


def options_of(book: Book, shape: str, micro_batch: int, checkpointing: bool) -> argparse.Namespace:
    toy = {"vocab_size": 512, "hidden_size": 56, "intermediate_size": 64, "num_hidden_layers": 2} if book.dry else {}
    if book.dry and "llama" in shape:
        toy["hidden_size"] = 64
    return argparse.Namespace(
        model_shape=shape,
        device=str(book.device),
        dtype="bfloat16",
        attention="sdpa",
        trl_attention="sdpa",
        gradient_checkpointing=checkpointing,
        micro_batch=micro_batch,
        **toy,
    )


def _compare(
    book: Book, shape: str, lengths: str, micro_batch: int, count: int, checkpointing: bool, out: Any, folder: str
) -> None:
    all_of_them, missing = contestants(book, options_of(book, shape, micro_batch, checkpointing), folder)
    trl = all_of_them["TRL"].trainer
    count = 1 if book.dry else count
    out["kernels that are not here"] = missing
    examples = drawn(book, lengths, micro_batch * count, trl.model.config.vocab_size, seed=0)
    batches = [
        {n: t.to(book.device) for n, t in trl.data_collator(examples[at : at + micro_batch]).items()}
        for at in range(0, len(examples), micro_batch)
    ]
    out["pairs"], out["gradient checkpointing"] = len(examples), checkpointing
    out["agreement"] = agreement(book, all_of_them, batches[0])
    numbers = [list(one.values()) for one in out["agreement"].values()]
    book.check(out, "losses and gradients are finite", torch.tensor(numbers).isfinite().all())
    out["peak above what rests between steps, MiB"] = {n: peak(book, o, batches[0]) for n, o in all_of_them.items()}
    for inputs in batches:  # every shape once, timed apart: cuDNN builds a plan for each
        for one in all_of_them.values():
            one.cold.append(timed(book, one, inputs))
    out["positions fed per pair (policy and reference)"] = positions(all_of_them, batches, len(examples))
    book.note(out)
    rounds, stop = 0, book.left - _share(book)
    while rounds < (1 if book.dry else 4) and (rounds == 0 or book.left > stop):
        for inputs in batches:
            order = list(all_of_them.values())
            for one in [*order, *order[::-1]] if rounds % 2 == 0 else [*order[::-1], *order]:  # ABBA
                one.warm.append([timed(book, one, inputs)])
        rounds += 1
    for one in all_of_them.values():  # (rounds, batches, 2) -> per batch, the median
        per_round = [one.warm[at : at + 2 * count] for at in range(0, len(one.warm), 2 * count)]
        one.warm = [[per_round[r][2 * b + i][0] for r in range(rounds) for i in range(2)] for b in range(count)]
    out["rounds"] = rounds
    summarize(all_of_them, micro_batch, out)


def _share(book: Book) -> float:
    """Seconds for the timed rounds of one comparison."""
    return max(book.left / 3, 5)


def summarize(all_of_them: dict[str, Contestant], micro_batch: int, out: dict[str, Any]) -> None:
    medians = {name: [statistics.median(times) for times in one.warm] for name, one in all_of_them.items()}
    out["warm ms per step, median over batches"] = {n: statistics.median(times) for n, times in medians.items()}
    out["warm pairs per second"] = {n: micro_batch * len(t) / sum(t) * 1000 for n, t in medians.items()}
    out["first time ms per step"] = {name: spread(one.cold) for name, one in all_of_them.items()}
    best = min((name for name in medians if name.startswith("TRL")), key=lambda name: sum(medians[name]))
    out["TRL's best"] = "not measured" if math.isnan(sum(medians[best])) else best
    for base in dict.fromkeys(("TRL", best)):
        out[f"speed relative to {base}"] = {
            name: ratio([b / own for b, own in zip(medians[base], times, strict=True)], medians[base], times)
            for name, times in medians.items()
            if name != base
        }


def ratio(per_batch: list[float], base: list[float], own: list[float]) -> dict[str, Any]:
    """Of all batches together, median and range over batches, and a 95 % interval of the median by bootstrap."""
    draw = random.Random(0)
    again = sorted(statistics.median(draw.choices(per_batch, k=len(per_batch))) for _ in range(1000))
    return {"total": sum(base) / sum(own), **spread(per_batch), "95 %": [again[25], again[974]]}


@contextlib.contextmanager
def settings_of(one: Contestant) -> Iterator[None]:
    """Inside, kernels are those of this contestant."""
    models = (one.trainer.model, one.trainer.ref_model)
    before = one.trainer.model.config._attn_implementation
    for each in models:
        each.config._attn_implementation = one.attention

    def unmasked(_module: Any, args: Any, keywords: dict[str, Any]) -> Any:
        return args, {**keywords, "attention_mask": None}

    handles = []
    if one.causal:
        handles = [each.base_model.register_forward_pre_hook(unmasked, with_kwargs=True) for each in models]
    try:
        with cudnn(one.cudnn):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for each in models:
            each.config._attn_implementation = before


def step(one: Contestant, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Reference, policy and gradient; the weights stay."""
    one.trainer.model.train()
    loss = one.trainer.compute_loss(one.trainer.model, dict(inputs))
    loss.backward()
    return loss.detach()


def timed(book: Book, one: Contestant, inputs: dict[str, torch.Tensor]) -> float:
    with settings_of(one):
        taken = once(book, lambda: step(one, inputs))
    one.trainer.model.zero_grad()
    return taken


def agreement(book: Book, all_of_them: dict[str, Contestant], inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Loss and norm of the gradient of each on the same weights, and how far the gradient is from TRL's."""
    found: dict[str, Any] = {}
    base: list[torch.Tensor] = []
    for name, one in all_of_them.items():
        with settings_of(one):
            loss = float(step(one, inputs))
        parameters = list(one.trainer.model.parameters())
        norm = sum(float(p.grad.float().square().sum()) for p in parameters) ** 0.5
        found[name] = {"loss": loss, "gradient norm": norm}
        some = [p.grad.detach().clone() for p in parameters[1:9]]  # the first layers: all that is behind shows there
        if not base:
            base = some
        apart = sum(float((a.float() - b.float()).square().sum()) for a, b in zip(some, base, strict=True)) ** 0.5
        found[name]["first layers' gradient apart"] = apart / sum(float(b.float().square().sum()) for b in base) ** 0.5
        one.trainer.model.zero_grad()
    return found


def positions(all_of_them: dict[str, Contestant], batches: list[Any], pairs: int) -> dict[str, float]:
    found = {}
    for name in ("TRL", "share_prompt", "padding_free"):
        fed, one = [0], all_of_them[name]

        def count(_module: Any, _args: Any, keywords: dict[str, Any], fed: list[int] = fed) -> None:
            fed[0] += keywords["input_ids"].numel()

        models = (one.trainer.model, one.trainer.ref_model)
        handles = [each.base_model.register_forward_pre_hook(count, with_kwargs=True) for each in models]
        for inputs in batches:
            with torch.no_grad(), settings_of(one):
                one.trainer.compute_loss(one.trainer.model, dict(inputs))
        for handle in handles:
            handle.remove()
        found[name] = fed[0] / pairs
    return found


def peak(book: Book, one: Contestant, inputs: dict[str, torch.Tensor]) -> float:
    """MiB above what rests between steps, gradients included."""
    with settings_of(one):
        most = peak_mib(book, lambda: step(one, inputs))
    one.trainer.model.zero_grad()
    return most


def launches(book: Book) -> None:
    """Kernels of one step, their time, and the time of the step: is it bound by launching them?"""
    if not book.wanted("launches", 15):
        return
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU if book.dry else ProfilerActivity.CUDA]
    with book.cell("launches") as out, tempfile.TemporaryDirectory() as folder:
        all_of_them, _ = contestants(book, options_of(book, "qwen2.5-0.5b", 2, False), folder)
        trl = all_of_them["TRL"].trainer
        for micro_batch in book.some((2, 4)):
            examples = drawn(book, "hh", micro_batch, trl.model.config.vocab_size, seed=1)
            inputs = {n: t.to(book.device) for n, t in trl.data_collator(examples).items()}
            out[f"micro-batch {micro_batch}"] = found = {}
            for name in book.some(("share_prompt", "TRL", "TRL, causal kernel", "padding_free")):
                one = all_of_them[name]
                taken = [timed(book, one, inputs) for _ in range(2 if book.dry else 8)][1:]
                with settings_of(one), profile(activities=kinds) as seen:
                    step(one, inputs)
                    book.sync()
                one.trainer.model.zero_grad()
                kernels = [e for e in seen.key_averages() if e.self_device_time_total > 0]
                found[name] = {
                    "step, ms": statistics.median(taken),
                    "kernels": NOT_MEASURED if book.dry else sum(e.count for e in kernels),
                    "kernels, ms": NOT_MEASURED if book.dry else sum(e.self_device_time_total for e in kernels) / 1000,
                }
    free()
