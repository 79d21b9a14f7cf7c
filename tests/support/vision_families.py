"""Tiny random models of the families of vision-language models, with their own processors, and preferences about images.

Processors of Qwen and SmolVLM process videos too, by what needs torchvision; those of Qwen are built here without that
part, and Idefics3 stands in for SmolVLM, whose processor needs num2words besides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers as t
from datasets import Dataset
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from tests.support import tiny

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' }}{% if m['content'] is string %}{{ m['content'] + ' ' }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ 'IMAGE ' }}{% else %}{{ part['text'] + ' ' }}"
    "{% endif %}{% endfor %}{% endif %}{% if m['role'] == 'assistant' %}{{ '<eos> ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


class _Qwen2VLProcessor(t.Qwen2VLProcessor):
    """Without the processor of videos."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        t.ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def _tokenizer(*images: str, template: str, **named: str) -> PreTrainedTokenizerFast:
    """The tokenizer of `tiny` with tokens of images, and a template that writes `template` where an image stands."""
    inner = tiny.tokenizer()
    inner.add_tokens([*images, *named.values()], special_tokens=True)
    known = PreTrainedTokenizerFast(
        tokenizer_object=inner.backend_tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens=named,
    )
    known.chat_template = _TEMPLATE.replace("IMAGE", template)
    return known


def _processor(kind: Any, images: Any, tokenizer: Any, **settings: Any) -> Any:
    return kind(images, tokenizer, chat_template=tokenizer.chat_template, **settings)


def llava_processor() -> Any:
    """Of images of 8 x 8 pixels, four tokens each."""
    images = t.CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8)
    tokenizer = _tokenizer("<image>", template="<image>")
    settings = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return _processor(t.LlavaProcessor, images, tokenizer, **settings)


def llava_config() -> Any:
    tokenizer = llava_processor().tokenizer
    vision = t.CLIPVisionConfig(**_TOWER, image_size=8, patch_size=4)
    text = t.LlamaConfig(**SIZES, vocab_size=len(tokenizer))
    image = tokenizer.convert_tokens_to_ids("<image>")
    return t.LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, pad_token_id=0)


def qwen_processor() -> Any:
    """Of images of any size: a token for each 8 x 8 pixels."""
    images = t.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
    )
    named = ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>")
    return _processor(
        _Qwen2VLProcessor, images, _tokenizer(*named, template="<|vision_start|><|image_pad|><|vision_end|>")
    )


def _qwen(kind: Any, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    tokenizer = qwen_processor().tokenizer
    names = {"vision_start": "<|vision_start|>", "image": "<|image_pad|>", "video": "<|video_pad|>"}
    names["vision_end"] = "<|vision_end|>"
    tokens = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    text = {**SIZES, "vocab_size": len(tokenizer), "rope_parameters": _ROPE, **text}
    return kind(vision_config=vision, text_config=text, **tokens)


def qwen2_vl_config() -> Any:
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    return _qwen(t.Qwen2VLConfig, vision, {})


def qwen2_5_vl_config() -> Any:
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]}
    return _qwen(t.Qwen2_5_VLConfig, vision, {})


def qwen3_vl_config() -> Any:
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return _qwen(t.Qwen3VLConfig, vision, {"head_dim": 8})


def gemma3_processor() -> Any:
    """Of images of 8 x 8 pixels, four tokens each."""
    images = t.Gemma3ImageProcessorPil(size={"height": 8, "width": 8})
    named = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer(template="<start_of_image>", **named)
    return _processor(t.Gemma3Processor, images, tokenizer, image_seq_length=4)


def gemma3_config() -> Any:
    tokenizer = gemma3_processor().tokenizer
    vision = t.SiglipVisionConfig(**_TOWER, image_size=8, patch_size=4, vision_use_head=False)
    layers = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8, "head_dim": 8}
    text = t.Gemma3TextConfig(**SIZES, **layers, vocab_size=len(tokenizer))
    tokens = {f"{name}_token_index": getattr(tokenizer, f"{name}_token_id") for name in ("boi", "eoi", "image")}
    return t.Gemma3Config(vision_config=vision, text_config=text, mm_tokens_per_image=4, **tokens)


def _idefics3_tokenizer() -> PreTrainedTokenizerFast:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    named = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles)
    return _tokenizer(*named, template="<image>")


def idefics3_processor() -> Any:
    """Of images in tiles of 8 x 8 pixels, a token each."""
    images = Idefics3ImageProcessorPil(size={"longest_edge": 16}, max_image_size={"longest_edge": 8})
    return _processor(t.Idefics3Processor, images, _idefics3_tokenizer(), image_seq_len=1)


def idefics3_config() -> Any:
    tokenizer = _idefics3_tokenizer()
    vision = {**_TOWER, "image_size": 8, "patch_size": 4}
    text = t.LlamaConfig(**SIZES, vocab_size=len(tokenizer))
    image = tokenizer.convert_tokens_to_ids("<image>")
    return t.Idefics3Config(
        vision_config=vision, text_config=text, image_token_id=image, scale_factor=2, pad_token_id=0
    )


class Family(NamedTuple):
    """How a tiny member of a family is built."""

    config: Callable[[], Any]
    processor: Callable[[], Any]


FAMILIES = {
    "llava": Family(llava_config, llava_processor),
    "qwen2-vl": Family(qwen2_vl_config, qwen_processor),
    "qwen2.5-vl": Family(qwen2_5_vl_config, qwen_processor),
    "qwen3-vl": Family(qwen3_vl_config, qwen_processor),
    "gemma3": Family(gemma3_config, gemma3_processor),
    "idefics3": Family(idefics3_config, idefics3_processor),
}


def model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A model with weights large enough that an image shows in the log-probs."""
    torch.manual_seed(seed)
    network = t.AutoModelForImageTextToText.from_config(FAMILIES[name].config(), dtype=dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return network


def saved_model(name: str, folder: str) -> str:
    """A folder that the model loads from by name; its processor is given apart."""
    model(name).save_pretrained(folder)
    return folder


def preferences(rows: int = 8, mixed: bool = False) -> Dataset:
    """Rows with one image each, of several sizes; `mixed`: every third row has none, and the second has two."""
    data = tiny.preferences(rows, conversational=True).to_dict()
    images = []
    for row in range(rows):
        count = (1, 2, 0)[row % 3] if mixed else 1
        sizes = [(8 + 8 * ((row + image) % 3), 8 + 8 * (row % 2)) for image in range(count)]
        images.append([_picture(size, 7 * row + image) for image, size in enumerate(sizes)])
    return Dataset.from_dict({**data, "images": images})


def _picture(size: tuple[int, int], seed: int) -> Any:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())
