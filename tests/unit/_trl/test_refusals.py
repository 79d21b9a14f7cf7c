"""What TRL or transformers would refuse after loading a model is refused before, in one error."""

from __future__ import annotations

import importlib.util
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference, DataCollatorForVisionPreference

from tests.support import runs, tiny, vision_language
from trl_dpo_ext._trl.refusals import late_refusals
from trl_dpo_ext.errors import InputError


def problems(tmp_path, data: Any = None, config: Any = None, models: Any = (), **settings: Any) -> list[str]:
    datasets = [tiny.preferences(2) if data is None else data]
    return late_refusals(runs.config(tmp_path, **settings), list(models), datasets, config)


def images() -> Dataset:
    return tiny.preferences(2).add_column("images", [[], []])


@pytest.mark.parametrize(
    ("option", "value", "module"),
    [
        ("optim", "galore_adamw", "galore_torch"),
        ("optim", "adalomo", "lomo_optim"),
        ("optim", "schedule_free_radam", "schedulefree"),
        ("optim", "apollo_adamw", "apollo_torch"),
        ("use_liger_kernel", True, "liger_kernel"),
    ],
)
def test_a_missing_package_is_named(option: str, value: Any, module: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = problems(tmp_path, **{option: value})
    assert problem.startswith(f"{option}={value!r} needs the package {module}, which is not installed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert problems(tmp_path, **{option: value}) == []


def test_optimizers_of_torch_and_transformers_need_no_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop", "adagrad"):
        assert problems(tmp_path, optim=name) == []


def test_offloading_needs_an_accelerator(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert "activation_offloading=True" in problems(tmp_path, activation_offloading=True)[0]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert problems(tmp_path, activation_offloading=True) == []


def test_an_adapter_of_the_head_is_refused_and_a_trained_head_is_not(tmp_path) -> None:
    assert "lm_head" in problems(tmp_path, config=peft.LoraConfig(target_modules=["q_proj", "lm_head"]))[0]
    for config in (
        peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
        peft.LoraConfig(target_modules="all-linear"),
        peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    ):
        assert problems(tmp_path, config=config) == []


def test_a_compiled_model_with_an_adapter_is_refused() -> None:
    adapter = peft.LoraConfig(target_modules=["q_proj"])
    adapted = peft.get_peft_model(tiny.model(), adapter)
    for models, config in (
        ([torch.compile(adapted), None], None),
        ([torch.compile(tiny.model()), None], adapter),
        ([_compiled_in_place(adapted), None], None),
        (["name", torch.compile(adapted)], None),
    ):
        (problem,) = problems("out", models=models, config=config)
        assert "torch_compile=True" in problem
    assert problems("out", models=[torch.compile(tiny.model()), tiny.model()]) == []
    assert problems("out", models=["name", tiny.model()], config=adapter) == []


def _compiled_in_place(model: Any) -> Any:
    model.compile()
    return model


@pytest.mark.parametrize(
    "option",
    [{"pad_to_multiple_of": 8}, {"truncation_mode": "keep_end", "max_length": 9}],
    ids=lambda option: next(iter(option)),
)
def test_images_refuse_what_their_collator_cannot_do(option: dict[str, Any], tmp_path) -> None:
    for data in (images(), images().rename_column("images", "image"), images().to_iterable_dataset()):
        (problem,) = problems(tmp_path, data=data, **option)
        assert problem.startswith(f"{next(iter(option))}=")
        assert "images" in problem
    assert problems(tmp_path, **option) == []


@pytest.mark.parametrize("options", [["share_prompt"], ["padding_free"], ["share_prompt", "padding_free"]])
def test_packed_rows_of_images_are_refused_with_what_works_instead(options: list[str], tmp_path) -> None:
    for data in (images(), images().rename_column("images", "image"), images().to_iterable_dataset()):
        (problem,) = problems(tmp_path, data=data, **dict.fromkeys(options, True))
        assert problem.startswith(f"{' and '.join(options)} cannot be used with images")
        assert f"Remove {' and '.join(options)}." in problem
        assert "set precompute_ref_log_probs" in problem
    assert problems(tmp_path, **dict.fromkeys(options, True)) == []


def test_images_are_precomputed_from_datasets_and_by_trls_collator_alone(tmp_path) -> None:
    option = {"precompute_ref_log_probs": True}
    assert problems(tmp_path, data=images(), **option) == []
    (problem,) = problems(tmp_path, data=images().to_iterable_dataset(), **option)
    assert "without streaming" in problem
    given = (runs.config(tmp_path, **option), ["some/model", None], [images()], None)
    assert late_refusals(*given, DataCollatorForVisionPreference(vision_language.processor())) == []
    (problem,) = late_refusals(*given, DataCollatorForPreference(pad_token_id=0))
    assert "Leave data_collator out" in problem
    assert late_refusals(*given[:2], [tiny.preferences(2)], None, DataCollatorForPreference(pad_token_id=0)) == []


def test_all_are_reported_together_before_a_model_is_loaded(tmp_path) -> None:
    with pytest.raises(InputError) as caught:
        runs.trainer(
            tmp_path,
            model="no/such-model",
            train_dataset=images(),
            pad_to_multiple_of=8,
            truncation_mode="keep_end",
            max_length=9,
            peft_config=peft.LoraConfig(target_modules=["lm_head"]),
        )
    assert sum("no/such-model" in problem for problem in caught.value.problems) == 1
    assert len(caught.value.problems) == 5  # images for a tokenizer, too
