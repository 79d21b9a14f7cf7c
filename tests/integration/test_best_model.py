"""The best checkpoint of a vision-language model is what is in the model after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from tests.support import runs, vision_families

pytestmark = pytest.mark.slow
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,  # so that the best step is not the last one
    "max_steps": 2,
    "max_length": None,
}


def saved_weights(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Those of a checkpoint, by the names that they have in the model."""
    adapter = folder / "adapter_model.safetensors"
    if adapter.exists():
        return {name.replace(".weight", ".default.weight"): value for name, value in load_file(str(adapter)).items()}
    return type(model).from_pretrained(folder).state_dict()


@pytest.mark.parametrize("family", ["llava", "gemma3"])
@pytest.mark.parametrize("adapter", [None, LORA], ids=["whole", "lora"])
def test_the_best_checkpoint_is_in_the_model_after_training(tmp_path, family: str, adapter: Any) -> None:
    run = runs.trained(
        tmp_path,
        model=vision_families.model(family),
        processing_class=vision_families.FAMILIES[family].processor(),
        train_dataset=vision_families.preferences(4),
        eval_dataset=vision_families.preferences(2),
        peft_config=adapter,
        **BEST,
    )
    assert run.state.best_model_checkpoint.endswith("checkpoint-1")
    found = runs.weights(run)
    best, last = (saved_weights(run.model, tmp_path / f"checkpoint-{step}") for step in (1, 2))
    assert best
    assert all(torch.equal(found[name], tensor) for name, tensor in best.items())
    assert not all(torch.equal(last[name], tensor) for name, tensor in best.items())
