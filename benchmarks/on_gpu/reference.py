"""References on the GPU: quantized ones, a store made on a CPU, and what stays in memory after the pass."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from .book import NOT_MEASURED, Book
from .clocks import allocated_mib, free, milliseconds, reserved_mib
from .training import DRY_SIZES, preferences, small, trainer

KINDS = ("nf4", "bf16", "int8", "fp4")
STORED: dict[str, Any] = {"precompute_ref_log_probs": True}


def run(book: Book) -> None:
    quantized(book)
    killed(book)
    store_from_cpu(book)
    memory_after_pass(book)
    in_a_batch(book)
    seconds_of_a_forward(book)
    out_of_memory(book)


def _asks_for(kind: str) -> dict[str, Any]:
    return {"ref_dtype": "bfloat16"} if kind == "bf16" else {"ref_quantization": kind, "ref_dtype": "bfloat16"}


def quantized(book: Book) -> None:
    """Loaded beside the policy, drift measured, two steps trained."""
    for kind in book.some(KINDS):
        if not book.wanted(f"live {kind}", 6):
            continue
        with book.cell(f"live {kind}") as out:
            settings = {"ref_drift_num_pairs": 4 if book.dry else 16, "share_prompt": True, "max_steps": 2}
            made = trainer(book, "ours", _policy(book), **settings, **_asks_for(kind))
            made.train()
            logged = [line for line in made.state.log_history if "loss" in line]
            out["losses"] = [line["loss"] for line in logged]
            drift = {name: value for name, value in logged[0].items() if name.startswith("reference/")}
            out["drift"] = {name.removeprefix("reference/"): value for name, value in drift.items()}
            numbers = torch.tensor([*out["losses"], *drift.values()])
            book.check(out, "losses and drift are finite, and drift was measured", drift and numbers.isfinite().all())
        free()


def _policy(book: Book, **sizes: int) -> Any:
    return small(**(DRY_SIZES if book.dry else sizes))


def killed(book: Book) -> None:
    """A pass that is killed (signal 9) goes on where it stopped, and its store holds the numbers of a whole pass."""
    if not book.wanted("killed and resumed", 25):
        return
    from trl_dpo_ext.reference.store.store import Store

    with book.cell("killed and resumed") as out:
        folder = Path(tempfile.mkdtemp())
        saved, store = _saved(folder / "model", _policy(book)), folder / "refs"
        rows = 400 if book.dry else 1500
        process = _fill(folder, "dry" if book.dry else "cuda", saved, str(store), "0", str(rows), "32")
        for _ in range(1200):
            if process.poll() is not None or any((store / "parts").glob("*.parquet")):
                break
            time.sleep(0.05)
        assert process.poll() is None, (folder / "printed").read_text()[-600:]
        process.kill()
        process.wait()
        out["sequences kept"] = kept = len(Store.read_only(store))
        settings: dict[str, Any] = {"train_dataset": preferences(rows), **STORED}
        resumed = trainer(book, "ours", saved, ref_store=str(store), **settings).reference.stored.stats
        trainer(book, "ours", saved, ref_store=str(folder / "whole"), **settings)
        out["sequences computed afterwards"] = resumed.computed
        both = [Store.read_only(one).load(None) for one in (store, folder / "whole")]
        values = [torch.from_numpy(_by_key(one)) for one in both]
        book.check(out, "nothing that was kept is computed again", kept and resumed.found == kept and resumed.computed)
        book.check(out, "both stores hold the same sequences", len(both[0]) == len(both[1]))
        out["largest difference of a log-prob"] = most = float((values[0] - values[1]).abs().max())
        book.check(out, "log-probs equal those of a whole pass, to 1e-3", most <= 1e-3)


def _by_key(loaded: Any) -> Any:
    """All log-probs, (tokens,), in the order of their sequences' keys."""
    import numpy as np

    rows = loaded.index.positions
    return np.concatenate([loaded.flat[loaded.offsets[row] : loaded.offsets[row + 1]] for row in rows])


def _fill(folder: Path, device: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start `filled` as a process, on the CPU where `device` is not "cuda"."""
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "on_gpu.reference", device, *arguments]
    with (folder / "printed").open("wb") as printed:
        return subprocess.Popen(
            command, cwd=Path(__file__).parent.parent, env={**os.environ, **hidden}, stdout=printed, stderr=printed
        )


def store_from_cpu(book: Book) -> None:
    """A store that a CPU has filled: the same reference here, nothing to compute, the check at the start passes."""
    for name in book.some(("float32", "bf16 autocast")):
        if not book.wanted(f"store from a CPU, {name}", 8):
            continue
        with book.cell(f"store from a CPU, {name}") as out:
            folder, bf16 = Path(tempfile.mkdtemp()), name != "float32"
            saved = _saved(folder / "model", _policy(book))
            theirs = _filled_on_cpu(book, folder, saved, bf16)
            settings = {"bf16": bf16, "train_dataset": preferences(20), **STORED}
            ours = trainer(book, "ours", saved, ref_store=str(folder / "refs"), share_prompt=True, **settings)
            book.check(out, "fingerprints are equal", ours.reference.stored.store.identity.fingerprint == theirs)
            book.check(out, "nothing is computed again", ours.reference.stored.stats.computed == 0)
            here = trainer(book, "ours", saved, ref_store=str(folder / "here"), **settings)
            out["computed here"] = here.reference.stored.stats.computed
            sums = []
            for one in (ours, here):
                batch = one.data_collator([one.train_dataset[at] for at in range(len(one.train_dataset))])
                sums.append(batch["ref_token_logps"].double().sum(1))
            out["largest difference of a sum, CPU to here"] = float((sums[0] - sums[1]).abs().max())
            out["largest sum"] = float(sums[1].abs().max())
            ours.train()
            out["losses"] = losses = [line["loss"] for line in ours.state.log_history if "loss" in line]
            book.check(out, "losses are finite", torch.tensor(losses).isfinite().all())


def _filled_on_cpu(book: Book, folder: Path, saved: str, bf16: bool) -> str:
    """Fill a store in a process that sees no GPU; returns the reference's fingerprint."""
    arguments = (saved, str(folder / "refs"), str(int(bf16)), "20", "0")
    if book.dry:  # this one sees none
        return filled("cpu", *arguments)
    process = _fill(folder, "cpu", *arguments)
    status, printed = process.wait(120), (folder / "printed").read_text()
    assert status == 0, printed[-400:]
    return printed.split()[-1]


def _saved(folder: Path, model: Any) -> str:
    from tests.support import tiny

    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def memory_after_pass(book: Book) -> None:
    """Bytes of a reference that the pass has run, before and after a garbage collection."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16}
    for name in ("given as a model", "by name, another dtype"):
        if not book.wanted(f"memory after the pass, {name}", 8):
            continue
        with book.cell(f"memory after the pass, {name}") as out:
            folder = Path(tempfile.mkdtemp())
            saved = _saved(folder / "model", _policy(book, **sizes))
            settings: dict[str, Any] = {"ref_store": str(folder / "refs"), **STORED}
            free()
            before = allocated_mib(book)
            gc.disable()  # the package has to collect what it lets go of
            try:
                if name == "given as a model":
                    made = trainer(book, "ours", _policy(book, **sizes), _policy(book, **sizes), **settings)
                else:
                    made = trainer(book, "ours", saved, ref_dtype="bfloat16", **settings)
            finally:
                gc.enable()
            out["policy, MiB"] = policy = sum(p.numel() * p.element_size() for p in made.model.parameters()) / 2**20
            out["beside the policy, MiB"] = beside = allocated_mib(book) - before - policy
            out["reserved, MiB"] = reserved_mib(book)
            if not book.dry:
                book.check(out, "the reference is gone", beside < policy / 50)
            del made
        free()


def in_a_batch(book: Book) -> None:
    """Whether a row's outputs depend on what shares the batch, with a token planted whose activations are large."""
    from trl_dpo_ext import load_reference

    for kind in book.some(KINDS):
        if not book.wanted(f"in a batch {kind}", 3):
            continue
        with book.cell(f"in a batch {kind}") as out:
            policy = _policy(book)
            with torch.no_grad():
                policy.model.layers[0].input_layernorm.weight.fill_(1.0)
                policy.model.embed_tokens.weight[5, :3] = 60.0  # a few columns beyond int8's threshold after the norm
            settings = {"dtype": "bfloat16"} if kind == "bf16" else {"quantization": kind, "dtype": "bfloat16"}
            reference = load_reference(policy, device=book.device, **settings)
            ids = torch.randint(6, 40, (4, 64), generator=torch.Generator().manual_seed(0))
            planted = ids.clone()
            planted[1:, ::3] = 5
            with torch.no_grad():
                logps = [
                    reference(batch.to(book.device)).logits[0].float().log_softmax(-1)
                    for batch in (ids[:1], ids, planted)
                ]
            out["largest change of row 0 beside three rows"] = float((logps[0] - logps[1]).abs().max())
            out["... with planted outliers in them"] = float((logps[0] - logps[2]).abs().max())
            exact = _policy(book)
            exact.load_state_dict(policy.state_dict())
            with torch.no_grad():
                right = exact.to(book.device)(ids[:1].to(book.device)).logits[0].log_softmax(-1)
            out["error of row 0 alone against float32"] = float((logps[0] - right).abs().max())


def seconds_of_a_forward(book: Book) -> None:
    """A forward of each kind in the shape of four layers of a 7B model, 2048 positions."""
    from trl_dpo_ext import load_reference

    if not book.wanted("forward of each kind", 15):
        return
    from transformers import LlamaConfig, LlamaForCausalLM

    from .training import counted_waits

    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    if book.dry:
        sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=1024, num_hidden_layers=4, **sizes)
    with torch.device(book.device):
        policy = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    ids = torch.randint(0, 1024, (2 if book.dry else 8, 16 if book.dry else 256), device=book.device)
    torch.set_warn_always(True)
    for kind in book.some(KINDS):
        with book.cell(f"forward {kind}, 4 layers of 7B") as out, torch.no_grad():
            settings = {"dtype": "bfloat16"} if kind == "bf16" else {"quantization": kind, "dtype": "bfloat16"}
            reference = load_reference(policy, device=book.device, **settings)

            def forward(reference: Any = reference) -> None:
                reference.model(ids, use_cache=False)

            out["ms"] = milliseconds(book, forward, repeats=5)
            with counted_waits(book) as waited:
                forward()
            out["waits"] = NOT_MEASURED if book.dry else waited.total()
            del reference, forward
        free()
    torch.set_warn_always(False)


def out_of_memory(book: Book) -> None:
    """A pass that does not fit at first halves its batches and finishes."""
    if not book.wanted("out of memory", 10):
        return
    with book.cell("out of memory") as out:
        sizes = {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 2, "num_attention_heads": 16}
        settings: dict[str, Any] = {"ref_store": str(Path(tempfile.mkdtemp()) / "refs"), **STORED}
        settings |= {"train_dataset": preferences(16 if book.dry else 400, 4), "precompute_ref_max_tokens": 60000}
        policy = _policy(book, **sizes).to(book.device)
        free()
        if not book.dry:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 700 * 2**20) / total)
        try:
            made = trainer(book, "ours", policy, **settings)
        finally:
            if not book.dry:
                torch.cuda.set_per_process_memory_fraction(1.0)
        out["pass"] = str(made.reference.stored.stats)
        if not book.dry:
            book.check(out, "the batches were halved", made.reference.stored.max_tokens < 60000)


def filled(device: str, saved: str, store: str, bf16: str, rows: str, most: str) -> str:
    """Fill a store of a saved model on the CPU or the GPU, in batches of `most` positions; returns the fingerprint."""
    book = Book("reference", Path(tempfile.mkdtemp()), dry=device != "cuda")
    settings: dict[str, Any] = {"train_dataset": preferences(int(rows)), "bf16": bool(int(bf16)), **STORED}
    if int(most):
        settings["precompute_ref_max_tokens"] = int(most)
    made = trainer(book, "ours", saved, ref_store=store, **settings)
    return made.reference.stored.store.identity.fingerprint


if __name__ == "__main__":
    print(filled(*sys.argv[1:]))
