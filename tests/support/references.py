"""A folder that loads, an adapter, and what a reference computes: shared by the tests of references."""

from __future__ import annotations

from typing import Any

import peft
import torch

LORA = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


IDS = torch.arange(4, 34).view(2, 15)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def kinds(model: Any) -> dict[str, str]:
    """Name of every linear layer and what it is."""
    return {n: type(m).__name__ for n, m in model.named_modules() if "Linear" in type(m).__name__}
