"""Configurations of published models, with the shapes of their config.json and the parameter counts of their weight files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
    SmolLM3Config,
)


def _decoder(kind: type, hidden: int, mlp: int, layers: int, heads: int, kv: int, vocabulary: int, **more: Any) -> Any:
    return kind(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocabulary,
        **{"tie_word_embeddings": False, "pad_token_id": None, **more},
    )


def _gpt2_large() -> Any:
    return GPT2Config(n_embd=1280, n_layer=36, n_head=20)


def _gpt_j() -> Any:
    return GPTJConfig()  # its defaults are those of the 6B model


def _pythia_2_8b() -> Any:
    return GPTNeoXConfig(
        hidden_size=2560, intermediate_size=10240, num_hidden_layers=32, num_attention_heads=32, vocab_size=50304
    )


def _gemma2_9b() -> Any:
    return _decoder(Gemma2Config, 3584, 14336, 42, 16, 8, 256000, head_dim=256, tie_word_embeddings=True)


TIED = {"tie_word_embeddings": True}
MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "smollm2-135m": (lambda: _decoder(LlamaConfig, 576, 1536, 30, 9, 3, 49152, **TIED), 134515008),
    "smollm2-360m": (lambda: _decoder(LlamaConfig, 960, 2560, 32, 15, 5, 49152, **TIED), 361821120),
    "smollm2-1.7b": (lambda: _decoder(LlamaConfig, 2048, 8192, 24, 32, 32, 49152, **TIED), 1711376384),
    "smollm3-3b": (lambda: _decoder(SmolLM3Config, 2048, 11008, 36, 16, 4, 128256, **TIED), 3075098624),
    "qwen2.5-0.5b": (lambda: _decoder(Qwen2Config, 896, 4864, 24, 14, 2, 151936, **TIED), 494032768),
    "qwen2.5-7b": (lambda: _decoder(Qwen2Config, 3584, 18944, 28, 28, 4, 152064), 7615616512),
    "olmo2-1b": (lambda: _decoder(Olmo2Config, 2048, 8192, 16, 16, 16, 100352), 1484916736),
    "olmo2-7b": (lambda: _decoder(Olmo2Config, 4096, 11008, 32, 32, 32, 100352), 7298617344),
    "mistral-7b": (lambda: _decoder(MistralConfig, 4096, 14336, 32, 32, 8, 32000), 7241732096),
    "llama-3-8b": (lambda: _decoder(LlamaConfig, 4096, 14336, 32, 32, 8, 128256), 8030261248),
    "llama-3.1-70b": (lambda: _decoder(LlamaConfig, 8192, 28672, 80, 64, 8, 128256), 70553706496),
    "llama-2-70b": (lambda: _decoder(LlamaConfig, 8192, 28672, 80, 64, 8, 32000), 68976648192),
    "gemma-2-9b": (_gemma2_9b, 9241705984),
    "gpt2-large": (_gpt2_large, 774030080),
    "gpt-j-6b": (_gpt_j, 6050882784),
    "pythia-2.8b": (_pythia_2_8b, 2775208960),
}
"""Model -> its configuration, and the number of its parameters as published."""
