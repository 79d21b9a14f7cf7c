"""Features of the models: how policy and reference are loaded and compiled, and PEFT's methods."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.support import tiny
from tests.support.tolerances import rounding

from .cases_training import COMPILED, NOISE_BY_LENGTH, NOT_STORED, OTHER_DRAWS, STARTING_EVALUATION
from .feature import HALF, Differs, Feature, Refused, Run

_CAUSAL = {"task_type": "CAUSAL_LM"}
_PROJECTIONS: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], **_CAUSAL}
_NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
_VIRTUAL_TOKENS = Refused("virtual tokens stand in front of every row", "prepends virtual tokens")
_COMPILED_BEFORE = Refused("hooks on a compiled model are ignored", "was compiled before it was given to the trainer")


def _lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, **_PROJECTIONS, **settings})


def _loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def _adapter(folder: Path) -> dict[str, Any]:
    """An adapter that has been trained before."""
    torch.manual_seed(5)
    return {"model": peft.get_peft_model(_loaded(folder), _lora(init_lora_weights=False))}


def _compiled_in_place(folder: Path) -> dict[str, Any]:
    model = _loaded(folder)
    model.compile(backend="eager")
    return {"model": model}


def _losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.logs if "loss" in line]


def _follows(ours: Run, _: Run) -> None:
    """The reference catches up with the policy, so the second loss is nearer to log 2 than that of plain LoRA."""
    first, second, *_ = _losses(ours)
    assert first == pytest.approx(math.log(2), abs=rounding(1.0))
    assert 0.6918 < second < math.log(2)  # 0.6913 with a reference that stays


def _quiet_reference(ours: Run, other: Run) -> None:
    """The policy's noise is TRL's, and the reference's log-probs, the difference, are not."""
    mine, theirs = ours.logs[0], other.logs[0]
    assert mine["logps/chosen"] == theirs["logps/chosen"]
    assert mine["rewards/chosen"] != theirs["rewards/chosen"]


ADAPTERS: dict[str, peft.PeftConfig] = {
    "LoRA": _lora(),
    "rsLoRA": _lora(use_rslora=True),
    "DoRA": _lora(use_dora=True),
    "LoRA, `all-linear`": _lora(target_modules="all-linear"),
    "LoRA, `modules_to_save`": _lora(modules_to_save=["embed_tokens"]),
    "LoRA, `target_parameters`": peft.LoraConfig(r=4, target_parameters=["mlp.gate_proj.weight"], **_CAUSAL),
    "LoRA, `trainable_token_indices`": _lora(trainable_token_indices={"embed_tokens": [5, 6, 7]}),
    "LoRA of embeddings": _lora(target_modules=["embed_tokens", "q_proj"]),
    "AdaLoRA": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **_PROJECTIONS),
    "BOFT": peft.BOFTConfig(boft_block_size=4, **_PROJECTIONS),
    "FourierFT": peft.FourierFTConfig(n_frequency=8, **_PROJECTIONS),
    "IA3": peft.IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"], **_CAUSAL),
    "LN tuning": peft.LNTuningConfig(target_modules=["input_layernorm"], **_CAUSAL),
    "LoHa": peft.LoHaConfig(r=4, **_PROJECTIONS),
    "LoKr": peft.LoKrConfig(r=4, **_PROJECTIONS),
    "OFT": peft.OFTConfig(r=0, oft_block_size=4, **_PROJECTIONS),
    "VeRA": peft.VeraConfig(r=4, **_PROJECTIONS),
}
PROMPTS: dict[str, peft.PeftConfig] = {
    "prompt tuning": peft.PromptTuningConfig(num_virtual_tokens=3, **_CAUSAL),
    "prefix tuning": peft.PrefixTuningConfig(num_virtual_tokens=3, **_CAUSAL),
    "p-tuning": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, **_CAUSAL),
}

MODELS = [
    Feature("`model` as an instance", lambda folder: {"model": _loaded(folder)}),
    Feature(
        "`model` compiled by `model.compile`",
        _compiled_in_place,
        share_prompt=_COMPILED_BEFORE,
        padding_free=_COMPILED_BEFORE,
    ),
    Feature(
        "`model` compiled by `torch.compile`",
        lambda folder: {"model": torch.compile(_loaded(folder), backend="eager")},
        share_prompt=_COMPILED_BEFORE,
        padding_free=_COMPILED_BEFORE,
    ),
    Feature("`ref_model`", lambda _: {"ref_model": tiny.model(seed=1)}),
    Feature(
        "`ref_model` compiled by `torch.compile`",
        lambda _: {"ref_model": torch.compile(tiny.model(seed=1), backend="eager")},
        share_prompt=_COMPILED_BEFORE,
        padding_free=_COMPILED_BEFORE,
    ),
    Feature("`ref_model`, LoRA", lambda _: {"ref_model": tiny.model(seed=1), "peft_config": _lora()}),
    Feature(
        "`model_init_kwargs`",
        {
            "model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "eager"},
            "optim": "sgd",
            "learning_rate": 0.1,
        },
        share_prompt=HALF,
        store=HALF,
        padding_free=HALF,
    ),
    *(Feature(name, {"peft_config": config}) for name, config in ADAPTERS.items()),
    *(
        Feature(name, {"peft_config": config}, share_prompt=_VIRTUAL_TOKENS, padding_free=_VIRTUAL_TOKENS)
        for name, config in PROMPTS.items()
    ),
    Feature("`PeftModel` trained on", _adapter),
    Feature(
        "`quantization_config`, LoRA",
        {"peft_config": _lora(), "quantization_config": _NF4},
        share_prompt=HALF,
        store=HALF,
        padding_free=HALF,
    ),
    Feature(
        "LoRA, `gradient_checkpointing`, reentrant",
        {
            "peft_config": _lora(),
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": True},
        },
    ),
    Feature(
        "LoRA, `torch_compile`",
        {"peft_config": _lora(), "torch_compile": True, "torch_compile_backend": "eager"},
        share_prompt=COMPILED,
        padding_free=COMPILED,
    ),
    Feature("LoRA, `lora_dropout`", {"peft_config": _lora(lora_dropout=0.2)}),
    Feature(
        "LoRA, `lora_dropout`, `disable_dropout=False`",
        {"peft_config": _lora(lora_dropout=0.2), "disable_dropout": False, "learning_rate": 0.1, **STARTING_EVALUATION},
        share_prompt=OTHER_DRAWS,
        padding_free=OTHER_DRAWS,
    ),
    Feature(
        "LoRA, `sync_ref_model`",
        {"peft_config": _lora(), "sync_ref_model": True, "ref_model_sync_steps": 1},
        plain=Differs("TRL has no reference to move and stops", _follows),
        store=NOT_STORED,
        trl_fails=NotImplementedError,
    ),
    Feature(
        "LoRA, `neftune_noise_alpha`",
        {"peft_config": _lora(), "neftune_noise_alpha": 5.0},
        plain=Differs("TRL adds noise to the reference too", _quiet_reference),
        share_prompt=NOISE_BY_LENGTH,
        padding_free=NOISE_BY_LENGTH,
    ),
]
