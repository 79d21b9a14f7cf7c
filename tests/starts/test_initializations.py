"""Initializations of LoRA start at the reference, or say what has to be prepared."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig

from tests.support import runs, tiny
from trl_dpo_ext.errors import InputError

from .listing import Kind

initialized = Kind("Initializations of LoRA")

LORA: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}
STORE = {"precompute_ref_log_probs": True}
IDS = torch.arange(5, 37).view(2, 16)


def config(kind: Any, **more: Any) -> LoraConfig:
    return LoraConfig(init_lora_weights=kind, **LORA, **more)


def data_config(kind: str) -> LoraConfig:
    return config(kind, **({"corda_config": CordaConfig()} if kind == "corda" else {}))


def starts_at_zero(folder: Path, model: Any, peft_config: Any = None, **settings: Any) -> None:
    run = runs.trained(folder, model=model, peft_config=peft_config, max_steps=2, **settings)
    first, second = (line["loss"] for line in run.state.log_history if "loss" in line)
    assert run.first_step.start_difference < 1e-5
    assert first == pytest.approx(0.6931, abs=1e-4)
    assert second != first


@initialized(
    "`init_lora_weights` of `pissa`, `pissa_niter_4`, `olora`, `orthogonal`, DoRA or rsLoRA with them, live or stored",
    "the policy's start is the reference: the first loss is 0.6931",
)
@pytest.mark.parametrize(
    ("kind", "more", "settings"),
    [
        ("pissa_niter_4", {}, {}),
        ("olora", {}, {}),
        ("orthogonal", {}, {}),
        ("pissa", {"use_dora": True}, {}),
        ("pissa", {"use_dora": True}, STORE),
        ("olora", {"use_dora": True}, {}),
        ("pissa", {"use_rslora": True}, {}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else value,
)
def test_an_initialization_without_data_starts_at_the_reference(
    tmp_path: Path, kind: str, more: dict, settings: dict
) -> None:
    starts_at_zero(tmp_path, tiny.model(), config(kind, **more), **settings)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        initialized.case(
            "`init_lora_weights='eva'` in `peft_config` (peft starts at random, in silence)",
            "error: fill the adapter with `initialize_lora_eva_weights` and pass it",
            "eva",
            "initialize_lora_eva_weights",
        ),
        initialized.case(
            "`init_lora_weights='corda'` without preparation",
            "error: call `preprocess_corda` first",
            "corda",
            "preprocess_corda",
        ),
        initialized.case(
            "`init_lora_weights='lora_ga'` without preparation (peft starts at random, in silence)",
            "error: call `preprocess_loraga` first",
            "lora_ga",
            "preprocess_loraga",
        ),
    ],
)
@pytest.mark.parametrize("by_name", [False, True], ids=["instance", "name"])
def test_what_needs_data_is_not_made_without(tmp_path: Path, kind: str, what: str, by_name: bool) -> None:
    model = tiny.saved_model(str(tmp_path / "model")) if by_name else tiny.model()
    with pytest.raises(InputError, match=f"init_lora_weights='{kind}' is computed from data.*{what}"):
        runs.trainer(tmp_path / "out", model=model, peft_config=data_config(kind))


@initialized("`init_lora_weights='loftq'` without a GPU", "error before a model is loaded")
def test_loftq_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: None)
    peft_config = config(True)
    peft_config.init_lora_weights = "loftq"  # peft wants scipy for it
    with pytest.raises(InputError, match="'loftq' is computed on a GPU, and this machine has none"):
        runs.trainer(tmp_path, peft_config=peft_config)


def batch() -> dict[str, torch.Tensor]:
    return {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}


def with_eva(rho: float) -> tuple[Any, Any]:
    from peft import EvaConfig, initialize_lora_eva_weights

    model = get_peft_model(tiny.model(), config("eva", eva_config=EvaConfig(rho=rho)))
    initialize_lora_eva_weights(model, [batch()] * 3, show_progress_bar=False)
    return model, None


def with_corda(method: str) -> tuple[Any, Any]:
    if importlib.util.find_spec("attr") is None:  # of which peft needs a dataclass here
        stand_in: Any = types.ModuleType("attr")
        stand_in.dataclass = dataclasses.dataclass
        sys.modules["attr"] = stand_in
    try:
        from peft.tuners.lora.corda import preprocess_corda
    finally:
        if not hasattr(sys.modules.get("attr"), "__file__"):
            sys.modules.pop("attr", None)
    model, peft_config = tiny.model(), config("corda", corda_config=CordaConfig(corda_method=method))
    preprocess_corda(model, peft_config, run_model=lambda: [model(input_ids=row[None]) for row in IDS])
    return model, peft_config


def with_lora_ga() -> tuple[Any, Any]:
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    model, peft_config = tiny.model(), config("lora_ga", lora_ga_config=LoraGAConfig())
    preprocess_loraga(model, peft_config, lambda: model(**batch()).loss.backward())
    model.zero_grad()
    return model, peft_config


PREPARED = {
    "eva": lambda: with_eva(1.0),
    "eva, ranks moved between layers": lambda: with_eva(2.0),
    "corda ipm": lambda: with_corda("ipm"),
    "corda kpm": lambda: with_corda("kpm"),
    "lora_ga": with_lora_ga,
}


@initialized("the same, prepared with peft's functions, live or stored", "the first loss is 0.6931")
@pytest.mark.parametrize("kind", PREPARED)
def test_what_was_prepared_starts_at_the_reference(tmp_path: Path, kind: str) -> None:
    settings = STORE if kind == "corda kpm" else {}
    starts_at_zero(tmp_path, *PREPARED[kind](), **settings)


@initialized("the same, as a `PeftModel`", "the first loss is 0.6931")
@pytest.mark.parametrize("kind", ["corda ipm", "lora_ga"])
def test_a_prepared_peft_model_starts_at_the_reference(tmp_path: Path, kind: str) -> None:
    model, peft_config = PREPARED[kind]()
    starts_at_zero(tmp_path, get_peft_model(model, peft_config))


@initialized("`init_lora_weights=False` in `peft_config`", "warning: the policy does not start as its reference")
@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["LoRA", "DoRA", "rsLoRA"])
def test_a_random_start_is_told(tmp_path: Path, more: dict[str, bool]) -> None:
    random = config(False, **more)
    with pytest.warns(UserWarning, match="init_lora_weights=False starts the adapter at random"):
        runs.trainer(tmp_path / "new", peft_config=random)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "init_lora_weights")
        runs.trainer(tmp_path / "made", model=get_peft_model(tiny.model(), random))
