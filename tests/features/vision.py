"""A vision-language model of a few kilobytes, its processor, and preferences about images."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tests.support import tiny

_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' }}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image> ' }}{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ '<eos> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
_SIDE, _PATCH = 8, 4


def processor() -> LlavaProcessor:
    """Of images of 8 x 8 pixels, four patches each."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        num_additional_image_tokens=1,
    )


def saved_model(folder: str) -> str:
    """A folder that `from_pretrained` loads, model and processor."""
    torch.manual_seed(0)
    tokens = len(processor().tokenizer)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = LlamaConfig(vocab_size=tokens, num_key_value_heads=2, max_position_embeddings=64, **sizes)
    vision = CLIPVisionConfig(
        image_size=_SIDE, patch_size=_PATCH, projection_dim=16, **{**sizes, "num_hidden_layers": 2}
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=tokens - 1, pad_token_id=0)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def preferences() -> Dataset:
    """Rows with one image each."""
    rows = tiny.preferences(8, conversational=True)
    colors = [(29 * row % 256, 83 * row % 256, 151 * row % 256) for row in range(len(rows))]
    return Dataset.from_dict({**rows.to_dict(), "images": [[Image.new("RGB", (_SIDE, _SIDE), c)] for c in colors]})
