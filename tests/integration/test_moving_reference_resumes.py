"""A reference that follows the policy: moved in weights, exactly, with every kind of adapter; kept out of what is saved."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import DPOTrainer

from tests.support import runs, tiny
from tests.support.references import LORA, logits
from trl_dpo_ext.preflight import RunSpec

ALPHA, EVERY, LOG2 = 0.6, 2, 0.693147
SYNC: dict[str, Any] = {"sync_ref_model": True, "ref_model_sync_steps": EVERY, "max_steps": 6}
HARD: dict[str, Any] = {**SYNC, "ref_model_mixup_alpha": 1.0, "max_steps": 3}


def lora(**more: Any) -> Any:
    return peft.LoraConfig(**{"r": 3, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **more})


def losses(run: Any) -> list[float]:
    return [line["loss"] for line in runs.logs(run) if "loss" in line]


def merged(policy: Any) -> dict[str, torch.Tensor]:
    """The weights of the policy as a plain model, with those of its active adapter."""
    model = copy.deepcopy(policy)
    for other in set(model.peft_config) - {model.active_adapter}:
        model.delete_adapter(other)
    return model.merge_and_unload().state_dict()


class Dense(TrainerCallback):
    """Moves a plain model as TR-DPO is defined, in weights."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.weights = policy, merged(policy)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % EVERY == 0:
            now = merged(self.policy)
            self.weights = {n: ALPHA * now[n] + (1 - ALPHA) * old for n, old in self.weights.items()}

    def model(self) -> Any:
        plain = tiny.model()
        plain.load_state_dict(self.weights)
        return plain


def trained_sft() -> Any:
    """An adapter that has been trained before."""
    torch.manual_seed(3)
    policy = peft.get_peft_model(tiny.model(), lora(init_lora_weights=False))
    return policy


POLICIES = {
    "lora": lambda: {"peft_config": lora()},
    "rslora, every layer": lambda: {"peft_config": lora(use_rslora=True, lora_alpha=3, target_modules="all-linear")},
    "ranks and scales of layers": lambda: {
        "peft_config": lora(rank_pattern={"v_proj": 5}, alpha_pattern={"q_proj": 2})
    },
    "embeddings": lambda: {"peft_config": lora(target_modules=["embed_tokens", "down_proj"])},
    "modules_to_save": lambda: {"peft_config": lora(modules_to_save=["norm"])},
    "trainable tokens": lambda: {"peft_config": lora(trainable_token_indices=[5, 6, 7])},
    "an adapter trained before": lambda: {"model": trained_sft()},
    "pissa": lambda: {"peft_config": lora(init_lora_weights="pissa")},
    "an initialized PeftModel": lambda: {"model": peft.get_peft_model(tiny.model(), lora())},
}


@pytest.mark.parametrize("kind", POLICIES)
def test_an_adapters_reference_is_moved_as_a_full_models_is(tmp_path, kind: str) -> None:
    run = runs.trainer(tmp_path, **SYNC, **POLICIES[kind]())
    dense = Dense(run.model)
    run.add_callback(dense)
    run.train()
    assert (
        run.describe_reference() == "a second, frozen copy of the adapter, moved by 0.6 toward the policy every 2 steps"
    )
    assert losses(run)[0] == pytest.approx(LOG2, abs=1e-5)
    trained = logits(run.model)
    run.model.set_adapter("ref")
    reference, expected = logits(run.model), logits(dense.model())
    assert (trained - expected).abs().max() > 1e-3  # the policy itself would not do
    torch.testing.assert_close(reference, expected, rtol=1e-4, atol=2e-4)


HARD_POLICIES = {
    **{name: POLICIES[name] for name in ("lora", "modules_to_save", "an adapter trained before")},
    "dora": lambda: {"peft_config": lora(use_dora=True)},
    "ia3": lambda: {
        "peft_config": peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    },
    "loha": lambda: {"peft_config": peft.LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")},
}
FORWARDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "share_prompt": {"share_prompt": True},
    "token_kl": {"loss_type": "tdpo1"},
    "ref_entropy": {"loss_type": "sigmoid", "ld_alpha": 0.5},
    "checkpointing": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
}


@pytest.mark.parametrize(
    ("kind", "forward"), [*((kind, "plain") for kind in HARD_POLICIES), *(("lora", name) for name in FORWARDS if name != "plain")]
)  # fmt: skip
def test_after_a_hard_move_every_log_ratio_is_zero(tmp_path, kind: str, forward: str) -> None:
    first, moved, copied = losses(runs.trained(tmp_path, **HARD, **HARD_POLICIES[kind](), **FORWARDS[forward]))
    assert first == pytest.approx(LOG2, abs=1e-5)
    assert moved != pytest.approx(LOG2, abs=1e-5)
    assert copied == pytest.approx(LOG2, abs=1e-5)


def test_a_reference_that_never_moves_is_the_base(tmp_path) -> None:
    fixed = runs.trained(tmp_path, peft_config=lora(lora_dropout=0.3), disable_dropout=False)
    with pytest.warns(UserWarning, match="The reference does not move"):
        still = runs.trained(tmp_path, peft_config=lora(lora_dropout=0.3), disable_dropout=False, sync_ref_model=True)
    assert losses(still) == losses(fixed)
    assert all(torch.equal(runs.weights(still)[name], value) for name, value in runs.weights(fixed).items())


def test_a_full_model_moves_as_trls_does(tmp_path, folder: str) -> None:
    ours = runs.trained(tmp_path / "ours", model=folder, **SYNC)
    host = runs.trained(tmp_path / "host", DPOTrainer, model=folder, **SYNC)
    assert runs.logs(ours) == runs.logs(host)
    for mine, its in ((ours.model, host.model), (ours.ref_model, host.ref_model)):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), its.parameters(), strict=True))
    assert ours.describe_reference().endswith("moved by 0.6 toward the policy every 2 steps")


def test_only_a_checkpoint_whose_reference_has_moved_holds_it_and_old_ones_go(tmp_path, folder: str) -> None:
    settings = {**SYNC, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    kinds: list[dict[str, Any]] = [{}, {"peft_config": LORA}]
    for more in kinds:
        output = tmp_path / str(len(more))
        runs.trained(output, model=folder, **settings, **more)
        holders = sorted(file.parent.name for file in output.glob("*/synced_reference.safetensors"))
        assert holders == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    runs.trained(tmp_path / "few", model=folder, **settings, save_total_limit=1)
    assert [file.parent.name for file in (tmp_path / "few").rglob("synced_reference.safetensors")] == ["checkpoint-4"]


def test_what_is_saved_is_the_policy_alone(tmp_path, folder: str) -> None:
    more = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}
    more |= {"load_best_model_at_end": True, "eval_dataset": tiny.preferences(4)}
    run = runs.trained(tmp_path, model=folder, peft_config=LORA, **SYNC, **more)
    run.save_model(str(tmp_path / "final"))
    assert not list(tmp_path.rglob("ref"))
    for file in tmp_path.rglob("adapter_model.safetensors"):
        assert not [name for name in load_file(file) if ".ref" in name]
    assert {*run.model.peft_config} == {"default", "ref"}
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "final"))
    torch.testing.assert_close(logits(loaded), logits(run.model), rtol=0, atol=0)
    base = AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.equal(logits(loaded), logits(base))


def test_the_losses_of_a_run_whose_reference_moves_can_be_replaced(tmp_path) -> None:
    run = runs.trained(tmp_path, peft_config=LORA, **{**SYNC, "max_steps": 2})
    run.set_losses(loss_type="ipo")
    first = run.compute_loss(run.model, run.data_collator([run.train_dataset[row] for row in range(2)]))
    reference = run.reference
    assert reference.moves
    reference.move()
    assert first.isfinite()
    assert run.model.active_adapter == "default"


def test_a_reference_that_moves_is_chosen_before_a_model_is_loaded(tmp_path) -> None:
    args, data = runs.config(tmp_path, **SYNC), tiny.preferences()
    model = tiny.saved_model(str(tmp_path / "model"))
    for peft_config, moves in ((None, True), (LORA, True)):
        spec = RunSpec.build(args, model, None, data, None, peft_config=peft_config)
        assert spec.reference.moves is moves
    assert not RunSpec.build(runs.config(tmp_path), model, None, data, None).reference.moves
