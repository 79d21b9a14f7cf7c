"""The check of the first step measures rounding in every right start, and costs no forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig
from transformers import BitsAndBytesConfig

from tests.support import architectures, runs, tiny
from tests.support.first_batch import first_batch
from trl_dpo_ext.reference import consistency_check

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def lora(**settings: Any) -> dict[str, Any]:
    return {"peft_config": LoraConfig(**{**LORA, **settings})}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.saved_model(str(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def no_cpu_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


RIGHT: dict[str, dict[str, Any]] = {
    "full": {},
    "full by name": {"model": "folder"},
    "full bf16": {"model": torch.bfloat16},
    "full fp16": {"model": torch.float16},
    "LoRA": lora(),
    "LoRA bf16": {"model": torch.bfloat16, **lora()},
    "LoRA under autocast": {"bf16": True, **lora()},
    "DoRA": lora(use_dora=True),
    "rsLoRA": lora(use_rslora=True),
    "PiSSA bf16": {"model": torch.bfloat16, **lora(init_lora_weights="pissa")},
    "IA3": {
        "peft_config": IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], feedforward_modules=[])
    },
    "QLoRA": {"model": "folder", "quantization_config": NF4, **lora()},
    "MoE": {"model": "qwen2-moe"},
    "MoE LoRA": {"model": "qwen3-moe", **lora()},
    "ld_alpha": {"ld_alpha": 0.5},
    "dropout": {"disable_dropout": False, **lora(lora_dropout=0.5)},
    "share_prompt": {"share_prompt": True, **lora()},
    "padding_free": {"padding_free": True},
    "tdpo": {"loss_type": "tdpo1", **lora()},
    "gradient checkpointing": {"gradient_checkpointing": True, **lora()},
}
STORED = (
    "full by name",
    "full bf16",
    "full fp16",
    "LoRA under autocast",
    "DoRA",
    "PiSSA bf16",
    "QLoRA",
    "MoE",
    "ld_alpha",
    "dropout",
    "padding_free",
)


def settings_of(case: str, folder: str) -> dict[str, Any]:
    settings = dict(RIGHT[case])
    model = settings.pop("model", None)
    if isinstance(model, torch.dtype):
        settings["model"] = tiny.model().to(model)
    elif model is not None:
        settings["model"] = folder if model == "folder" else architectures.build(model)
    return settings


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_start_with_a_live_reference_differs_by_rounding(tmp_path: Path, folder: str, case: str) -> None:
    run = runs.trainer(tmp_path, **settings_of(case, folder))
    assert_rounding(run)


@pytest.mark.parametrize("case", STORED)
def test_a_right_start_with_a_store_differs_by_rounding(tmp_path: Path, folder: str, case: str) -> None:
    settings = settings_of(case, folder)
    run = runs.trainer(tmp_path, precompute_ref_log_probs=True, ref_store=str(tmp_path / "refs"), **settings)
    assert_rounding(run)


def assert_rounding(run: Any) -> None:
    first_batch(run)
    measured = run.first_step.start_difference
    causal = run.host.causal_model(run.model)
    assert measured is not None
    assert measured <= consistency_check.tolerance(*run.host.precision(causal)) / 4


@pytest.mark.parametrize(
    "settings",
    [
        {"ref_model": tiny.model(seed=5)},
        {"loss_type": "simpo"},
        {"reference_free": True},
        {"ref_dtype": "bfloat16", "ref_drift_num_pairs": 0},
        {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)},
        lora(init_lora_weights=False),
    ],
    ids=["ref_model", "no reference", "reference_free", "ref_dtype", "prompt tuning", "random adapter"],
)
def test_a_reference_that_is_not_meant_to_be_the_start_is_not_compared(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    run = runs.trainer(tmp_path, **settings)
    first_batch(run)
    assert run.first_step.start_difference is None


def test_a_resumed_run_is_not_compared(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, **lora()}
    runs.trained(tmp_path, **settings)
    resumed = runs.trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 2
    assert resumed.first_step.start_difference is None


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        pytest.param({}, 0, id="full"),
        pytest.param(lora(), 0, id="LoRA"),
        pytest.param({"precompute_ref_log_probs": True}, 0, id="stored"),
        pytest.param({"disable_dropout": False}, 1, id="a noisy policy is run once more without noise"),
    ],
)
def test_the_check_runs_no_forward_that_the_step_does_not_run(
    tmp_path: Path, settings: dict[str, Any], more: int
) -> None:
    def forwards(verify: bool) -> int:
        store = {"ref_store": str(tmp_path / "refs")} if "precompute_ref_log_probs" in settings else {}
        run = runs.trainer(tmp_path, verify_reference=verify, **settings, **store)
        with counted(run.host.causal_model(run.model)) as calls, counted(run.ref_model) as others:
            first_batch(run)
        assert (run.first_step.start_difference is not None) == verify
        return len(calls) + len(others)

    assert forwards(True) == forwards(False) + more


class counted:
    """The forwards of a model's backbone inside the block."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, []

    def __enter__(self) -> list[int]:
        if self.model is not None:
            self.handle = self.model.base_model.register_forward_hook(lambda *_: self.calls.append(1))
        return self.calls

    def __exit__(self, *_: Any) -> None:
        if self.model is not None:
            self.handle.remove()
