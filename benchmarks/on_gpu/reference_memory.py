"""What each kind of reference costs: bytes of its weights, seconds of a forward, and the peak of a training step."""

from __future__ import annotations

from typing import Any

import torch

from .book import NOT_MEASURED, Book
from .clocks import free, milliseconds

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 12,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
TOY = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}


def run(book: Book) -> None:
    from reference_memory import KINDS, settings_of, step_peak
    from transformers import LlamaConfig, LlamaForCausalLM

    from trl_dpo_ext import load_reference
    from trl_dpo_ext.reference.model.memory import weight_bytes

    config = LlamaConfig(**(TOY if book.dry else SHAPE), max_position_embeddings=1024, tie_word_embeddings=True)

    def policy() -> Any:
        torch.manual_seed(0)
        with torch.device(book.device):
            return LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)

    ids = torch.randint(0, config.vocab_size, (2 if book.dry else 8, 16 if book.dry else 256), device=book.device)
    kinds = {"stored": None, **KINDS}
    for name in book.some(kinds, dry=2) + (["nf4"] if book.dry else []):
        kind = kinds[name]
        if not book.wanted(name, 6):
            continue
        with book.cell(name) as out:
            if kind is not None:
                reference = load_reference(policy(), device=book.device, **settings_of(kind))
                size = weight_bytes(reference)
                out["linear layers, MiB"], out["all weights, MiB"] = size["linear"] / 2**20, size["all"] / 2**20
                with torch.no_grad():
                    out["forward, ms"] = milliseconds(book, lambda r=reference: r.base_model(ids, use_cache=False), 5)
                del reference
                free()
            # Without a reference, as where its log-probs are stored: a loss that needs none.
            settings = {"loss_type": "simpo"} if kind is None else kind
            most = step_peak(policy, settings, ids)
            out["peak of a training step, MiB"] = NOT_MEASURED if most is None else most / 2**20
        free()
