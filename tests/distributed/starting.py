"""What the launched tests of the first step run in every process: functions of a job's folder and its settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.distributed import launched
from trl_dpo_ext.errors import InputError


def policy(folder: Path, adapted: bool) -> Any:
    """A model whose weights in memory are not those of its folder: shifted, or with an adapter that is trained further."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    if adapted:
        lora = LoraConfig(
            task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj", "embed_tokens"], init_lora_weights=False
        )
        return get_peft_model(model, lora)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def start(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and return what the first step's check has measured."""
    model = policy(folder, settings.pop("adapted"))
    run = launched.trainer(folder, {**settings, "model": model})
    run.train()
    return {"difference": run.first_step.start_difference}


def start_wrong_on_one(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Let one process measure a difference, and return how the others end."""
    run = launched.trainer(folder, settings)
    take = run.reference.uncalibrated_logps

    def shifted(model: Any, batch: Any) -> Any:
        found = take(model, batch)
        if os.environ["RANK"] == "1":
            found.output.log_probs = found.output.log_probs - batch.mask.float()
        return found

    run.reference.uncalibrated_logps = shifted
    try:
        run.train()
    except InputError as error:
        return {"stopped": str(error), "steps": run.state.global_step}
    return {"stopped": None, "steps": run.state.global_step}


def plan(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and record which engine was expected before an accelerator existed, and where references were put."""
    from accelerate.state import AcceleratorState

    from trl_dpo_ext._trl import planned_engine
    from trl_dpo_ext.reference.model import resolve

    found: dict[str, Any] = {}
    device = resolve.reference_device
    if "fsdp" in settings:
        os.environ.pop("ACCELERATE_USE_FSDP")

    def watched(args: Any) -> Any:
        planned = planned_engine(args)
        found.update(early=not AcceleratorState._shared_state, seen=args.distributed_state.distributed_type.value)
        found.update(planned=[planned.fsdp_version, planned.zero_stage], device=repr(device(args)))
        return device(args)

    resolve.reference_device = watched
    launched.trainer(folder, {**settings, "ref_model_name_or_path": str(folder / "model")}).train()
    return found
