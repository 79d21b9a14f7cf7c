"""A tiny vision-language model with its processor, on the vocabulary of `tiny` and an image token."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tests.support import tiny

IMAGE = "<image>"
# Writes content in parts, as processors ask for it, like plain content.
CHAT_TEMPLATE = tiny.CHAT_TEMPLATE.replace(
    "m['content'] +", "(m['content'] if m['content'] is string else m['content'] | map(attribute='text') | join) +"
)


def tokenizer() -> PreTrainedTokenizerFast:
    known = tiny.tokenizer()
    known.add_tokens([IMAGE], special_tokens=True)
    known.chat_template = CHAT_TEMPLATE
    return known


def processor() -> LlavaProcessor:
    images = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8)
    return LlavaProcessor(images, tokenizer(), patch_size=4, image_token=IMAGE, chat_template=CHAT_TEMPLATE)


def model(seed: int = 0) -> Any:
    text = tiny.model().config
    text.vocab_size = len(tokenizer())
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    torch.manual_seed(seed)
    network = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=len(tokenizer()) - 1)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    return network
