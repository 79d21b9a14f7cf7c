"""Tiny randomly initialized models of many architectures, with weights large enough that a wrong mask shows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch.overrides import TorchFunctionMode
from trl.kernels import ChunkedLogProbFunction, chunked_logprob

from trl_dpo_ext._trl import temporarily

VOCABULARY = 64
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_BOTH = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 16}
_MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_GPTJ = {**_GPT2, "rotary_dim": 4}

# Name of the case: class without "ForCausalLM", and what the configuration needs beside the sizes.
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-eager": ("Llama", {"attn_implementation": "eager"}),
    "llama3-rope": ("Llama", {"rope_parameters": _LLAMA3}),
    "yarn-rope": ("Llama", {"rope_parameters": _YARN}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {**_BOTH, "use_sliding_window": True}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "qwen3-window": ("Qwen3", {**_BOTH, "use_sliding_window": True, "head_dim": 8}),
    "qwen2-moe": ("Qwen2Moe", {**_EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3-moe": ("Qwen3Moe", {**_EXPERTS, "head_dim": 8}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 4}),
    "mixtral": ("Mixtral", {**_EXPERTS}),
    "mixtral-window": ("Mixtral", {**_EXPERTS, "sliding_window": 4}),
    "gemma": ("Gemma", {"head_dim": 8}),
    "gemma2": ("Gemma2", {**_BOTH, "head_dim": 8, "attn_implementation": "eager"}),
    "gemma3": ("Gemma3", {**_BOTH, "head_dim": 8}),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {}),
    "phi3-window": ("Phi3", {"sliding_window": 4}),
    "gpt-neox": ("GPTNeoX", {}),
    "gpt2": ("GPT2", _GPT2),
    "gptj": ("GPTJ", {**_GPTJ, "attn_implementation": "eager"}),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", _BOTH),
    "smollm3": ("SmolLM3", {}),
    "granite": ("Granite", {"logits_scaling": 2.0}),
    "stablelm": ("StableLm", {}),
    "starcoder2-window": ("Starcoder2", {"sliding_window": 4}),
    "cohere": ("Cohere", {}),
    "cohere2": ("Cohere2", _BOTH),
    "gpt-oss": ("GptOss", {**_EXPERTS, **_BOTH, "head_dim": 8, "attn_implementation": "eager"}),
    "deepseek-v3": ("DeepseekV3", _MLA),
}


def build(case: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """The model of a case in `EXACT`."""
    return construct(*EXACT[case], dtype=dtype, seed=seed)


def construct(name: str, settings: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A tiny model of the class `name`ForCausalLM."""
    torch.manual_seed(seed)
    settings = {**_SIZES, **settings}
    attention = settings.pop("attn_implementation", "sdpa")
    kind = getattr(transformers, f"{name}ForCausalLM", None) or getattr(transformers, f"{name}LMHeadModel")
    config = kind.config_class(**settings)
    config._attn_implementation = attention
    config._experts_implementation = "eager"  # the grouped product knows no float64
    model = kind(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model


class _Replacing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Inside, what is asked for in float32 comes in float64.

    Norms, rotary embeddings, softmax and TRL's head ask for float32 whatever the model's dtype is; this way rounding is
    1e-16 everywhere, and a tolerance of 1e-9 tells a wrong mask or gradient from rounding.
    """
    backward = ChunkedLogProbFunction.backward

    def replacing(*args: Any) -> Any:  # a mode is off while autograd runs, and TRL's head has a backward of its own
        with _Replacing():
            return backward(*args)

    ChunkedLogProbFunction.backward = staticmethod(replacing)
    try:
        with _Replacing(), _double_precision_in_kernels():
            yield
    finally:
        ChunkedLogProbFunction.backward = staticmethod(backward)


def _double_precision_in_kernels() -> contextlib.AbstractContextManager[None]:
    """TRL 1.15 has its head's sums in a Triton kernel alone, which is interpreted on a CPU: it looks names up when it runs."""
    triton = getattr(chunked_logprob, "tl", None)
    return contextlib.nullcontext() if triton is None else temporarily(triton, float32=triton.float64)
