"""References on the GPU: quantized ones, a store made on a CPU, and what stays in memory after the pass."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from .book import Book, free
from .training import preferences, small, trainer

KINDS = ("bf16", "int8", "nf4", "fp4")
STORED: dict[str, Any] = {"precompute_ref_log_probs": True}


def run(book: Book) -> None:
    store_from_cpu(book)
    memory_after_pass(book)
    quantized(book)
    in_a_batch(book)
    seconds_of_a_forward(book)
    out_of_memory(book)


def _asks_for(kind: str) -> dict[str, Any]:
    return {"ref_dtype": "bfloat16"} if kind == "bf16" else {"ref_quantization": kind, "ref_dtype": "bfloat16"}


def quantized(book: Book) -> None:
    """Loaded beside the policy, drift measured, two steps trained."""
    for kind in KINDS:
        if not book.wanted(f"live {kind}", 6):
            continue
        with book.cell(f"live {kind}") as out:
            made = trainer(
                book, "ours", small(), ref_drift_num_pairs=16, share_prompt=True, max_steps=2, **_asks_for(kind)
            )
            made.train()
            logged = [line for line in made.state.log_history if "loss" in line]
            out["losses"] = [line["loss"] for line in logged]
            out["drift"] = {
                name.removeprefix("reference/"): value
                for name, value in logged[0].items()
                if name.startswith("reference/")
            }
        free()


def store_from_cpu(book: Book) -> None:
    """A store that a CPU has filled: the same reference here, nothing to compute, the check at the start passes."""
    for name in ("float32", "bf16 autocast"):
        if not book.wanted(f"store from a CPU, {name}", 8):
            continue
        with book.cell(f"store from a CPU, {name}") as out:
            folder, bf16 = Path(tempfile.mkdtemp()), name != "float32"
            saved = _saved(folder / "model", small())
            command = [sys.executable, "-m", "on_gpu.reference", saved, str(folder / "refs"), str(int(bf16))]
            hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
            made = subprocess.run(
                command, cwd=Path(__file__).parent.parent, env=hidden, capture_output=True, text=True, timeout=120
            )
            assert made.returncode == 0, made.stderr[-400:]
            theirs = made.stdout.split()[-1]
            settings = {"bf16": bf16, "train_dataset": preferences(20), **STORED}
            ours = trainer(book, "ours", saved, ref_store=str(folder / "refs"), share_prompt=True, **settings)
            out["fingerprints equal"] = ours.reference.stored.store.identity.fingerprint == theirs
            out["computed again"] = ours.reference.stored.stats.computed
            here = trainer(book, "ours", saved, ref_store=str(folder / "here"), **settings)
            out["computed here"] = here.reference.stored.stats.computed
            sums = []
            for one in (ours, here):
                batch = one.data_collator([one.train_dataset[at] for at in range(len(one.train_dataset))])
                sums.append(batch["ref_token_logps"].double().sum(1))
            out["largest difference of a sum, CPU to here"] = float((sums[0] - sums[1]).abs().max())
            out["largest sum"] = float(sums[1].abs().max())
            ours.train()
            out["losses"] = [line["loss"] for line in ours.state.log_history if "loss" in line]


def _saved(folder: Path, model: Any) -> str:
    from tests.support import tiny

    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def memory_after_pass(book: Book) -> None:
    """Bytes of a reference that the pass has run, before and after a garbage collection."""
    sizes = {} if book.dry else {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8}
    sizes |= {} if book.dry else {"num_attention_heads": 16}
    for name in ("given as a model", "by name, another dtype"):
        if not book.wanted(f"memory after the pass, {name}", 8):
            continue
        with book.cell(f"memory after the pass, {name}") as out:
            folder = Path(tempfile.mkdtemp())
            saved = _saved(folder / "model", small(**sizes))
            settings: dict[str, Any] = {"ref_store": str(folder / "refs"), **STORED}
            free()
            before = _allocated()
            if name == "given as a model":
                made = trainer(book, "ours", small(**sizes), small(seed=1, **sizes), **settings)
            else:
                made = trainer(book, "ours", saved, ref_dtype="bfloat16", **settings)
            held, reserved = _allocated(), _reserved()
            weights = sum(p.numel() * p.element_size() for p in made.model.parameters())
            out["policy_mib"] = weights / 2**20
            out["beside_the_policy_mib"] = (held - before - weights) / 2**20
            out["reserved_mib"] = reserved / 2**20
            gc.collect()
            out["after_gc_collect_mib"] = (_allocated() - before - weights) / 2**20
            free()
            out["reserved_after_emptying_the_cache_mib"] = _reserved() / 2**20
            del made
        free()


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _reserved() -> int:
    return torch.cuda.memory_reserved() if torch.cuda.is_available() else 0


def in_a_batch(book: Book) -> None:
    """Whether a row's outputs depend on what shares the batch, with a token planted whose activations are large."""
    from trl_dpo_ext import load_reference

    for kind in KINDS:
        if not book.wanted(f"in a batch {kind}", 3):
            continue
        with book.cell(f"in a batch {kind}") as out:
            policy = small()
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
            exact = small()
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
    for kind in KINDS:
        with book.cell(f"forward {kind}, 4 layers of 7B") as out, torch.no_grad():
            settings = {"dtype": "bfloat16"} if kind == "bf16" else {"quantization": kind, "dtype": "bfloat16"}
            reference = load_reference(policy, device=book.device, **settings)

            def forward(reference: Any = reference) -> None:
                reference.model(ids, use_cache=False)

            out["ms"] = book.milliseconds(forward, repeats=5)
            with counted_waits(book) as waited:
                forward()
            out["waits"] = sum(waited.values())
            del reference, forward
        free()
    torch.set_warn_always(False)


def out_of_memory(book: Book) -> None:
    """A pass that does not fit at first halves its batches and finishes."""
    if not book.wanted("out of memory", 10):
        return
    with book.cell("out of memory") as out:
        sizes = {} if book.dry else {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 2}
        sizes |= {} if book.dry else {"num_attention_heads": 16}
        settings: dict[str, Any] = {"ref_store": str(Path(tempfile.mkdtemp()) / "refs"), **STORED}
        settings |= {"train_dataset": preferences(16 if book.dry else 400, 4), "precompute_ref_max_tokens": 60000}
        policy = small(**sizes).to(book.device)
        free()
        if not book.dry:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction((_reserved() + 700 * 2**20) / total)
        try:
            made = trainer(book, "ours", policy, **settings)
        finally:
            if not book.dry:
                torch.cuda.set_per_process_memory_fraction(1.0)
        out["pass"] = str(made.reference.stored.stats)


def main() -> None:
    """Fill a store on the CPU: MODEL STORE BF16."""
    saved, store, bf16 = sys.argv[1:]
    book = Book("cpu store", Path(tempfile.mkdtemp()), dry=False, seconds=100, only=None)
    settings = {"train_dataset": preferences(20), "use_cpu": True, **STORED}
    made = trainer(book, "ours", saved, bf16=bool(int(bf16)), ref_store=store, **settings)
    print(made.reference.stored.store.identity.fingerprint)


if __name__ == "__main__":
    main()
