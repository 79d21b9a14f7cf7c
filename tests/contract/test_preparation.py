"""What TRL does with data before training, as `trl_dpo_ext/_trl/preparation.py` leans on it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, Features, List
from datasets import Image as ImageFeature
from PIL import Image
from trl import DPOTrainer

from tests.support import runs, tiny, vision_language
from trl_dpo_ext import _trl

from .trl_seams import seam


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return runs.trainer(tmp_path_factory.mktemp("host"), DPOTrainer, ref_model=tiny.model(seed=1))


def test_data_is_prepared_by_a_method_that_reads_nothing_of_the_trainer_but_its_tokenizer(host: Any, tmp_path) -> None:
    data, tokenizer = tiny.preferences(8, number=[*range(8)]), tiny.tokenizer()
    args = runs.config(tmp_path, max_length=9)
    prepared = _trl.preparation(tokenizer)(data, tokenizer, args, "train")
    real = host._prepare_dataset(data, tokenizer, args, "train")
    assert prepared[:] == real[:], seam("_prepare_dataset needs a tokenizer alone")
    kept = [number for number in range(8) if len(tokenizer(data[number]["prompt"])["input_ids"]) < 9]
    assert prepared["number"][:] == kept, seam("_prepare_dataset keeps other columns and the order of rows")


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_the_collator_is_the_one_that_the_constructor_makes(tmp_path, mode: str) -> None:
    trainer = runs.trainer(tmp_path, DPOTrainer, ref_model=tiny.model(1), max_length=7, truncation_mode=mode)
    ours = _trl.pair_collator(tiny.tokenizer(), trainer.args)
    assert ours == trainer.data_collator, seam("DataCollatorForPreference")


@pytest.mark.parametrize("conversational", [False, True])
def test_a_prompt_alone_is_tokenized_as_before_an_answer(conversational: bool, host: Any) -> None:
    tokenizer, data = tiny.tokenizer(), tiny.preferences(3, conversational)
    args = SimpleNamespace(dataset_num_proc=None, max_length=None)
    prepared = _trl.preparation(tokenizer)(data, tokenizer, args, "train")
    assert [*_trl.prompt_tokens(tokenizer, data)] == prepared["prompt_ids"][:], seam("_tokenize")


def test_every_preparation_of_a_dataset_goes_through_one_method_of_its_class(host: Any, tmp_path) -> None:
    data, args, tokenizer = tiny.preferences(3), runs.config(tmp_path), tiny.tokenizer()
    once = _trl.preparation(tokenizer)(data, tokenizer, args, "train")
    short = once.map(lambda row: {"chosen_ids": row["chosen_ids"][:1]})
    again = host._prepare_dataset(short, tokenizer, args, "train")
    assert again["chosen_ids"][:] == once["chosen_ids"][:], seam("_prepare_dataset tokenizes tokenized rows again")
    with _trl.tokens_kept():
        for prepare in (host._prepare_dataset, _trl.preparation(tokenizer)):
            assert prepare(short, tokenizer, args, "train") is short, seam("_prepare_dataset is found on the class")
            assert prepare(data, tokenizer, args, "train")["chosen_ids"][:] == once["chosen_ids"][:]
    trainer = runs.trainer(tmp_path, DPOTrainer, ref_model=tiny.model(1), train_dataset=data)
    assert trainer.train_dataset["chosen_ids"][:] == once["chosen_ids"][:]


TALK = {
    "prompt": [{"role": "user", "content": "say"}],
    "chosen": [{"role": "assistant", "content": "yes"}],
    "rejected": [{"role": "assistant", "content": "no"}],
}


def test_the_template_is_given_the_prompt_with_each_answer_behind_it(tmp_path) -> None:
    tokenizer = tiny.tokenizer()
    refused = "{% for m in messages %}{{ raise_exception('no') if m['content'] == 'bad' }}{% endfor %}"
    tokenizer.chat_template = refused + tiny.CHAT_TEMPLATE
    args = SimpleNamespace(dataset_num_proc=None, max_length=None)
    for column in ("prompt", "chosen", "rejected"):
        data = Dataset.from_list([TALK, {**TALK, column: [{**TALK[column][0], "content": "bad"}]}])
        assert _trl.refused_rows(data, tokenizer) == [1], seam("_prepare_dataset renders prompt + answer")
        with pytest.raises(Exception, match="no") as raised:
            _trl.preparation(tokenizer)(data, tokenizer, args, "train")
        assert _trl.is_template_error(raised.value), seam("templates raise jinja2's TemplateError")
    assert _trl.refused_rows(Dataset.from_list([TALK]), tokenizer) == []
    assert not _trl.is_template_error(ValueError("no"))


def test_a_template_asks_for_the_date_by_a_name_that_a_macro_hides() -> None:
    tokenizer = tiny.tokenizer()
    for template, prints in (("{{ strftime_now('%d %b %Y') }}", True), ("{% set unused = strftime_now %}", False)):
        tokenizer.chat_template = template + tiny.CHAT_TEMPLATE
        assert _trl.prints_date(tokenizer, TALK) == prints, seam("strftime_now is a global of templates")
        assert "<the date>" not in tokenizer.apply_chat_template(TALK["prompt"], tokenize=False)


@pytest.mark.parametrize("images", [1, 2])
def test_the_vision_collator_marks_prompts_and_answers(images: int) -> None:
    processor, picture = vision_language.processor(), Image.new("RGB", (8, 8))
    prompt = [{"role": "user", "content": f"{f'{vision_language.IMAGE} ' * images}say"}]
    features = Features({**Dataset.from_list([TALK]).features, "images": List(ImageFeature())})
    data = Dataset.from_list([{**TALK, "prompt": prompt, "images": [picture] * images}], features=features)
    (row,) = _trl.tokenized_with_images(data, processor, "train")
    counted = seam("DataCollatorForVisionPreference puts the tokens of images into the prompt")
    assert row["prompt_ids"].count(len(processor.tokenizer) - 1) == images * 4, counted
    ends = [processor.tokenizer(f"{word} <eos> ")["input_ids"] for word in ("yes", "no")]
    assert [row["chosen_ids"], row["rejected_ids"]] == ends, counted
    assert "images" not in row
