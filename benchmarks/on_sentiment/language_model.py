"""A small language model of the sentences, trained from scratch, and its samples."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"


def tokenizer_of(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, eos_token=EOS)


def untrained(tokenizer: Any, hidden: int, layers: int) -> LlamaForCausalLM:
    """Return a Llama with tied embeddings and heads of 32 dimensions."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def loaded(folder: str | Path, device: str) -> tuple[Any, Any]:
    """Load a model in float32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device), tokenizer


def fit(model: Any, tokenizer: Any, texts: Sequence[str], epochs: float, rate: float, batch: int = 32) -> None:
    """Train on whole sentences, each ended by the end-of-sequence token, with a rate that falls to a tenth."""
    rows = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in texts]
    steps, order = max(1, round(epochs * len(rows) / batch)), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps + 1, pct_start=0.1, final_div_factor=0.4)
    model.train()
    for step in range(steps):
        ids, mask = padded(order.sample(rows, min(batch, len(rows))), tokenizer.pad_token_id, model.device)
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            print(f"language model: step {step} of {steps}, loss {loss.item():.2f}", flush=True)
    model.eval()


@torch.no_grad()
def loss_of(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Return the mean loss per token, in nats."""
    total = count = 0.0
    for start in range(0, len(texts), 128):
        rows = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in texts[start : start + 128]]
        ids, mask = padded(rows, tokenizer.pad_token_id, model.device)
        logps = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        found = logps.gather(-1, ids[:, 1:, None]).squeeze(-1)[mask[:, 1:] == 1]
        total, count = total - found.sum().item(), count + found.numel()
    return total / count


def padded(rows: Sequence[Sequence[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, (rows, longest), padded on the right."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return ids, mask


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed inside, and go on outside as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def sample(
    model: Any, tokenizer: Any, prefixes: Sequence[str], tokens: int, seed: int, batch: int = 256
) -> list[list[int]]:
    """Return one continuation of each prefix at temperature 1: its ids, with the end-of-sequence token if it ended."""
    was, ended = model.training, []
    model.eval()
    with seeded(seed):
        for start in range(0, len(prefixes), batch):
            rows = [tokenizer(text)["input_ids"] for text in prefixes[start : start + batch]]
            longest = max(map(len, rows))
            ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            made = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            ended += [_until_end(row, tokenizer.eos_token_id) for row in made[:, longest:].tolist()]
    model.train(was)
    return ended


def _until_end(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos) + 1] if eos in ids else ids
