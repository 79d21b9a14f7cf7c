"""What both RewardBench's inference code and ours are run on: tokenizers, rows, models, accuracies, scores."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from demo.preferences import DATA
from tests.support import tiny

SUBSETS = ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med", "mt-bench-hard")
SUBSETS += ("llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst", "llmbar-adver-GPTOut")
SUBSETS += ("llmbar-adver-manual", "refusals-dangerous", "refusals-offensive", "xstest-should-refuse")
SUBSETS += ("xstest-should-respond", "donotanswer", "math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js")
SUBSETS += ("hep-python", "hep-rust")
PRIOR_SETS = ("anthropic_helpful", "anthropic_hhh", "shp", "summarize")


def _words() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


def _words_with_bos() -> PreTrainedTokenizerFast:
    """A tokenizer with a BOS token that its template prints, too."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<user>"})
    return tokenizer


def _merging() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes that merges the line break after a prompt with one that an answer begins with."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(["<s>", "</s>", *alphabet, "ĊĊ", "ĊĊĊ"])}
    inner = Tokenizer(models.BPE(vocabulary, [("Ċ", "Ċ"), ("ĊĊ", "Ċ")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    return fast


def _printing() -> PreTrainedTokenizerFast:
    """A tokenizer without BOS and padding tokens whose template prints both."""
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    tokenizer.chat_template = "{{ bos_token }} " + tiny.CHAT_TEMPLATE + "{{ pad_token }}"
    return tokenizer


TOKENIZERS = {"words": _words, "words_with_bos": _words_with_bos, "merging": _merging, "printing": _printing}


def _turns(*contents: str, first: str = "user") -> list[dict[str, str]]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(contents)]


def _pair(prompt: Any, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


_LONG = "long"
ROWS: dict[str, tuple[dict[str, Any], ...]] = {
    "words": (
        _pair("what is the capital of france", "paris", "well let me think about that"),
        _pair(_turns("say yes", "yes", "say no"), "no", "yes it is"),
        _pair(_turns("say yes", "yes", "say no", first="assistant"), "no", "yes it is"),  # roles of the other kind
        _pair("say yes", "<user> say yes is the question <user> say yes yes", "no"),  # quotes the rendered prompt
        _pair("say yes", "", "no"),
        _pair("say yes", "yes", "yes"),
        _pair(" ".join([_LONG] * 2100), "yes", "no no"),  # the prompt is cut
        _pair(" ".join(["what", "is", *[_LONG] * 200]), "yes", " ".join(["no"] * 2000)),  # then the answer, too
        _pair("say yes", "yes " * 1950, " ".join(["no"] * 2100)),  # both answers; the prompt is short enough
        _pair(" ".join([_LONG] * 140), " ".join(["yes"] * 1902), "no"),  # 2048 and a little
        _pair(" ".join([_LONG] * 140), " ".join(["yes"] * 1903), "no"),
        _pair(" ".join([_LONG] * 140), " ".join(["yes"] * 1904), "no"),
        _pair(" ".join([_LONG] * 140), " ".join(["yes"] * 1905), "no"),
        _pair("", "yes", "no"),
    ),
    "words_with_bos": (
        _pair("what is the capital of france", "paris", "well let me think about that"),
        _pair(_turns("say yes", "yes", "say no"), "no", "yes it is"),
        _pair(" ".join([_LONG] * 2100), "yes", "no no"),  # the cut takes the BOS away
    ),
    "printing": (_pair("say yes", "yes", "no no"), _pair(_turns("say yes", "yes", "say no"), "no", "yes")),
    "merging": (
        _pair("Hi", "there", "\nthere"),  # the sides' prompts differ
        _pair("Hi", "\n\nthere", "\n"),
        _pair("Hi\n", "Hi\n\n", "Hi\nand Hi\n\nagain"),
    ),
}


def scored_rows() -> tuple[dict[str, Any], ...]:
    """The rows that go through the tiny models: those that are not too long."""
    return tuple(row for row in ROWS["words"] if max(len(str(value)) for value in row.values()) < 400)


def tiny_model(factor: float) -> LlamaForCausalLM:
    """A model whose weights are a function of their place, on every machine."""
    network = tiny.model()
    with torch.no_grad():
        for place, parameter in enumerate(network.parameters()):
            waves = torch.arange(parameter.numel(), dtype=torch.float64) * factor + place
            if parameter.dim() > 1:
                parameter.copy_(torch.sin(waves).reshape(parameter.shape))
    return network.eval()


FACTORS = {"policy": 1.3, "reference": 1.1}


def with_adapter(network: Any) -> Any:
    """A causal language model with an adapter whose weights are a function of their place."""
    lora = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(network, lora)
    with torch.no_grad():
        for place, (name, parameter) in enumerate(sorted(adapted.named_parameters())):
            if "lora_" in name:
                waves = torch.arange(parameter.numel(), dtype=torch.float64) ** 2 * 0.7 + place  # close to noise
                parameter.copy_(0.15 * torch.sin(waves).reshape(parameter.shape))
    return adapted.eval()


def demo_rows() -> list[dict[str, Any]]:
    """The demo's held-out pairs in the layout of RewardBench's core set."""
    rows = map(json.loads, (DATA / "test.jsonl").read_text(encoding="utf-8").splitlines())
    return [{name: row[name][0]["content"] for name in ("prompt", "chosen", "rejected")} for row in rows]


def accuracies() -> list[dict[str, float]]:
    """Accuracies by subset: all of them, some of them, and those of prior sets beside them."""
    random_ = random.Random(0)
    full = {name: random_.random() for name in SUBSETS}
    some = {name: random_.random() for name in SUBSETS[::3]}
    one = {"math-prm": random_.random(), "hep-go": random_.random()}
    prior = {name: random_.random() for name in PRIOR_SETS}
    return [full, some, one, full | prior, full | dict(list(prior.items())[1:3])]


def groups() -> list[dict[str, Any]]:
    """Scores of several answers, the right ones first, as of RewardBench 2."""
    random_ = random.Random(1)
    rows = []
    for scores in ([3.0, 1.0, 2.0, 0.0], [1.0, 3.0, 2.0, 0.0], [2.0, 2.0, 1.0, 0.0], [1.0] * 4, [0.0, 1.0, 1.0, 1.0]):
        rows.append({"subset": "Focus", "id": str(len(rows)), "num_correct": 1, "scores": scores})
    for prompt in range(6):
        rows.append(_tied("ref", prompt, 1, [random_.gauss(1.5, 1), *(random_.gauss(0, 1) for _ in range(3))]))
        right = 2 + prompt % 3
        scores = [random_.gauss(2, 0.4) for _ in range(right)] + [random_.gauss(0, 1) for _ in range(3)]
        rows.append(_tied("tied", prompt, right, scores))
    rows += [_tied("ref", 6, 1, [2.0, 1.0, 0.5]), _tied("tied", 6, 2, [2.0, 2.0, 1.0])]  # no spread: x / 0
    rows += [_tied("ref", 7, 1, [1.0, 1.0]), _tied("tied", 7, 2, [1.0, 1.0, 1.0])]  # all equal: 0 / 0
    rows += [_tied("ref", 8, 1, [0.0, 1.0]), _tied("tied", 9, 3, [1.0, 2.0, 3.0, 0.0])]  # one half of a couple
    return rows


def _tied(kind: str, prompt: int, right: int, scores: Sequence[float]) -> dict[str, Any]:
    return {"subset": "Ties", "id": f"{kind}:{prompt}", "num_correct": right, "scores": list(scores)}


def runs(ids: Sequence[int]) -> list[list[int]]:
    """Shorten token ids: each run of one id becomes the id and its length."""
    shortened: list[list[int]] = []
    for token in map(int, ids):
        if shortened and shortened[-1][0] == token:
            shortened[-1][1] += 1
        else:
            shortened.append([token, 1])
    return shortened


def ids_of(shortened: Sequence[Sequence[int]]) -> list[int]:
    """Invert `runs`."""
    return [token for token, number in shortened for _ in range(number)]
