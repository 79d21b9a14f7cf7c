"""The reference neither moves with the policy nor has its noise, and the policy never stands in for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)

from tests.support import architectures, runs, tiny
from tests.support.first_batch import first_batch
from trl_dpo_ext.errors import InputError

from .start_kinds import LOG2, LORA, STORE, another_reference, reference_logps

# 4. What moves the reference while training.


def biased(**settings: Any) -> dict[str, Any]:
    return {"model": architectures.build("qwen2"), "peft_config": LoraConfig(**LORA, bias="lora_only"), **settings}


@another_reference(
    "LoRA with `bias='lora_only'` or `'all'` on a model with biases, live reference",
    "error at construction, because biases of the base would be trained: set `precompute_ref_log_probs`",
)
def test_biases_that_are_trained_in_place_refuse_a_live_reference_and_train_with_a_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"outside the adapter too \(first: .*q_proj.bias\).*precompute_ref_log_probs"):
        runs.trainer(tmp_path, **biased())
    run = runs.trainer(tmp_path, **biased(ref_store=str(tmp_path / "refs"), **STORE))
    assert first_batch(run).item() == LOG2


def test_a_model_without_biases_may_have_them_trained(tmp_path: Path) -> None:
    assert first_batch(runs.trainer(tmp_path, peft_config=LoraConfig(**LORA, bias="all"))).item() == LOG2


@another_reference(
    "`requires_grad_` on the base after creating the trainer, live reference", "error before the first step"
)
def test_a_base_that_is_unfrozen_after_construction_is_refused(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, peft_config=LoraConfig(**LORA))
    run.model.get_base_model().model.norm.requires_grad_(True)
    with pytest.raises(InputError, match=r"first: model\.norm\.weight"):
        first_batch(run)


@another_reference(
    "pass a `ref_model` that shares trained weights with the policy", "error at construction: pass a copy"
)
def test_a_reference_that_shares_trained_weights_is_refused(tmp_path: Path) -> None:
    model, other = tiny.model(), tiny.model(seed=4)
    other.model.embed_tokens = model.model.embed_tokens
    with pytest.raises(InputError, match=r"would change with the policy.*embed_tokens.*load_reference"):
        runs.trainer(tmp_path, model=model, ref_model=other)


# 5. Noise and dropout in the reference.


@another_reference("`neftune_noise_alpha` with LoRA", "the noise is in the policy alone; the reference is quiet")
def test_the_reference_is_quiet_where_the_policys_embeddings_are_noisy(tmp_path: Path) -> None:
    settings = {"peft_config": LoraConfig(**LORA), "neftune_noise_alpha": 50, "max_steps": 1}
    live = runs.trainer(tmp_path, **settings)
    stored = runs.trainer(tmp_path, ref_store=str(tmp_path / "refs"), **STORE, **settings)
    seen = [recorded(run) for run in (live, stored)]
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-3)
    for run in (live, stored):
        assert run.first_step.start_difference == pytest.approx(0, abs=1e-5)
        assert runs.logs(run)[0]["loss"] != LOG2  # the policy's noise


def recorded(run: Any) -> torch.Tensor:
    """Train, and return the first batch's reference log-probs, (2 x pairs,)."""
    seen = []
    logps = run.reference.logps
    run.reference.logps = lambda model, batch: seen.append(logps(model, batch)) or seen[-1]
    run.train()
    return torch.cat(seen[0].sums)


@pytest.mark.parametrize(
    "settings",
    [
        another_reference.case(
            "train an adapter further with `lora_dropout` and `disable_dropout=False`",
            "the reference runs without dropout",
            {"disable_dropout": False},
        ),
        pytest.param({"attention_dropout": 0.5}, id="attention_dropout"),
    ],
)
def test_the_reference_runs_without_dropout(tmp_path: Path, settings: dict[str, Any]) -> None:
    overrides = {name: settings.pop(name) for name in ("attention_dropout",) if name in settings}
    model = tiny.model(**overrides)
    lora = LoraConfig(**LORA, init_lora_weights=False, lora_dropout=0.5)
    torch.manual_seed(1)
    run = runs.trainer(tmp_path, model=get_peft_model(model, lora), **settings)
    once, again = (reference_logps(run, tiny.model())[0] for _ in range(2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)
    noisy = first_batch(run).item()
    assert noisy != LOG2
    assert run.first_step.start_difference == pytest.approx(0, abs=1e-5)


@another_reference("pass a `ref_model` in training mode, with dropout", "the reference runs in evaluation mode")
def test_a_reference_model_in_training_mode_runs_without_dropout(tmp_path: Path) -> None:
    reference = tiny.model(seed=5, attention_dropout=0.5).train()
    run = runs.trainer(tmp_path, ref_model=reference)
    once, again = (reference_logps(run, tiny.model())[0] for _ in range(2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)


# 6. Virtual tokens, and references that are gone.


@pytest.mark.parametrize("settings", [{}, STORE], ids=["live", "stored"])
@pytest.mark.parametrize(
    "config",
    [
        another_reference.case(
            "prompt tuning, live or with a store",
            "trains: the base is the reference, and virtual tokens do not start as the base",
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        ),
        another_reference.case(
            "prefix tuning, live or with a store",
            "the same",
            PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        ),
    ],
)
def test_virtual_tokens_train_against_the_base(tmp_path: Path, config: Any, settings: dict[str, Any]) -> None:
    store = {"ref_store": str(tmp_path / "refs")} if settings else {}
    run = runs.trainer(tmp_path, peft_config=config, max_steps=1, gradient_checkpointing=False, **settings, **store)
    found, alone = reference_logps(run, tiny.model()) if not settings else (torch.zeros(1),) * 2
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-3)
    run.train()
    assert run.state.global_step == 1


@another_reference(
    "`ref_model` with `precompute_ref_log_probs`, then `evaluate(new_data)`",
    "error: the reference model is released and the policy does not take its place",
)
def test_new_data_is_not_computed_by_the_policy(tmp_path: Path) -> None:
    data = tiny.preferences()
    run = runs.trainer(
        tmp_path, ref_model=tiny.model(5), train_dataset=data.select([0, 1]), ref_store=str(tmp_path / "refs"), **STORE
    )
    with pytest.raises(InputError, match="released"):
        run.evaluate(data.select([6]))
