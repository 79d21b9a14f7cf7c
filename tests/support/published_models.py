"""Configurations of published models, with the shapes of their config.json and the parameter counts of their weight files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    Idefics3Config,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
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


def _shape(hidden: int, mlp: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, **more}


def _qwen2_vl(hidden: int, mlp: int, layers: int, heads: int, kv: int, vocabulary: int, tied: bool) -> Any:
    text = _shape(hidden, mlp, layers, heads, num_key_value_heads=kv, vocab_size=vocabulary, tie_word_embeddings=tied)
    tower = {"depth": 32, "embed_dim": 1280, "hidden_size": hidden, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
    return Qwen2VLConfig(vision_config=tower, text_config=text, tie_word_embeddings=tied)


def _qwen2_5_vl(hidden: int, mlp: int, layers: int, heads: int, kv: int, vocabulary: int, tied: bool) -> Any:
    text = _shape(hidden, mlp, layers, heads, num_key_value_heads=kv, vocab_size=vocabulary, tie_word_embeddings=tied)
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14}
    tower |= {"out_hidden_size": hidden, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
    return Qwen2_5_VLConfig(vision_config=tower, text_config=text, tie_word_embeddings=tied)


def _gemma3_4b() -> Any:
    tower = _shape(1152, 4304, 27, 16, image_size=896, patch_size=14, vision_use_head=False)
    text = _shape(2560, 10240, 34, 8, num_key_value_heads=4, head_dim=256, vocab_size=262208)
    return Gemma3Config(vision_config={"model_type": "siglip_vision_model", **tower}, text_config=text)


def _smolvlm_256m() -> Any:
    tower = _shape(768, 3072, 12, 12, image_size=512, patch_size=16)
    text = _shape(576, 1536, 30, 9, num_key_value_heads=3, vocab_size=49280, model_type="llama")
    return Idefics3Config(vision_config=tower, text_config=text, scale_factor=4, tie_word_embeddings=False)


VISION_LANGUAGE: dict[str, tuple[Callable[[], Any], int]] = {
    "llava-1.5-7b": (lambda: LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064}), 7063427072),
    "qwen2-vl-2b": (lambda: _qwen2_vl(1536, 8960, 28, 12, 2, 151936, True), 2208985600),
    "qwen2-vl-7b": (lambda: _qwen2_vl(3584, 18944, 28, 28, 4, 152064, False), 8291375616),
    "qwen2.5-vl-3b": (lambda: _qwen2_5_vl(2048, 11008, 36, 16, 2, 151936, True), 3754622976),
    "qwen2.5-vl-7b": (lambda: _qwen2_5_vl(3584, 18944, 28, 28, 4, 152064, False), 8292166656),
    "gemma-3-4b": (_gemma3_4b, 4300079472),
    "smolvlm-256m": (_smolvlm_256m, 256484928),
}
"""The same for models of images."""
