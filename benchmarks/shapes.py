"""Models with random weights in the shapes of published ones."""

from __future__ import annotations

import argparse

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
SHAPES: dict[str, tuple[type, type, dict[str, int]]] = {
    "small": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "vocab_size": 49152,
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
        },
    ),
    "smollm2-135m": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
    "smollm2-narrow": (  # half as wide, one layer, and as in the whole model a quarter of the weights in the head
        LlamaConfig,
        LlamaForCausalLM,
        {
            "vocab_size": 1024,
            "hidden_size": 288,
            "intermediate_size": 768,
            "num_hidden_layers": 1,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2.5-0.5b": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "llama-3-8b": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
}


def model(shape: str, options: argparse.Namespace, seed: int) -> PreTrainedModel:
    """Random weights in a published shape, with the sizes that the options give in place of its own."""
    torch.manual_seed(seed)
    config, kind, sizes = SHAPES[shape]
    sizes = {name: getattr(options, name, None) or size for name, size in sizes.items()}
    with torch.device(options.device):  # and in the dtype wanted: 8 billion float32 weights would take 32 GB at first
        return kind._from_config(config(max_position_embeddings=8192, **sizes), dtype=getattr(torch, options.dtype))
