"""Pairs through shared prompts and packed rows: the same output, gradients, losses and logs as the plain forward."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, TaskType
from trl.trainer.utils import add_fused_lm_head

from tests.support import architectures, runs, tiny
from trl_dpo_ext import DPOExtTrainer
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.forward import masks
from trl_dpo_ext.forward.layouts import LayoutKind, build_layout, measure_lengths, rows_of, shapes
from trl_dpo_ext.forward.masks import TreeMask
from trl_dpo_ext.forward.packed_model import PackedModel, candidate_layouts, cost

WAYS = candidate_layouts(share=True, pack=True)
FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")


def batch(*pairs: tuple[list[int], list[int], list[int]]) -> dict[str, torch.Tensor]:
    """What TRL's collator makes of (prompt, chosen, rejected), and the labels that TRL gives a model."""
    sides = [[(p, c) for p, c, _ in pairs], [(p, r) for p, _, r in pairs]]
    rows = [row for side in sides for row in side]
    width = max(len(p) + len(c) for p, c in rows)
    ids = [p + c + [0] * (width - len(p) - len(c)) for p, c in rows]
    attention = [[1] * (len(p) + len(c)) + [0] * (width - len(p) - len(c)) for p, c in rows]
    labels = [[-100] * len(p) + c + [-100] * (width - len(p) - len(c)) for p, c in rows]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(attention),
        "labels": torch.tensor(labels),
    }


# Completions that begin alike, one that is the start of the other, identical ones; prompts of one token and of none.
PAIRS = batch(
    ([5, 6, 7, 8, 9, 10], [21, 22, 23, 2], [21, 31, 2]),
    ([12], [24, 2], [32, 33, 34, 35, 36, 37, 2]),
    ([13, 14, 15], [25, 26], [25, 26, 27, 28]),
    ([16, 17], [40, 2], [40, 2]),
    ([], [41, 42, 2], [43, 2]),
)


def random_batch(seed: int) -> dict[str, torch.Tensor]:
    draw = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [draw.randint(3, 6) for _ in range(draw.randint(low, high))]  # few ids, so that prefixes meet

    return batch(*((tokens(0, 6), tokens(1, 5), tokens(1, 5)) for _ in range(draw.randint(1, 4))))


@pytest.mark.parametrize("with_last", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_token_sees_its_own_sequence_and_nothing_else(way: LayoutKind, with_last: bool) -> None:
    for seed in range(40):
        given = random_batch(seed)
        ids, labels = given["input_ids"], given["labels"]
        measured = measure_lengths(ids, given["attention_mask"], with_last)
        (width,) = torch.stack(shapes([way], measured)).tolist()
        laid = build_layout(way, max(width, 1), measured, ids, labels)
        assert laid.input_ids.size(0) == rows_of(way, len(ids) // 2)
        sight = TreeMask(laid.branch, laid.position_ids, laid.segment).as_tensor()[:, 0]
        flat_ids, flat_positions = laid.input_ids.flatten(), laid.position_ids.flatten()
        for row, length in enumerate(given["attention_mask"].sum(1).tolist()):
            for token in range(length if with_last else length - 1):
                slot = int(laid.token_index[row, token])
                start = slot // laid.input_ids.size(1) * laid.input_ids.size(1)
                seen = start + sight[slot // laid.input_ids.size(1), slot - start].nonzero().squeeze(1)
                assert flat_ids[seen].tolist() == ids[row, : token + 1].tolist()
                assert flat_positions[seen].tolist() == list(range(token + 1))
        assert laid.labels.tolist() == labels[:, 1:][labels[:, 1:] != -100].tolist()
        padding = laid.input_ids.numel() - int((laid.branch >= 0).sum())
        assert not way.pack or padding <= 1  # one place stays where nothing at all is fed


def shifted(output: Any, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: getattr(output, name) * mask for name in FIELDS}


@pytest.mark.parametrize("case", sorted(architectures.EXACT))
def test_every_architecture_answers_as_in_its_plain_forward(case: str) -> None:
    with architectures.double_precision():
        model = architectures.build(case, torch.float64)
        add_fused_lm_head(model, outputs=FIELDS)
        routing = {"output_router_logits": True} if hasattr(model.config, "num_experts") else {}  # as TRL reads it
        weights = torch.linspace(-1.0, 2.0, PAIRS["labels"][:, 1:].numel()).view(PAIRS["labels"][:, 1:].shape)
        mask = PAIRS["labels"][:, 1:] != -100

        def run(call: Any) -> tuple[Any, list[torch.Tensor]]:
            model.zero_grad()
            output = call(**PAIRS, fused_lm_head=True, use_cache=False, **routing)
            loss = (output.log_probs * weights).sum() + (output.aux_loss if routing else 0.0)
            loss.backward()
            return output, [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]

        plain, before = run(model)
        for way in WAYS:
            output, after = run(PackedModel(model, model, [way]))
            for name in FIELDS:
                found, expected = getattr(output, name), getattr(plain, name)
                assert found.shape == expected.shape
                torch.testing.assert_close(found.double(), expected.double(), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(output.label_mask, mask)
            if routing:
                torch.testing.assert_close(output.aux_loss, plain.aux_loss, rtol=1e-9, atol=1e-9)
            for ours, theirs in zip(after, before, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_each_batch_is_fed_in_the_cheapest_way() -> None:
    config = architectures.build("llama").config
    share, plain = LayoutKind(True, False), LayoutKind(False, False)
    config.hidden_size, config.intermediate_size = 512, 1536
    assert cost(config, share, pairs=4, width=250) < cost(config, plain, pairs=4, width=200)
    # A prompt of 4 tokens before completions of 1000: one row is twice as long, and its mask is looked at in full.
    assert cost(config, share, pairs=4, width=2004) > cost(config, plain, pairs=4, width=1004)
    config._attn_implementation = "flash_attention_2"
    assert cost(config, LayoutKind(False, True), pairs=4, width=1000) < cost(config, plain, pairs=4, width=150)


# ---------------------------------------------------------------------------------------------------- in the trainer

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
    assert all(shape[0] == rows // 2 and shape.numel() < rows * tokens for shape in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_that_is_not_heeded_is_found_on_the_first_batch(tmp_path, monkeypatch, dtype: torch.dtype) -> None:
    whole = TreeMask.__call__
    monkeypatch.setattr(TreeMask, "__call__", lambda sight, row, head, query, key: key <= query)
    models = [architectures.build("llama", dtype, seed) for seed in (0, 1)]
    settings = {"model": models[0], "ref_model": models[1], "share_prompt": True}
    with pytest.raises(InputError, match=r"policy's log-probs are off by [^!]*--share_prompt") as error:
        runs.trained(tmp_path, **settings)
    assert len(error.value.problems) == 2  # policy and reference
    runs.trained(tmp_path, **settings, verify_share_prompt=False)
    monkeypatch.setattr(TreeMask, "__call__", whole)
    runs.trained(tmp_path, **settings)


def test_the_comparison_leaves_dropout_as_it_was(tmp_path) -> None:
    model = tiny.model(attention_dropout=0.5)
    run = runs.trainer(tmp_path, model=model, ref_model=tiny.model(1), share_prompt=True, disable_dropout=False)
    run.train()
    assert model.training


def test_windows_are_folded_into_the_mask(tmp_path, monkeypatch) -> None:
    model, reference = (architectures.build("mistral-window", seed=seed) for seed in (0, 1))
    monkeypatch.setattr(masks, "_reach", lambda config, kind: (None, None))
    with pytest.raises(InputError, match="share_prompt"):
        runs.trained(tmp_path, model=model, ref_model=reference, share_prompt=True)


@pytest.mark.parametrize(
    ("flag", "change", "words"),
    [
        (
            "share_prompt",
            {"attention": "flash_attention_2"},
            "supports only causal masks; use sdpa, flex_attention or eager",
        ),
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


def test_flash_attention_takes_packed_rows(tmp_path) -> None:
    model = tiny.model()
    run = runs.trainer(tmp_path, model=model, ref_model=tiny.model(1), padding_free=True)
    model.config._attn_implementation = "flash_attention_2"
    seen = []
    model.base_model.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True)
    run.pair_forward.to_verify = False
    with pytest.raises(Exception, match=r"(?i)flash|cuda|mask|kernel|attn"):  # no such kernel here
        run.compute_loss(run.model, next(iter(run.get_train_dataloader())))
    assert seen[0]["attention_mask"] is None
    assert seen[0]["input_ids"].size(0) == 1
    assert (seen[0]["position_ids"] == 0).sum() == 8  # 4 pairs: every sequence begins at 0


def test_virtual_tokens_and_other_inputs_are_refused(tmp_path) -> None:
    prefix = PrefixTuningConfig(num_virtual_tokens=2, task_type=TaskType.CAUSAL_LM)
    with pytest.raises(InputError, match="virtual tokens"):
        runs.trainer(tmp_path, peft_config=prefix, share_prompt=True)
    model = architectures.build("llama")
    add_fused_lm_head(model)
    with pytest.raises(InputError, match="pixel_values"):
        PackedModel(model, model, WAYS)(**PAIRS, fused_lm_head=True, pixel_values=torch.zeros(1))
    left = {name: tensor.flip(1) for name, tensor in PAIRS.items()}
    with pytest.raises(InputError, match="padded on the right"):
        PackedModel(model, model, WAYS)(**left, fused_lm_head=True)


def test_flags_that_exclude_each_other_are_named_before_a_model_is_loaded(tmp_path) -> None:
    with pytest.raises(InputError, match="torch_compile"):
        runs.config(tmp_path, share_prompt=True, torch_compile=True)
    with pytest.raises(InputError, match="padding_free=True instead of share_prompt"):
        runs.config(tmp_path, share_prompt=True, model_init_kwargs={"attn_implementation": "flash_attention_2"})


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
