"""Tokenizers, processors and models that do not fit: handled as TRL does, or named before a model is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from datasets import Dataset
from transformers import AutoTokenizer
from trl.trainer import dpo_trainer

from tests.support import tiny, vision_language
from tests.support.tolerances import rounding

from .processing import TOKENS, build, refused, wrong_tokenizer

NOTHING = "No reference can be loaded: the model was not loaded from a folder"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.saved_model(str(tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("models") / "llava")
    vision_language.model().save_pretrained(folder)
    vision_language.processor().save_pretrained(folder)
    return folder


def losses(folder: Path, model: str, processing: Any, **settings: Any) -> list[float]:
    run = build(folder, model, processing, max_steps=2, train_dataset=tiny.preferences(8, True), **settings)
    run.train()
    return [line["loss"] for line in run.state.log_history if "loss" in line]


@pytest.fixture(scope="module")
def of_tokenizer(vision_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(tmp_path_factory.mktemp("plain"), vision_folder, vision_language.tokenizer())


@pytest.mark.parametrize(
    ("processing", "settings"),
    [
        wrong_tokenizer.case(
            "a vision-language model and its processor on text",
            "the tokenizer's numbers",
            vision_language.processor,
            {},
        ),
        wrong_tokenizer.case(
            "a processor with `share_prompt`",
            "the tokenizer's numbers",
            vision_language.processor,
            {"share_prompt": True},
        ),
        wrong_tokenizer.case(
            "a processor with `padding_free`",
            "the tokenizer's numbers",
            vision_language.processor,
            {"padding_free": True},
        ),
        wrong_tokenizer.case(
            "a processor with stored reference log-probs",
            "the tokenizer's numbers",
            vision_language.processor,
            {"precompute_ref_log_probs": True},
        ),
        wrong_tokenizer.case(
            "a vision-language model by name, with a store and `share_prompt`",
            "the tokenizer's numbers",
            lambda: None,
            {"precompute_ref_log_probs": True, "share_prompt": True},
        ),
    ],
)
def test_a_processor_trains_as_its_tokenizer_does(
    processing: Callable[[], Any],
    settings: dict[str, Any],
    tmp_path: Path,
    vision_folder: str,
    of_tokenizer: list[float],
) -> None:
    store = {"ref_store": str(tmp_path / "store")} if "precompute_ref_log_probs" in settings else {}
    found = losses(tmp_path, vision_folder, processing(), **settings, **store)
    assert found == pytest.approx(of_tokenizer, abs=rounding(30.0))  # the size of the summed log-probs
    assert found[0] != found[1]


def with_token(**special: str) -> Callable[[], Any]:
    """A tokenizer with one token more than the embedding of `tiny`."""

    def make() -> Any:
        tokenizer = tiny.tokenizer()
        if special:
            tokenizer.add_special_tokens(special)
        else:
            tokenizer.add_tokens(["green"])
        return tokenizer

    return make


def without(*names: str) -> Callable[[], Any]:
    def make() -> Any:
        tokenizer = tiny.tokenizer()
        for name in names:
            setattr(tokenizer, name, None)
        return tokenizer

    return make


def other_vocabulary() -> Any:
    """A tokenizer of another model, whose vocabulary is larger."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"word{index}": index for index in range(100)} | {"<eos>": 100, "<unk>": 101}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")


def green(column: str) -> Dataset:
    rows = tiny.preferences()
    return rows.map(lambda row, index: {column: row[column] + " green" * (index == 5)}, with_indices=True)


def green_message() -> Dataset:
    answer = [{"role": "assistant", "content": "green"}]
    return tiny.preferences(8, True).map(lambda row, index: {"chosen": answer} if index == 3 else {}, with_indices=True)


MESSAGES = {"train_dataset": tiny.preferences(8, True)}
BOTH = f"The tokenizer has {TOKENS + 1} tokens and the model embeddings for {TOKENS}"


@pytest.mark.parametrize(
    ("processing", "settings", "expected"),
    [
        wrong_tokenizer.case(
            "a tokenizer with neither a pad nor an EOS token",
            "error: set both",
            without("pad_token", "eos_token"),
            {},
            "The tokenizer has neither a pad token nor an EOS token",
        ),
        wrong_tokenizer.case(
            "a tokenizer without an EOS token, and data of texts",
            "error: set `tokenizer.eos_token`",
            without("eos_token"),
            {},
            "The tokenizer has no EOS token",
        ),
        wrong_tokenizer.case(
            "a `pad_token` that is not in the vocabulary",
            "error",
            tiny.tokenizer,
            {"pad_token": "<nothing>"},
            "The pad token '<nothing>' is not in the tokenizer's vocabulary",
        ),
        wrong_tokenizer.case(
            "a tokenizer with more tokens than the embedding, one of them in the data",
            "error with both numbers, the token and where it is",
            with_token(),
            {"train_dataset": green("rejected")},
            f"{BOTH}: 'green' (id {TOKENS}), which is in train_dataset",
        ),
        wrong_tokenizer.case(
            "the same token in a message", "the same error", with_token(), {"train_dataset": green_message()}, BOTH
        ),
        wrong_tokenizer.case(
            "a pad token added without resizing the embedding",
            "the same error",
            with_token(pad_token="[PAD]"),
            {},
            f"{BOTH}: '[PAD]' (id {TOKENS}), the pad token",
        ),
        wrong_tokenizer.case(
            "an EOS token added without resizing the embedding",
            "the same error",
            with_token(eos_token="</s>"),
            {},
            f"{BOTH}: '</s>' (id {TOKENS}), the EOS token",
        ),
        wrong_tokenizer.case(
            "the tokenizer of another model, with a larger vocabulary",
            "the same error",
            other_vocabulary,
            {},
            f"The tokenizer has 102 tokens and the model embeddings for {TOKENS}",
        ),
        wrong_tokenizer.case(
            "data of messages, and a tokenizer without a chat template",
            "error",
            without("chat_template"),
            MESSAGES,
            "train_dataset has messages, but the tokenizer has no chat template",
        ),
        wrong_tokenizer.case(
            'a string as `processing_class`, such as "gpt2"',
            "error: load it with AutoTokenizer",
            lambda: "gpt2",
            {},
            "processing_class must be a tokenizer or a processor of transformers; got str",
        ),
    ],
)
@pytest.mark.parametrize("by_name", [True, False])
def test_a_tokenizer_that_does_not_fit_is_named(
    by_name: bool, processing: Callable[[], Any], settings: Any, expected: str, tmp_path: Path, saved: str
) -> None:
    model = saved if by_name else tiny.model()
    problems = refused(tmp_path, model, processing(), None if by_name else tiny.model(1), **settings)
    assert len(problems) == 1
    assert problems[0].startswith(expected)


@pytest.mark.parametrize(
    ("processing", "settings"),
    [
        wrong_tokenizer.case("a tokenizer without a pad token", "pads with EOS, as in TRL", without("pad_token"), {}),
        wrong_tokenizer.case(
            "a tokenizer without an EOS token, and data of messages", "trains", without("eos_token"), MESSAGES
        ),
        wrong_tokenizer.case(
            "a tokenizer with a token beyond the embedding that the run does not use", "trains", with_token(), {}
        ),
        wrong_tokenizer.case(
            "a chat template in the data's `chat_template_kwargs`",
            "trains",
            without("chat_template"),
            {
                "train_dataset": tiny.preferences(
                    4, True, chat_template_kwargs=[{"chat_template": tiny.CHAT_TEMPLATE}] * 4
                )
            },
        ),
        pytest.param(without("chat_template"), {}, id="texts without a template"),
    ],
)
def test_a_tokenizer_that_fits_is_taken(
    processing: Callable[[], Any], settings: Any, tmp_path: Path, saved: str
) -> None:
    build(tmp_path, saved, processing(), **settings).train()


@wrong_tokenizer("a model folder without a tokenizer, and no `processing_class`", "error")
def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path / "model")
    (problem,) = refused(tmp_path, str(tmp_path / "model"), None)
    assert problem.startswith(f"The tokenizer of {tmp_path / 'model'} could not be loaded")
    (problem,) = refused(tmp_path, tiny.model(), None, tiny.model())
    assert problem == "No tokenizer: the model was not loaded from a folder. Pass processing_class."


def test_the_tokenizer_is_loaded_once(tmp_path: Path, saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpo_trainer, "AutoProcessor", None)
    trainer = build(tmp_path, saved, None)
    assert trainer.processing_class.get_vocab() == AutoTokenizer.from_pretrained(saved).get_vocab()


def test_several_problems_are_one_list(tmp_path: Path, saved: str) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = None
    output = tmp_path / "file"
    output.touch()
    problems = refused(output, saved, tokenizer, "gpt2", report_to="tensorbord", **MESSAGES)
    starts = ["report_to", f"output_dir {output} is a file", "train_dataset has messages", "ref_model must be a model"]
    assert [problem.startswith(start) for problem, start in zip(problems, starts, strict=True)] == [True] * 4
