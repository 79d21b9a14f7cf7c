"""Saved adapters on a tiny base, as supervised fine-tuning leaves them, and trainers that start from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support import runs, tiny
from tests.support.references import logits

LORA = peft.LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM")


@dataclass(frozen=True)
class Sft:
    """A saved base and adapters of several methods on it, by name."""

    folder: Path

    @property
    def base(self) -> str:
        return str(self.folder / "base")

    def adapter(self, method: str = "lora") -> str:
        return str(self.folder / method)

    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.base)

    def peft_model(self, *names: str, method: str = "lora") -> Any:
        """A `PeftModel` with one adapter under each name, of which the first is active."""
        model = peft.PeftModel.from_pretrained(
            self.model(), self.adapter(method), adapter_name=names[0], is_trainable=True
        )
        for name in names[1:]:
            model.add_adapter(name, peft.LoraConfig(r=3, target_modules=["o_proj"], task_type="CAUSAL_LM"))
        return model

    def inside(self, method: str = "lora", **settings: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.adapter(method), **settings)

    def logits(self, method: str = "lora") -> torch.Tensor:
        return logits(peft.PeftModel.from_pretrained(self.model(), self.adapter(method)))


METHODS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "embedding": peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"),
    "dora": peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"),
    "saved module": peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM"),
    "tokens": peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 6], task_type="CAUSAL_LM"),
    "ia3": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "head": peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM"),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
}


def saved_adapters(folder: Path) -> Sft:
    """Save a base and an adapter of every method, each moved off its start."""
    made = Sft(folder)
    tiny.saved_model(made.base)
    for name, config in METHODS.items():
        model = peft.get_peft_model(made.model(), config)
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(made.adapter(name))
    return made


def first_loss(run: Any) -> float:
    """The loss of the first batch, without a step."""
    batch = run.data_collator([run.train_dataset[row] for row in range(4)])
    return run.compute_loss(run.model, run._prepare_inputs(batch)).item()


def started(folder: Path, model: Any, start: torch.Tensor, **settings: Any) -> Any:
    """A trainer whose policy starts with these logits, and whose reference is that start."""
    if settings.get("precompute_ref_log_probs"):
        settings["ref_store"] = str(folder / "store")
    run = runs.trainer(folder, model=model, **settings)
    torch.testing.assert_close(logits(run.model), start, rtol=1e-5, atol=1e-5)
    run.model.train()
    assert first_loss(run) == pytest.approx(0.693147, abs=1e-6)
    return run
