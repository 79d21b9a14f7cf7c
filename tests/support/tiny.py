"""A tokenizer of a few dozen words, a one-layer model and a handful of preference pairs: enough to run TRL for real."""

from __future__ import annotations

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SENTENCE = (
    "what is the capital of france paris well let me think about that it a good question two plus three five "
    "name color sky blue how many legs has dog four really very say in one word please answer long short yes no"
)
SPECIAL = ["<pad>", "<unk>", "<eos>", "<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + (' <eos> ' if m['role'] == 'assistant' else ' ') }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(SPECIAL + SENTENCE.split()))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def model(seed: int = 0, **overrides: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=2,
        **overrides,
    )
    network = LlamaForCausalLM(config)
    with torch.no_grad():  # larger weights than the default, so that three steps change something visible
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    return network


def saved_model(folder: str, seed: int = 0) -> str:
    """A folder that `from_pretrained` loads, model and tokenizer."""
    model(seed).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


_ROWS = [
    ("what is the capital of france", "paris", "well let me think about that it is a very good question"),
    ("how many legs has a dog", "four", "well that is really a long answer let me think"),
    ("two plus three is", "five", "let me say that two plus three is very very long"),
    ("name the color of the sky", "blue please", "it is a good question"),
    ("say yes", "yes", "no no no"),
    ("answer in one word", "short", "well about that it is long"),
    ("what is a dog", "a dog has four legs", "let me think"),
    ("is the sky blue", "yes it is blue", "no"),
]


def preferences(rows: int = 8, conversational: bool = False, **columns: list[float]) -> Dataset:
    chosen_rows = [_ROWS[index % len(_ROWS)] for index in range(rows)]
    if conversational:
        data = {
            "prompt": [[{"role": "user", "content": p}] for p, _, _ in chosen_rows],
            "chosen": [[{"role": "assistant", "content": c}] for _, c, _ in chosen_rows],
            "rejected": [[{"role": "assistant", "content": r}] for _, _, r in chosen_rows],
        }
    else:
        data = {
            "prompt": [p for p, _, _ in chosen_rows],
            "chosen": [f" {c}" for _, c, _ in chosen_rows],
            "rejected": [f" {r}" for _, _, r in chosen_rows],
        }
    return Dataset.from_dict({**data, **columns})
