"""Adapters that cannot run, cannot be loaded again, or change nothing."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from peft import (
    AdaptionPromptConfig,
    CPTConfig,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PolyConfig,
    PrefixTuningConfig,
    VeraConfig,
    XLoraConfig,
    get_peft_model,
)
from transformers import BitsAndBytesConfig

from tests.support import runs, tiny
from trl_dpo_ext.errors import InputError

from .listing import Kind

adapters = Kind("Adapters that cannot be trained")

CAUSAL = {"task_type": "CAUSAL_LM"}
LORA = {**CAUSAL, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        adapters.case(
            "prefix tuning with `gradient_checkpointing`, which is on by default",
            "error: turn it off",
            PrefixTuningConfig(**CAUSAL, num_virtual_tokens=2),
            "gradient_checkpointing=False",
        ),
        adapters.case(
            "CPT",
            "error: its loss needs logits",
            CPTConfig(**CAUSAL, cpt_token_ids=[5], cpt_mask=[1], cpt_tokens_type_mask=[1]),
            "CPT computes a loss from logits",
        ),
        adapters.case(
            "multitask prompt tuning",
            "error: rows have no tasks",
            MultitaskPromptTuningConfig(**CAUSAL, num_virtual_tokens=2, num_tasks=2),
            "task_ids",
        ),
        adapters.case("Poly", "error: rows have no tasks", PolyConfig(**LORA), "task_ids"),
        adapters.case(
            "X-LoRA", "error", XLoraConfig(**CAUSAL, hidden_size=16, adapters={"0": "none"}), "hidden states"
        ),
        adapters.case(
            "adaption prompts", "error", AdaptionPromptConfig(**CAUSAL, adapter_len=2, adapter_layers=1), "attention"
        ),
        adapters.case("LoRA of rank 0", "error", LoraConfig(**LORA, r=0), "must be positive; got r=0"),
        adapters.case("VeRA of rank 0", "error", VeraConfig(**LORA, r=0), "must be positive; got r=0"),
        adapters.case(
            "LoRA with `lora_alpha=0`", "error: nothing would train", LoraConfig(**LORA, lora_alpha=0), "alpha"
        ),
        adapters.case(
            "LoRA with `task_type='SEQ_CLS'`",
            "error: what is saved could not be loaded",
            LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]),
            "task_type is SEQ_CLS",
        ),
        adapters.case(
            "LoRA with `task_type='SEQ_2_SEQ_LM'`",
            "error: what is saved could not be loaded",
            LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q_proj"]),
            "task_type is SEQ_2_SEQ_LM",
        ),
        adapters.case("a dictionary as `peft_config`", "error", {"r": 4}, "must be a PeftConfig.*got dict"),
    ],
)
def test_configs(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        runs.trainer(tmp_path, model="no/such-model-is-loaded", peft_config=config)


@adapters("a `PeftModel` with `lora_alpha=0`", "error: nothing would train")
def test_of_a_given_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lora_alpha=0"):
        runs.trainer(tmp_path, model=get_peft_model(tiny.model(), LoraConfig(**LORA, lora_alpha=0)))


@adapters("a quantized model without an adapter", "error before it is loaded: pass a `peft_config`")
def test_quantized(tmp_path: Path) -> None:
    model = tiny.saved_model(str(tmp_path / "model"))
    with pytest.raises(InputError, match=r"Quantized weights cannot be trained.*--use_peft"):
        runs.trainer(tmp_path, model=model, quantization_config=BitsAndBytesConfig(load_in_8bit=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        adapters.case(
            "an unknown `attn_implementation`", "error that lists those that exist", "flash", "Choose one of"
        ),
        adapters.case(
            "`attn_implementation='flash_attention_2'` where it is not installed",
            "error",
            "flash_attention_2",
            "'sdpa'",
        ),
    ],
)
def test_attention(tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for check in ("is_flash_attn_2_available", "is_kernels_available"):
        monkeypatch.setattr(f"trl_dpo_ext._trl.refusals.{check}", lambda: False)
    with pytest.raises(InputError, match=f"attn_implementation={name!r}.*{message}"):
        runs.trainer(tmp_path, model="no/such-model", model_init_kwargs={"attn_implementation": name})


def test_known_attention_is_not_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        runs.trainer(tmp_path, model="no/such-model", model_init_kwargs={"attn_implementation": "eager"})
    assert "attn_implementation" not in str(refused.value)


@pytest.mark.parametrize("by_name", [True, False], ids=["name", "model"])
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        adapters.case(
            "`lora_target_modules` of another architecture",
            "error before the model is loaded, with the names that there are",
            ["c_attn", "query_key_value"],
            r"no module c_attn or query_key_value .* Choose from .*, q_proj, .*all-linear",
        ),
        adapters.case("`lora_target_modules` with a typo", "error with the name", ["q_porj"], r"Did you mean q_proj\?"),
        adapters.case(
            "a pattern as `target_modules` that matches nothing",
            "the same error",
            r"layers\.9\..*",
            r"no module layers",
        ),
    ],
)
def test_targets_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, targets: Any, message: str, by_name: bool
) -> None:
    model = tiny.saved_model(str(tmp_path / "model")) if by_name else tiny.model()
    monkeypatch.setattr("trl.trainer.dpo_trainer.create_model_from_path", None)  # nothing is loaded
    with pytest.raises(InputError, match=message):
        runs.trainer(tmp_path, model=model, peft_config=LoraConfig(**CAUSAL, target_modules=targets))


@adapters("`lora_target_modules` of which some are not there", "warning: the adapter is put on the others alone")
def test_some_targets_that_are_not_there(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no module v_porj.*other targets alone\. Did you mean v_proj"):
        runs.trainer(tmp_path, peft_config=LoraConfig(**CAUSAL, target_modules=["q_proj", "v_porj"]))


@pytest.mark.parametrize(
    "targets", [["q_proj"], ["self_attn.q_proj", "model.layers.0.mlp.up_proj"], r".*\.q_proj", "all-linear", None]
)
def test_targets_that_are_there(tmp_path: Path, targets: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        config = LoraConfig(**CAUSAL, target_modules=targets)
        runs.trainer(tmp_path, model=tiny.saved_model(str(tmp_path / "model")), peft_config=config)
