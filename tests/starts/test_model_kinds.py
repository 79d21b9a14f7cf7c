"""A model that TRL cannot train, or that no folder holds, is named or served before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import LlamaForSequenceClassification, LlamaModel

from tests.support import runs, tiny

from .processing import TOKENS, refused, wrong_tokenizer


def encoder_decoder() -> Any:
    sizes: dict[str, Any] = {"vocab_size": TOKENS, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


def masked() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=TOKENS, **sizes))


HEADLESS = "which has no language model head"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        wrong_tokenizer.case("an encoder-decoder model (T5)", "error", encoder_decoder, "an encoder-decoder model"),
        wrong_tokenizer.case(
            "a sequence classifier", "error", lambda: LlamaForSequenceClassification(tiny.model().config), HEADLESS
        ),
        wrong_tokenizer.case(
            "a model without a head (`AutoModel`)", "error", lambda: LlamaModel(tiny.model().config), HEADLESS
        ),
        wrong_tokenizer.case("a masked language model (BERT)", "error", masked, HEADLESS),
    ],
)
def test_a_model_of_the_wrong_kind_is_named(make: Callable[[], Any], expected: str, tmp_path: Path) -> None:
    model, folder = make(), str(tmp_path / "model")
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    for given, ref_model in ((model, tiny.model()), (folder, None), (tiny.model(), model)):
        problems = refused(tmp_path, given, tiny.tokenizer(), ref_model)
        assert len(problems) == 1
        assert f"{type(model).__name__}, {expected}" in problems[0]


def moved(folder: Path) -> Any:
    """A model whose folder is gone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny.saved_model(str(folder / "here" / "model")))
    (folder / "here").rename(folder / "there")
    return model


@pytest.mark.parametrize(
    "model",
    [
        wrong_tokenizer.case(
            "a model from no folder, and no `ref_model`", "a copy of the model is the reference", lambda _: tiny.model()
        ),
        wrong_tokenizer.case(
            "a model whose folder is gone, and no `ref_model`", "a copy of the model is the reference", moved
        ),
    ],
)
def test_a_model_that_no_folder_holds_is_its_own_reference(tmp_path, model: Any) -> None:
    run = runs.trainer(tmp_path, model=model(tmp_path), ref_model=None)
    loss = run.compute_loss(run.model, next(iter(run.get_train_dataloader())))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("model", "ref_model", "expected"),
    [
        wrong_tokenizer.case(
            "a string as `ref_model`",
            "error: give a model, or `ref_model_name_or_path`",
            lambda _: tiny.model(),
            lambda _: "gpt2",
            "ref_model must be a model, and is the name 'gpt2'. Load it, or set ref_model_name_or_path",
        ),
        wrong_tokenizer.case(
            "a `Path` as `ref_model`",
            "error",
            lambda _: tiny.model(),
            lambda folder: folder,
            "ref_model must be a transformers model; got PosixPath",
        ),
        wrong_tokenizer.case(
            "a `Path` as `model`",
            "error: pass a string",
            lambda folder: folder,
            lambda _: None,
            "model must be a name or a transformers model; got PosixPath. Pass str(path).",
        ),
        wrong_tokenizer.case(
            "a path to no folder",
            "error",
            lambda folder: str(folder / "nothing"),
            lambda _: None,
            "The model {}/nothing does not exist: no such folder",
        ),
        wrong_tokenizer.case(
            "the folder above a checkpoint",
            "error that names the checkpoint",
            lambda folder: tiny.saved_model(str(folder / "checkpoint-20")) and str(folder),
            lambda _: None,
            "The model folder {} has no config.json (--model_name_or_path). Did you mean {}/checkpoint-20?",
        ),
    ],
)
def test_what_is_no_model_is_named(model: Any, ref_model: Any, expected: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    problems = refused(tmp_path / "out", model(folder), tiny.tokenizer(), ref_model(folder))
    assert len(problems) == 1
    assert problems[0].startswith(expected.replace("{}", str(folder)))
