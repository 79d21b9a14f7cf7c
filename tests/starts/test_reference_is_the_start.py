"""The reference is the model that the policy starts from, or the run is stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    BOFTConfig,
    HRAConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM

from tests.support import architectures, runs, tiny
from tests.support.first_batch import first_batch
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.forward.outputs import PairBatch

from .listing import Kind

another_reference = Kind("The reference is not the policy's start")

LORA = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
QV = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
LOG2 = pytest.approx(math.log(2), abs=1e-5)
STORE = {"precompute_ref_log_probs": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.saved_model(str(tmp_path_factory.mktemp("model")))


def base(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


def shifted(model: Any, scale: float = 0.3) -> Any:
    """The model with other weights in memory than in its folder."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(scale * torch.randn_like(parameter))
    return model


def reference_logps(run: Any, model: Any, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """What the run's reference gives for its first rows, and what a model gives by itself, each (2 x pairs,)."""
    batch = run.host.batch_of([run.train_dataset[index] for index in range(rows)])
    run.model.train()
    found = torch.cat(run.reference.logps(run.model, PairBatch.take(batch, ())).sums)
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return found, (logps * batch["completion_mask"][:, 1:]).sum(dim=1)


# 1. Full fine-tuning of a model whose weights in memory are not those of the file under its name.


def merged_adapter(folder: str) -> Any:
    model = get_peft_model(base(folder), LoraConfig(**LORA, init_lora_weights=False)).merge_and_unload()
    return model.requires_grad_(True)


def resized(folder: str) -> Any:
    model = base(folder)
    model.resize_token_embeddings(len(tiny.tokenizer()) + 7)
    return model


def loaded_state(folder: str) -> Any:
    model = base(folder)
    model.load_state_dict(tiny.model(seed=8).state_dict())
    return model


def adapter_inside(folder: str) -> Any:
    model = base(folder)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return model


AS_HANDED_IN = "the reference is a copy of the model as it was passed"


@pytest.mark.parametrize(
    "change",
    [
        another_reference.case(
            "change a model's weights in memory (`p.data.add_(...)`), then fine-tune it fully",
            AS_HANDED_IN,
            lambda folder: shifted(base(folder)),
        ),
        another_reference.case(
            "merge an adapter into a model in memory, then fine-tune it fully", AS_HANDED_IN, merged_adapter
        ),
        another_reference.case("resize a model's embeddings before training", AS_HANDED_IN, resized),
        another_reference.case("`load_state_dict` before training", AS_HANDED_IN, loaded_state),
        another_reference.case("add an adapter inside a model (`model.add_adapter`)", AS_HANDED_IN, adapter_inside),
        another_reference.case(
            "pass a model that was never loaded from a folder, without `ref_model`",
            AS_HANDED_IN,
            lambda _: tiny.model(),
        ),
    ],
)
def test_the_model_as_handed_in_is_the_reference(tmp_path: Path, folder: str, change: Callable[[str], Any]) -> None:
    model = change(folder)
    run = runs.trainer(tmp_path, model=model)
    assert first_batch(run).item() == LOG2
    found, alone = reference_logps(run, model)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-3)
    shifted(run.model)  # as training does
    torch.testing.assert_close(reference_logps(run, model)[0], found, rtol=0, atol=0)


@another_reference(
    "change the policy's weights between creating the trainer and `train()`",
    "error before the first step that names a changed weight: pass `ref_model=load_reference(model)`",
)
def test_weights_that_change_after_construction_stop_the_run(tmp_path: Path, folder: str) -> None:
    run = runs.trainer(tmp_path, model=folder)
    shifted(run.model)
    with pytest.raises(InputError, match=r"weights in memory are not those.*embed_tokens.*load_reference\(model\)"):
        run.train()
    assert run.state.global_step == 0


@another_reference(
    "load adapter weights into the policy after creating the trainer",
    "error before the first step: pass the model with its adapter",
)
def test_adapter_weights_that_are_loaded_after_construction_stop_the_run(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, peft_config=LoraConfig(**LORA))
    shifted(run.model)
    with pytest.raises(InputError, match=r"Pass the model with its adapter \(a PeftModel\)"):
        first_batch(run)


def test_the_weights_of_a_trained_adapter_that_change_after_construction_are_named(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, model=get_peft_model(tiny.model(), LoraConfig(**LORA, init_lora_weights=False)))
    shifted(run.model)
    with pytest.raises(InputError, match=r"not what its frozen copy was made of.*lora_A\.default"):
        first_batch(run)


@another_reference("merge the adapter after creating the trainer", "error before the first step that names the layer")
def test_an_adapter_that_is_merged_after_construction_stops_the_run(tmp_path: Path) -> None:
    config = LoraConfig(**LORA, init_lora_weights=False)
    run = runs.trainer(tmp_path, model=get_peft_model(tiny.model(), config), ref_store=str(tmp_path / "refs"), **STORE)
    shifted(run.model)
    run.model.merge_adapter()
    with pytest.raises(InputError, match=r"merged into the policy \(.*q_proj\).*unmerge_adapter"):
        first_batch(run)


@another_reference(
    "put the reference model into training mode after creating the trainer, with dropout",
    "error before the first step: call `ref_model.eval()`",
)
def test_a_reference_that_is_put_into_training_mode_stops_the_run(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, model=tiny.model(attention_dropout=0.5))
    run.ref_model.train()
    with pytest.raises(InputError, match=r"runs in training mode.*ref_model\.eval"):
        first_batch(run)


@another_reference("put reference log-probs of another model into the dataset's columns", "error before the first step")
def test_columns_of_another_model_stop_the_run(tmp_path: Path) -> None:
    columns = {name: [-20.0] * 8 for name in ("ref_chosen_logps", "ref_rejected_logps")}
    run = runs.trainer(tmp_path, train_dataset=tiny.preferences(8, **columns), **STORE)
    with pytest.raises(InputError, match=r"own columns.*Another model, chat template or code"):
        first_batch(run)


def test_the_check_can_be_switched_off_for_a_live_reference(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path, peft_config=LoraConfig(**LORA), verify_reference=False)
    shifted(run.model)
    assert math.isfinite(first_batch(run).item())
    assert run.first_step.start_difference is None


# 2. An adapter that is trained further: its frozen copy has all of it.

COMPLETE = "the frozen copy that serves as reference has every parameter of the adapter"
ADAPTERS = [
    another_reference.case(
        "train a LoRA adapter further that also adapts `embed_tokens`",
        COMPLETE,
        LoraConfig(**{**LORA, "target_modules": ["q_proj", "embed_tokens"]}),
    ),
    another_reference.case(
        "train an adapter further that has `trainable_token_indices`",
        COMPLETE,
        LoraConfig(**LORA, trainable_token_indices=[5, 6, 7, 8]),
    ),
    another_reference.case(
        "train an adapter further that has `modules_to_save`", COMPLETE, LoraConfig(**LORA, modules_to_save=["lm_head"])
    ),
    another_reference.case("train a DoRA adapter further", COMPLETE, LoraConfig(**LORA, use_dora=True)),
    another_reference.case("train an IA3 adapter further", COMPLETE, IA3Config(**QV, feedforward_modules=[])),
    another_reference.case("train a LoHa adapter further", COMPLETE, LoHaConfig(**QV, r=2)),
    another_reference.case("train a VeRA adapter further", COMPLETE, VeraConfig(**QV, r=2)),
    another_reference.case(
        "train virtual tokens further", COMPLETE, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    ),
    pytest.param(OFTConfig(**QV, r=2, oft_block_size=0), id="OFT"),
    pytest.param(BOFTConfig(**QV), id="BOFT"),
    pytest.param(HRAConfig(**QV, r=2), id="HRA"),
]


@pytest.mark.parametrize("config", ADAPTERS)
def test_the_frozen_copy_of_an_adapter_is_complete(tmp_path: Path, config: Any) -> None:
    model = shifted(get_peft_model(tiny.model(), config))
    run = runs.trainer(tmp_path, model=model)
    assert first_batch(run).item() == LOG2
    assert run.first_step.start_difference == 0
    trained = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not any("ref" in name.split(".") for name in trained)
    before = reference_logps(run, tiny.model())[0]
    shifted(run.model)
    torch.testing.assert_close(reference_logps(run, tiny.model())[0], before, rtol=0, atol=0)


@pytest.mark.parametrize("config", [case.values[0] for case in ADAPTERS[:2]], ids=["embed_tokens", "tokens"])
def test_the_frozen_copy_is_what_a_store_holds(tmp_path: Path, config: Any) -> None:
    model = shifted(get_peft_model(tiny.model(), config))
    run = runs.trainer(tmp_path, model=model, ref_store=str(tmp_path / "refs"), **STORE)
    assert first_batch(run).item() == LOG2


def with_name(name: str, beside: str | None = None) -> PeftModel:
    config = LoraConfig(**LORA, init_lora_weights=False)
    model = get_peft_model(tiny.model(), config, adapter_name=beside or name)
    if beside:
        model.add_adapter(name, LoraConfig(**{**LORA, "target_modules": ["v_proj"]}, init_lora_weights=False))
        model.set_adapter(name)
    return model


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        another_reference.case(
            "train an adapter further that is not named `default`", "its frozen copy is the reference", "sft", None
        ),
        another_reference.case(
            "train one of two adapters further, and the other is named `default`",
            "the frozen copy is made of the active one",
            "sft",
            "default",
        ),
        pytest.param("model", None, id="a name that is a module's too"),
    ],
)
def test_an_adapter_of_any_name_is_copied(tmp_path: Path, name: str, beside: str | None) -> None:
    model = with_name(name, beside)
    run = runs.trainer(tmp_path, model=model)
    assert first_batch(run).item() == LOG2
    assert run.model.active_adapter == name
    assert set(run.model.peft_config) == {name, "ref", *filter(None, [beside])}


@another_reference(
    "create a second trainer on a `PeftModel`", "the frozen copy is made anew, of the adapter as it is now"
)
def test_a_second_trainer_on_one_model_copies_the_adapter_as_it_is_now(tmp_path: Path) -> None:
    model = with_name("default")
    runs.trainer(tmp_path, model=model)
    shifted(model)
    assert first_batch(runs.trainer(tmp_path, model=model)).item() == LOG2


@another_reference(
    "pass a `PeftModel` that has an adapter named `ref`", "error: the frozen copy has this name; load it under another"
)
def test_an_adapter_named_like_the_copy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="adapter named 'ref'"):
        runs.trainer(tmp_path, model=with_name("default", beside="ref"))


def test_two_active_adapters_are_refused(tmp_path: Path) -> None:
    model = with_name("default", beside="other")
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(InputError, match="2 adapters of the model are active"):
        runs.trainer(tmp_path, model=model)


# 3. An adapter whose initialization moves the base.


@pytest.mark.parametrize("settings", [{}, STORE], ids=["live", "stored"])
@pytest.mark.parametrize(
    "init",
    [
        another_reference.case(
            "initialize LoRA with PiSSA (`init_lora_weights='pissa'`)",
            "a frozen copy of the new adapter on the residual base is the reference, which is the model as passed",
            "pissa",
        ),
        another_reference.case("initialize LoRA with OLoRA", "the same", "olora"),
        pytest.param("pissa_niter_4", id="fast PiSSA"),
    ],
)
def test_a_base_that_an_initialization_moves_is_completed_by_a_frozen_copy(
    tmp_path: Path, init: str, settings: dict[str, Any]
) -> None:
    store = {"ref_store": str(tmp_path / "refs")} if settings else {}
    run = runs.trainer(tmp_path, peft_config=LoraConfig(**LORA, init_lora_weights=init), **settings, **store)
    assert first_batch(run).item() == LOG2
    if not settings:
        found, handed_in = reference_logps(run, tiny.model())
        torch.testing.assert_close(found, handed_in, rtol=1e-4, atol=1e-3)


def test_copying_an_adapter_does_not_decompose_the_base_again(tmp_path: Path) -> None:
    model = get_peft_model(tiny.model(), LoraConfig(**LORA, init_lora_weights="pissa"))
    run = runs.trainer(tmp_path, model=model)
    found, handed_in = reference_logps(run, tiny.model())
    torch.testing.assert_close(found, handed_in, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal"])
def test_an_initialization_that_leaves_the_base_alone_needs_no_copy(tmp_path: Path, init: Any) -> None:
    run = runs.trainer(tmp_path, peft_config=LoraConfig(**LORA, init_lora_weights=init))
    assert "ref" not in run.model.peft_config


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
