"""Run in every process by the tests of quantized references: trains, and says what the reference was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import AutoModelForCausalLM

from tests.distributed import launched
from trl_dpo_ext import load_reference

IDS = torch.arange(4, 34).view(2, 15)


def train(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train with the settings of the test, of which `instance` and `qlora` (its storage) say how the policy is given."""
    if storage := settings.pop("qlora", None):
        from transformers import BitsAndBytesConfig

        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype="float32",
            bnb_4bit_quant_storage=storage,
        )
    if settings.pop("instance", False):
        settings["model"] = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    run = launched.trainer(folder, settings)
    reference = run.ref_model
    run.train()
    monitor = run.reference.drift_monitor
    return {
        "drift": vars(monitor.measured) if monitor and monitor.measured else None,
        **about(reference, folder, settings),
    }


def about(reference: Any, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Whether the reference is whole, where its parts are split, and that training has left it as it was."""
    if reference is None:
        return {"reference": None}
    kinds = (FSDPModule, FullyShardedDataParallel)
    units = [name for name, module in reference.named_modules() if isinstance(module, kinds)]
    found = {"reference": type(reference).__name__, "units": units, "training": reference.training}
    if settings.get("ref_quantization"):
        loaded = load_reference(str(folder / "model"), quantization=settings["ref_quantization"])
        found["grad"] = any(parameter.requires_grad for parameter in reference.parameters())
        with torch.no_grad():
            found["unchanged"] = torch.equal(reference(input_ids=IDS).logits, loaded(input_ids=IDS).logits)
    return found
