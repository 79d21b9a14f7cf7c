"""The reference pass of TRL, at several batch sizes, and ours: a 0.5B shape, whole passes by the host's clock."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from typing import Any

import torch

from .attention import cudnn
from .book import NOT_MEASURED, Book
from .clocks import free


def run(book: Book) -> None:
    made: Any = None
    if not book.wanted("trainer", 10):
        return
    with book.cell("trainer") as out:
        made = _trainer(book)
        out["parameters"] = made.model.num_parameters()
    if made is None:
        return
    for lengths, pairs in book.some({"ultrafeedback": 600, "hh": 1500}.items()):
        for allowed in (False, True):
            # cuDNN builds a plan for each new shape, so that side is run on fewer pairs, and cold.
            name = f"{lengths}, cuDNN {'on, first time' if allowed else 'off'}"
            if book.wanted(name, 20):
                with book.cell(name) as out, cudnn(allowed):
                    compare(
                        book,
                        made,
                        lengths,
                        8 if book.dry else pairs // 10 if allowed else pairs,
                        1 if allowed else 2,
                        out,
                    )
                free()


def _trainer(book: Book) -> Any:
    from shapes import model

    from tests.support import tiny
    from trl_dpo_ext import DPOExtConfig, DPOExtTrainer

    from .step import options_of

    policy = model("qwen2.5-0.5b", options_of(book, "qwen2.5-0.5b", 8, False), 0)
    # A loss that needs no reference: none is loaded beside the model whose passes are measured.
    settings = {"loss_type": "sft", "bf16": False, "use_cpu": book.dry, "report_to": "none", "disable_tqdm": True}
    args = DPOExtConfig(tempfile.mkdtemp(), max_length=None, **settings)
    return DPOExtTrainer(policy, args=args, train_dataset=tiny.preferences(), processing_class=tiny.tokenizer())


def compare(book: Book, made: Any, lengths: str, count: int, repeats: int, out: dict[str, Any]) -> None:
    from datasets import Dataset

    from .step import drawn

    rows = drawn(book, lengths, count, made.model.config.vocab_size, seed=3)
    data = Dataset.from_list(rows)
    out["pairs"] = count
    sizes = (2, 4) if book.dry else (8, 32, 64)
    ways: dict[str, Any] = {f"TRL, batch {size}": size for size in sizes}
    found: dict[str, list[float]] = {name: [] for name in [*ways, "ours"]}
    sums: dict[str, torch.Tensor] = {}
    report: Any = None
    for turn in range(repeats):
        for name in list(found)[:: 1 if turn % 2 == 0 else -1]:
            book.sync()
            began = time.perf_counter()
            if name == "ours":
                report, got = our_pass(made, data, name)
            else:
                got = trl_pass(made, data, ways[name])
            found[name].append(NOT_MEASURED if book.dry else time.perf_counter() - began)
            sums.setdefault(name, got() if callable(got) else got)
    fed = {f"TRL, batch {size}": _fed(rows, size) for size in sizes} | {"ours": report.positions}
    best = min(list(ways), key=lambda name: min(found[name]))
    out["seconds of each pass"] = found
    out["positions fed"] = fed
    out["padding of ours"] = 1 - report.tokens / report.positions
    out["ours beside TRL's best, seconds"] = statistics.median(found[best]) / statistics.median(found["ours"])
    out["ours beside TRL's best, positions"] = fed[best] / fed["ours"]
    out["TRL's best"] = "not measured" if book.dry else best
    difference = (sums["ours"] - sums[best]).abs()
    first, second = (sums[name] for name in list(ways)[:2])
    between = (first - second).abs()
    out["difference of a sum, mean and largest"] = [float(difference.mean()), float(difference.max())]
    out["... between TRL's batch sizes"] = [float(between.mean()), float(between.max())]
    out["largest sum"] = float(sums[best].abs().max())
    # Rounding sets the difference: that between TRL's own batch sizes is the measure.
    near = float(difference.mean()) <= 2 * float(between.mean()) + (1e-3 if book.dry else 1e-2) * out["largest sum"]
    book.check(out, "sums as near to TRL's as TRL's are between batch sizes", near)
    out["share of our pass in which kernels run"] = busy(book, made, data)


def _fed(rows: list[dict[str, list[int]]], size: int) -> int:
    """Positions that TRL feeds: both sides of `size` pairs, as wide as the longest of them."""
    total = 0
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        longest = max(len(r["prompt_ids"]) + max(len(r["chosen_ids"]), len(r["rejected_ids"])) for r in part)
        total += 2 * len(part) * longest
    return total


def trl_pass(made: Any, data: Any, size: int) -> torch.Tensor:
    from trl import DPOTrainer

    made._precompute_model_hash = str(time.time_ns())  # so that its cache is never hit
    done = DPOTrainer._precompute_ref_logps(made, data, "TRL", size)
    return torch.tensor([done["ref_chosen_logps"][:], done["ref_rejected_logps"][:]]).double()


def our_pass(made: Any, data: Any, name: str) -> tuple[Any, Any]:
    """What the pass reports, and a function that reads the sums from the store."""
    from trl_dpo_ext.reference.identity.identity import Identity
    from trl_dpo_ext.reference.precompute.stored import StoredLogps
    from trl_dpo_ext.reference.store.store import Store

    store = Store.open(tempfile.mkdtemp(), Identity(weights=f"those of {name}", config="{}"))
    stored = StoredLogps(made.host, store)
    causal = made.host.causal_model(made.model)
    stored.fill(data, name, made.data_collator, lambda: contextlib.nullcontext((made.model, causal)))

    def sums() -> torch.Tensor:
        collator = stored.collator(made.data_collator)
        return torch.stack([collator([row])["ref_token_logps"].double().sum(1) for row in data]).T

    return stored.stats, sums


def busy(book: Book, made: Any, data: Any) -> dict[str, float]:
    from torch.profiler import ProfilerActivity, profile

    began = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU if book.dry else ProfilerActivity.CUDA]) as seen:
        our_pass(made, data, "ours")
        book.sync()
        taken = time.perf_counter() - began
    if book.dry:
        return dict.fromkeys(("kernels_s", "pass_s", "share"), NOT_MEASURED)
    kernels = sum(event.self_device_time_total for event in seen.key_averages()) / 1e6
    return {"kernels_s": kernels, "pass_s": taken, "share": kernels / taken}
