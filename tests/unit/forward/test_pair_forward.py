"""Training with packed rows: the same losses, logs and weights as with the plain forward, from fewer tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, TaskType

from tests.support import architectures, kernels, runs, tiny
from trl_dpo_ext import DPOExtTrainer
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.forward import masks
from trl_dpo_ext.forward.trees import Trees

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "mix": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "trl": {"loss_type": ["trl:sigmoid"]},
    "ld": {"ld_alpha": 0.5},
    "weighted": {"use_weighting": True},
    "tokens": {"loss_type": "d2po"},
    "entropy": {"loss_type": "mallows_dpo", "learning_rate": 10.0},
    "distributions": {"loss_type": "tdpo1"},
    "no-reference": {"loss_type": "simpo"},
    "truncated-at-the-start": {"max_length": 8, "truncation_mode": "keep_end"},
    "truncated-at-the-end": {"max_length": 8},
    "checkpointed": {"gradient_checkpointing": True},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "precomputed": {"precompute_ref_log_probs": True},
    "evaluated": {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": tiny.preferences()},
    "lora": {"peft_config": LORA},
    "lora-distributions": {"peft_config": LORA, "loss_type": "tdpo1"},
}


def trained(folder: Any, settings: dict[str, Any], **flags: Any) -> tuple[list[dict], dict[str, torch.Tensor]]:
    settings = {"gradient_checkpointing": False, "learning_rate": 0.1, **settings}
    if not {"peft_config", "precompute_ref_log_probs"} & set(settings) and settings.get("loss_type") != "simpo":
        settings["ref_model"] = tiny.model(seed=1)
    run = runs.trained(folder, DPOExtTrainer, max_grad_norm=0.0, optim="sgd", **settings, **flags)
    return runs.logs(run), runs.weights(run)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_run_with_shared_prompts_is_the_run_without(tmp_path, name: str) -> None:
    logs, weights = trained(tmp_path / "plain", RUNS[name])
    packed = [{"share_prompt": True, "padding_free": True}] if name in ("default", "distributions", "lora") else []
    for flags in ({"share_prompt": True}, *packed):
        shared_logs, shared_weights = trained(tmp_path / "shared", RUNS[name], **flags)
        for ours, theirs in zip(shared_logs, logs, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
        for key, tensor in weights.items():
            torch.testing.assert_close(shared_weights[key], tensor, rtol=1e-4, atol=1e-5)
    start = tiny.model().state_dict()
    moved = [(tensor - start[key]).abs().max() for key, tensor in weights.items() if key in start]
    assert not moved or max(moved) > 1e-3


def test_a_mixture_of_experts_has_the_same_auxiliary_loss(tmp_path) -> None:
    def run(name: str, **flags: Any) -> list[dict]:
        models = [architectures.build("mixtral", seed=seed) for seed in (0, 1)]
        models[0].config.router_aux_loss_coef = 0.5
        settings = {"gradient_checkpointing": False, "learning_rate": 1e-3}
        return runs.logs(runs.trained(tmp_path / name, model=models[0], ref_model=models[1], **settings, **flags))

    plain, shared = run("plain"), run("shared", share_prompt=True)
    assert all("aux_loss" in line for line in plain[:3])
    for ours, theirs in zip(shared, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision_differs_by_its_rounding(tmp_path, attention: str) -> None:
    def run(name: str, **flags: Any) -> list[float]:
        models = [architectures.construct("Llama", {"attn_implementation": attention}, seed=seed) for seed in (0, 1)]
        settings = {"gradient_checkpointing": True, "bf16": True, "learning_rate": 1e-3}
        done = runs.trained(tmp_path / name, model=models[0], ref_model=models[1], **settings, **flags)
        return [line["logps/chosen"] for line in runs.logs(done)[:3]]

    # Sums of up to 6 tokens of 4 nats each, rounded to 8 bits on their way.
    assert run("shared", share_prompt=True) == pytest.approx(run("plain"), abs=0.1)


def test_trl_is_called_with_fewer_tokens(tmp_path) -> None:
    run = runs.trainer(tmp_path, share_prompt=True, ref_model=tiny.model(1), verify_share_prompt=False)
    seen = []
    for model in (run.model, run.ref_model):
        model.base_model.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
        )
    inputs = next(iter(run.get_train_dataloader()))
    run.compute_loss(run.model, inputs)
    rows, tokens = inputs["input_ids"].shape
    assert len(seen) == 2
    assert all(shape[0] == 1 and shape.numel() < rows * tokens for shape in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_layout_is_found_on_the_first_batch(tmp_path, monkeypatch, dtype: torch.dtype) -> None:
    blocks = Trees.blocks

    def one_block(trees: Trees) -> list[Any]:  # every token sees all that stand before it
        return [type(blocks.func(trees)[0])(slice(0, trees.width), ())]

    monkeypatch.setattr(Trees, "blocks", property(one_block))
    models = [architectures.build("llama", dtype, seed) for seed in (0, 1)]
    settings = {"model": models[0], "ref_model": models[1], "share_prompt": True}
    with pytest.raises(InputError, match=r"policy's log-probs in a packed row are off by [^!]*--share_prompt") as error:
        runs.trained(tmp_path, **settings)
    assert len(error.value.problems) == 2  # policy and reference
    runs.trained(tmp_path, **settings, verify_share_prompt=False)
    monkeypatch.setattr(Trees, "blocks", blocks)
    runs.trained(tmp_path, **settings)


def test_the_comparison_leaves_dropout_as_it_was(tmp_path) -> None:
    model = tiny.model(attention_dropout=0.5)
    run = runs.trainer(tmp_path, model=model, ref_model=tiny.model(1), share_prompt=True, disable_dropout=False)
    run.train()
    assert model.training


def test_windows_are_folded_into_the_mask(tmp_path, monkeypatch) -> None:
    model, reference = (architectures.build("mistral-window", seed=seed) for seed in (0, 1))
    monkeypatch.setattr(masks, "reach_of", lambda config, kind: (None, None))
    with pytest.raises(InputError, match="share_prompt"):
        runs.trained(tmp_path, model=model, ref_model=reference, share_prompt=True)


@pytest.mark.parametrize(
    ("flag", "change", "words"),
    [
        ("share_prompt", {"attention": "paged|eager"}, "is not supported; use sdpa"),
        ("padding_free", {"rope": True}, "max_length to at most 16"),
        ("padding_free", {"stateful": True}, "recurrent state"),
    ],
)
def test_models_that_cannot_are_refused_by_the_trainer(tmp_path, flag: str, change: dict, words: str) -> None:
    model = tiny.model()
    if "attention" in change:
        model.config._attn_implementation = change["attention"]
    if "rope" in change:
        model.config.rope_parameters = {"rope_type": "dynamic", "original_max_position_embeddings": 16}
    model._is_stateful = "stateful" in change
    with pytest.raises(InputError, match=words) as error:
        runs.trainer(tmp_path, model=model, loss_type="simpo", **{flag: True})
    assert f"Or drop {flag}." in str(error.value)


@pytest.mark.parametrize("flag", ["share_prompt", "padding_free"])
def test_flash_attention_is_given_sequences_of_different_lengths(tmp_path, monkeypatch, flag: str) -> None:
    model, reference = (tiny.model(seed=seed).double() for seed in (0, 1))  # the kernel takes no float32
    run = runs.trainer(tmp_path, model=model, ref_model=reference, **{flag: True})
    inputs = next(iter(run.get_train_dataloader()))
    expected = run.compute_loss(run.model, inputs)
    calls = [kernels.use_emulated_flash(monkeypatch, each) for each in (model, reference)]
    found = run.compute_loss(run.model, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    of_policy = calls[-1][0]  # the kernel that was put in place last is called for both
    fed = int((inputs["attention_mask"].sum(1) - 1).sum())
    assert int(of_policy["keys"][-1]) == fed
    assert (int(of_policy["queries"][-1]) < fed) == (flag == "share_prompt")


def test_virtual_tokens_are_refused(tmp_path) -> None:
    prefix = PrefixTuningConfig(num_virtual_tokens=2, task_type=TaskType.CAUSAL_LM)
    with pytest.raises(InputError, match="virtual tokens"):
        runs.trainer(tmp_path, peft_config=prefix, share_prompt=True, gradient_checkpointing=False)


def test_flags_that_exclude_each_other_are_named_before_a_model_is_loaded(tmp_path) -> None:
    with pytest.raises(InputError, match="torch_compile"):
        runs.config(tmp_path, share_prompt=True, torch_compile=True)


def test_padding_free_is_neither_warned_of_nor_ignored(tmp_path, caplog) -> None:
    run = runs.trainer(tmp_path, padding_free=True, ref_model=tiny.model(1))
    assert "padding_free" not in caplog.text
    assert run.args.padding_free
    assert run.pair_forward.pack


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_rows_of_similar_length_can_be_grouped(tmp_path, strategy: str) -> None:
    settings = {"train_sampling_strategy": strategy, "eval_dataset": tiny.preferences(), "ref_model": tiny.model(1)}
    run = runs.trained(tmp_path, train_dataset=tiny.preferences(32), eval_strategy="epoch", **settings)
    row = run.train_dataset[0]
    sizes = [len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    assert row["length"] == 2 * sizes[0] + sizes[1] + sizes[2]
    shared = runs.trainer(tmp_path, share_prompt=True, **settings)
    assert shared.train_dataset[0]["length"] == sum(sizes)
    run.evaluate(tiny.preferences(4))
    if strategy == "group_by_length":
        ids = [batch["attention_mask"].sum(1) for batch in run.get_train_dataloader()]
        spread = [int(each.max() - each.min()) for each in ids]
        assert sum(spread) / len(spread) < 10


def test_no_column_of_lengths_is_added_unasked(tmp_path) -> None:
    run = runs.trainer(tmp_path, ref_model=tiny.model(1))
    assert "length" not in run.train_dataset.column_names
