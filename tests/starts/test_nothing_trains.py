"""A run in which no weight would change is stopped."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from tests.support import runs, tiny
from tests.support.first_batch import first_batch
from trl_dpo_ext import DPOExtTrainer
from trl_dpo_ext.errors import InputError

from .listing import Kind

nothing_trains = Kind("Nothing trains")

LORA = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def adapted(**settings: Any) -> PeftModel:
    return get_peft_model(tiny.model(), LoraConfig(**{**LORA, **settings}))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("adapter"))
    adapted(init_lora_weights=False).save_pretrained(folder)
    return folder


def loaded(adapter: str) -> PeftModel:
    return PeftModel.from_pretrained(tiny.model(), adapter)


def frozen(_: str) -> Any:
    return tiny.model().requires_grad_(False)


def merged(_: str) -> PeftModel:
    model = adapted(init_lora_weights=False)
    model.merge_adapter()
    return model


def disabled(_: str) -> PeftModel:
    model = adapted()
    model.base_model.disable_adapter_layers()
    return model


def another_requires_gradients(adapter: str) -> PeftModel:
    model = adapted()
    model.load_adapter(adapter, "other")
    model.set_adapter("other", inference_mode=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default." in name)
    return model


def frozen_prompt(_: str) -> PeftModel:
    return get_peft_model(tiny.model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).requires_grad_(
        False
    )


STOPPED = "error before anything is computed: "
MODELS = [
    nothing_trains.case(
        "pass `PeftModel.from_pretrained(base, adapter)` without `is_trainable=True`",
        STOPPED + "pass `is_trainable=True`",
        loaded,
        r"is_trainable=True",
    ),
    nothing_trains.case(
        "pass a model whose parameters are all frozen",
        STOPPED + "call `requires_grad_(True)`, or pass a `peft_config`",
        frozen,
        r"requires_grad_\(True\)",
    ),
    nothing_trains.case(
        "pass a `PeftModel` whose adapter is merged (`merge_adapter`)",
        STOPPED + "call `unmerge_adapter`, or merge for good and pass a `peft_config`",
        merged,
        "is merged into the policy.*unmerge_adapter",
    ),
    nothing_trains.case(
        "pass a `PeftModel` with its adapter layers disabled",
        STOPPED + "activate the adapter with `set_adapter`",
        disabled,
        "adapters are switched off",
    ),
    nothing_trains.case(
        "pass a `PeftModel` in which only adapters that are not active require gradients",
        STOPPED + "activate the adapter with `set_adapter`",
        another_requires_gradients,
        r"set_adapter\('other'\)",
    ),
    nothing_trains.case(
        "pass a prompt-tuning `PeftModel` whose virtual tokens are frozen",
        STOPPED + "activate the adapter with `set_adapter`",
        frozen_prompt,
        "is_trainable=True",
    ),
]


@pytest.mark.parametrize("stored", [False, True], ids=["live", "stored"])
@pytest.mark.parametrize(("make", "message"), MODELS)
def test_a_policy_that_does_not_train_is_refused_before_anything_is_computed(
    tmp_path: Path, adapter: str, make: Callable[[str], Any], message: str, stored: bool
) -> None:
    store = {"precompute_ref_log_probs": True, "ref_store": str(tmp_path / "refs")} if stored else {}
    with pytest.raises(InputError, match=f"Nothing would train.*{message}"):
        runs.trainer(tmp_path / "out", model=make(adapter), **store)
    assert not (tmp_path / "refs").exists()


@nothing_trains(
    "pass the configuration of a saved adapter as `peft_config` (`inference_mode=True`)",
    "error before a model is loaded: set `inference_mode=False`",
)
def test_a_configuration_for_inference_is_refused_before_a_model_is_loaded(tmp_path: Path, adapter: str) -> None:
    config = LoraConfig.from_pretrained(adapter)
    with pytest.raises(InputError, match=r"Nothing would train.*inference_mode"):
        runs.trainer(tmp_path, model="no/such-model", peft_config=config)


@pytest.mark.parametrize(
    "settings",
    [
        nothing_trains.case(
            "`loss_weights: [0.0]`, or a 0 for every loss",
            "error in the configuration",
            {"loss_weights": [0.0]},
        ),
        pytest.param({"loss_type": ["sigmoid", "sft"], "loss_weights": [0.0, 0.0]}, id="two losses"),
        pytest.param({"loss_type": ["trl:sigmoid"], "loss_weights": [0]}, id="TRL's own"),
    ],
)
def test_losses_that_all_weigh_nothing_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="all loss_weights are 0"):
        runs.config(tmp_path, **settings)


def test_one_loss_that_weighs_nothing_is_logged_and_no_mistake(tmp_path: Path) -> None:
    runs.config(tmp_path, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.0])


@pytest.mark.parametrize(
    ("optimized", "keywords"),
    [
        nothing_trains.case(
            "pass `optimizers` made of another model", "error at construction", lambda _: tiny.model().parameters(), {}
        ),
        nothing_trains.case(
            "pass `optimizers` made of the base, and a `peft_config`",
            "error at construction: wrap the model first, or leave `optimizers` out",
            lambda model: model.parameters(),
            {"peft_config": LoraConfig(**LORA)},
        ),
    ],
)
def test_an_optimizer_of_other_parameters_is_refused(
    tmp_path: Path, optimized: Callable[[Any], Any], keywords: dict[str, Any]
) -> None:
    model = tiny.model()
    given = (torch.optim.SGD(list(optimized(model)), lr=0.1), None)
    with pytest.raises(InputError, match="the given optimizer has none of the policy's parameters"):
        DPOExtTrainer(
            model,
            args=runs.config(tmp_path),
            processing_class=tiny.tokenizer(),
            train_dataset=tiny.preferences(),
            optimizers=given,
            **keywords,
        )


def test_an_optimizer_of_some_of_the_policys_parameters_is_no_mistake(tmp_path: Path) -> None:
    model = tiny.model()
    DPOExtTrainer(
        model,
        args=runs.config(tmp_path),
        processing_class=tiny.tokenizer(),
        train_dataset=tiny.preferences(),
        optimizers=(torch.optim.SGD(model.lm_head.parameters(), lr=0.1), None),
    )


@nothing_trains(
    "freeze the policy between creating the trainer and `train()`",
    "error before the first step",
)
def test_a_policy_that_is_frozen_before_training_is_refused_at_the_first_batch(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path)
    run.model.requires_grad_(False)
    with pytest.raises(InputError, match="no parameter of the policy requires a gradient"):
        run.train()


def test_an_optimizer_that_was_made_of_nothing_is_refused_at_the_first_batch(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path)
    run.model.requires_grad_(False)
    run.create_optimizer()
    run.model.requires_grad_(True)
    with pytest.raises(InputError, match="the optimizer has no parameters"):
        first_batch(run)


def frozen_half() -> PeftModel:
    model = adapted(modules_to_save=["lm_head"])
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        nothing_trains.case(
            "freeze a part of an adapter (`lora_A`)",
            "it stays frozen: running the reference switches no gradient on or off",
            frozen_half,
            {},
        ),
        pytest.param(frozen_half, {"precompute_ref_log_probs": True}, id="stored"),
        pytest.param(tiny.model, {"peft_config": LoraConfig(**LORA)}, id="adapter off"),
        pytest.param(
            tiny.model,
            {"peft_config": LoraConfig(**LORA, trainable_token_indices=[1, 2], modules_to_save=["lm_head"])},
            id="modules",
        ),
    ],
)
def test_running_the_reference_switches_no_gradient(
    tmp_path: Path, make: Callable[[], Any], settings: dict[str, Any]
) -> None:
    store = {"ref_store": str(tmp_path / "refs")} if settings.get("precompute_ref_log_probs") else {}
    model = make()
    given = {name: p.requires_grad for name, p in model.named_parameters()}
    run = runs.trainer(tmp_path, model=model, **settings, **store)
    before = {name: p.requires_grad for name, p in run.model.named_parameters()}
    assert any(before.values())
    if isinstance(model, PeftModel):
        assert {name: before[name] for name in given} == given
    first_batch(run)
    assert {name: p.requires_grad for name, p in run.model.named_parameters()} == before


@nothing_trains("call `train()` under `torch.no_grad()`", "error before the first step")
def test_no_grad(tmp_path: Path) -> None:
    run = runs.trainer(tmp_path)
    with torch.no_grad(), pytest.raises(InputError, match=r"gradients are off.*torch\.no_grad"):
        run.train()


@nothing_trains("`learning_rate=0`", "warning at the first step")
def test_a_learning_rate_of_zero_is_told(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"Nothing trains: the learning rate is 0"):
        runs.trained(tmp_path / "zero", max_steps=1, learning_rate=0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Nothing trains")
        runs.trained(tmp_path / "warmup", max_steps=2, warmup_steps=2)  # whose first step has the rate 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        nothing_trains.case(
            "`num_train_epochs=0`",
            "warning before a model is loaded",
            {"max_steps": -1, "num_train_epochs": 0},
            "num_train_epochs is 0",
        ),
        nothing_trains.case("`max_steps=0`", "the same", {"max_steps": 0}, "max_steps is 0"),
        nothing_trains.case(
            "fewer rows than a batch, and `dataloader_drop_last`",
            "the same",
            {"dataloader_drop_last": True, "per_device_train_batch_size": 9},
            "8 rows do not fill one of 9",
        ),
        nothing_trains.case(
            "one step, which is all warmup", "the same", {"max_steps": 1, "warmup_steps": 1}, "learning rate 0"
        ),
    ],
)
def test_no_step_is_taken(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=f"Nothing will train: .*{message}"):
        run = runs.trainer(tmp_path, **settings)
    before = runs.weights(run)
    run.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in runs.weights(run).items())


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": -1, "num_train_epochs": 0.5},
        {"max_steps": 1, "num_train_epochs": 0},
        {"max_steps": 2, "warmup_steps": 1},
        {"max_steps": 1, "warmup_steps": 1, "lr_scheduler_type": "constant"},
        {"dataloader_drop_last": True, "per_device_train_batch_size": 8},
    ],
)
def test_few_steps_are_not_told(tmp_path: Path, settings: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Nothing will train")
        run = runs.trainer(tmp_path, **settings)
    before = runs.weights(run)
    run.train()
    assert not all(torch.equal(before[name], tensor) for name, tensor in runs.weights(run).items())


def trains_what_does_not_run() -> Any:
    model = tiny.model().requires_grad_(False)
    model.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    return model


def trains_a_dropped_layer() -> Any:
    model = tiny.model().requires_grad_(False)
    model.dropped = model.model.layers.pop(0).requires_grad_(True)
    return model


@pytest.mark.parametrize(
    "make",
    [
        nothing_trains.case(
            "train a parameter that the forward pass does not use",
            "error after the first pass",
            trains_what_does_not_run,
        ),
        nothing_trains.case(
            "train a layer that has been taken out of the model", "error after the first pass", trains_a_dropped_layer
        ),
    ],
)
def test_weights_that_are_not_run(tmp_path: Path, make: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=r"Nothing would train: none of the .* is a part of the forward pass"):
        runs.trained(tmp_path, model=make(), max_steps=1)


@pytest.mark.parametrize(
    "settings",
    [
        nothing_trains.case(
            "a `weight_column` of zeros",
            "warning at the first step",
            {"train_dataset": tiny.preferences(4, w=[0.0] * 4), "weight_column": "w"},
        ),
        nothing_trains.case(
            "aLoRA, and data without its `alora_invocation_tokens`",
            "warning at the first step",
            {"peft_config": LoraConfig(**LORA, alora_invocation_tokens=[3])},
        ),
    ],
)
def test_a_gradient_of_zero(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="The first step changes no weight"):
        runs.trained(tmp_path, max_steps=1, **settings)
