"""What sampling while a run trains leans on inside TRL and transformers: one test per fact."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.integrations import TensorBoardCallback
from trl.models import utils
from trl.models.utils import unwrap_model_for_generation

from tests.support import runs, tiny
from tests.support.seams import moved
from trl_dpo_ext._trl.generation import calling_through

GENERATION = "_trl/generation.py"


def seam(fact: str, mend: str) -> str:
    return moved("transformers and TRL", fact, mend)


def test_trl_gathers_the_weights_of_zero3_and_puts_hooks_back_only_without_an_exception() -> None:
    source = inspect.getsource(utils)
    facts = ("GatheredParameters(model.parameters())", "remove_hooks(model)", "add_hooks(model)", "_invalidate_trace()")
    for fact in facts:
        assert fact in source, seam(fact, f"{GENERATION} (_gathered)")
    names = list(inspect.signature(unwrap_model_for_generation).parameters)
    assert names[:2] == ["model", "accelerator"], seam("unwrap_model_for_generation(model, accelerator)", GENERATION)


def test_generate_calls_the_model_itself_and_fills_gaps_from_its_generation_configuration() -> None:
    model, calls = tiny.model(), []
    ids = torch.tensor([[5, 6, 7]])

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return model(*args, **kwargs)

    view = calling_through(model, forward)
    assert type(view).__name__ == type(model).__name__
    assert view.config is model.config
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = view.generate(input_ids=ids, generation_config=GenerationConfig(**settings))
    assert len(calls) == 4, seam("generate calls the model once for each token", f"{GENERATION} (calling_through)")
    model.generation_config.suppress_tokens = [int(plain[0, 3])]
    other = model.generate(input_ids=ids, generation_config=GenerationConfig(**settings))
    assert not torch.equal(other, plain), seam(
        "the model's generation configuration fills gaps of a given one", f"{GENERATION} (Speaker.generate)"
    )


def test_gradient_checkpointing_is_switched_by_a_flag_of_modules(tmp_path) -> None:
    model = tiny.model()
    model.gradient_checkpointing_enable()
    flagged = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False) is True]
    assert flagged, seam("modules have a flag `gradient_checkpointing`", f"{GENERATION} (without_checkpointing)")
    assert model.is_gradient_checkpointing
    for module in flagged:
        module.gradient_checkpointing = False
    assert not model.is_gradient_checkpointing, seam("the flags alone tell", f"{GENERATION} (without_checkpointing)")


@pytest.mark.parametrize("name", ["is_prompt_learning", "active_peft_config"])
def test_an_adapter_says_whether_it_learns_a_prompt(tmp_path, name: str) -> None:
    from peft import LoraConfig

    run = runs.trainer(tmp_path, peft_config=LoraConfig(task_type="CAUSAL_LM"))
    owner = run.model if name == "active_peft_config" else run.model.active_peft_config
    assert hasattr(owner, name), seam(name, f"{GENERATION} (generation_problem)")


def test_the_callback_of_tensorboard_keeps_its_writer() -> None:
    source = inspect.getsource(TensorBoardCallback)
    for fact in ("self.tb_writer = tb_writer", "self.tb_writer.add_text(", "self.tb_writer = None"):
        assert fact in source, seam(fact, "_trl/reporting.py (tensorboard_writer)")
