"""The trainer beyond parity: references it does not load, columns, rewards, running state, adapters, evaluation."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from transformers import BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer

from tests.support import runs, tiny
from tests.support.tolerances import rounding
from trl_dpo_ext import DPOExtTrainer
from trl_dpo_ext.preflight import _warn_of_likely_mistakes

LORA = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
REFERENCE_FREE = ["simpo", "orpo", "cpo", "repo", "simper", "alphapo", "slic_hf"]


@pytest.mark.parametrize("loss", REFERENCE_FREE)
def test_a_loss_without_a_reference_loads_none_and_trains(tmp_path, monkeypatch, loss: str) -> None:
    folder, loads = tiny.saved_model(str(tmp_path / "model")), []
    load = dpo_trainer.create_model_from_path
    monkeypatch.setattr(dpo_trainer, "create_model_from_path", lambda *a, **k: loads.append(a) or load(*a, **k))
    run = runs.trained(tmp_path / "out", model=folder, loss_type=loss)
    assert len(loads) == 1
    assert run.ref_model is None
    assert any(line.get("grad_norm", 0) > 0 for line in runs.logs(run))


def test_reference_free_is_dpo_with_reference_log_probs_of_zero(tmp_path) -> None:
    run = runs.trainer(tmp_path, model=tiny.model(), reference_free=True)
    inputs = next(iter(run.get_train_dataloader()))
    loss = run.compute_loss(run.model, inputs)
    metrics = {name: values[-1] for name, values in run._metrics["train"].items()}
    assert run.ref_model is None
    assert metrics["rewards/chosen"] == pytest.approx(0.1 * metrics["logps/chosen"], rel=1e-5)
    assert 0 < loss.item() < 5


def test_the_logged_rewards_of_simpo_are_simpos(tmp_path) -> None:
    run = runs.trainer(tmp_path, model=tiny.model(), loss_type="simpo", simpo_beta=10.0)
    inputs = next(iter(run.get_train_dataloader()))
    run.compute_loss(run.model, inputs)
    metrics = {name: values[-1] for name, values in run._metrics["train"].items()}
    with torch.no_grad():
        output = run.model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).logits.log_softmax(-1)
    targets, mask = inputs["input_ids"][:, 1:], inputs["completion_mask"][:, 1:]
    token_logps = output[:, :-1].gather(-1, targets.unsqueeze(-1)).squeeze(-1) * mask
    chosen, rejected = (10.0 * token_logps.sum(1) / mask.sum(1)).chunk(2)
    assert metrics["rewards/chosen"] == pytest.approx(chosen.mean().item(), rel=1e-4)
    assert metrics["rewards/margins"] == pytest.approx((chosen - rejected).mean().item(), abs=rounding(10 * 10))
    assert metrics["rewards/accuracies"] == (chosen > rejected).float().mean().item()


def test_a_reference_that_no_loss_reads_is_named_and_left_out(tmp_path) -> None:
    with pytest.warns(UserWarning, match="ref_model is not used"):
        run = runs.trainer(tmp_path, loss_type="simpo", ref_model=tiny.model(1))
    assert run.ref_model is None


def test_columns_reach_the_loss_that_declares_them(tmp_path) -> None:
    margins = [0.5, 1.0, 1.5, 2.0]
    run = runs.trainer(
        tmp_path, ref_model=tiny.model(), loss_type="margin", train_dataset=tiny.preferences(4, margin=margins)
    )
    inputs = next(iter(run.get_train_dataloader()))
    loss = run.compute_loss(run.model, inputs)
    expected = torch.nn.functional.softplus(inputs["margin"]).mean()  # policy equals reference: -log sigmoid(-m)
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)
    assert sorted(inputs["margin"].tolist()) == margins


def test_a_weight_column_multiplies_the_loss_of_each_pair(tmp_path) -> None:
    data = tiny.preferences(4, weight=[0.0, 0.0, 0.0, 4.0])
    settings = {"ref_model": tiny.model(1), "train_dataset": data}
    weighted = runs.trainer(tmp_path, weight_column="weight", **settings)
    inputs = next(iter(weighted.get_train_dataloader()))
    only = int(inputs["weight"].argmax())
    loss = weighted.compute_loss(weighted.model, inputs)
    pairs_of_one = {k: v[[only, only + 4]] for k, v in inputs.items() if v.shape[0] == 8}
    plain = weighted.compute_loss(weighted.model, {**pairs_of_one, "weight": torch.ones(1)})
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=rounding(0.1 * 60))  # beta x summed log-probs


def test_two_betas_in_one_mixture(tmp_path) -> None:
    run = runs.trainer(tmp_path, ref_model=tiny.model(1), loss_type=["sigmoid:beta=1.0", "sppo_hard"], beta=0.01)
    inputs = next(iter(run.get_train_dataloader()))
    mixed = run.compute_loss(run.model, inputs)
    parts = []
    for settings in ({"loss_type": "sigmoid", "beta": 1.0}, {"loss_type": "sppo_hard", "beta": 0.01}):
        alone = runs.trainer(tmp_path, ref_model=tiny.model(1), **settings)
        parts.append(alone.compute_loss(alone.model, inputs))
    torch.testing.assert_close(mixed, sum(parts))


def test_each_term_of_a_mixture_is_logged(tmp_path) -> None:
    run = runs.trained(
        tmp_path, ref_model=tiny.model(), loss_type=["sigmoid", "sigmoid:beta=1.0", "sft"], loss_weights=[1.0, 0.5, 0.1]
    )
    first = runs.logs(run)[0]
    assert {key for key in first if key.startswith("loss/")} == {"loss/sigmoid", "loss/sigmoid:beta=1.0", "loss/sft"}
    total = first["loss/sigmoid"] + 0.5 * first["loss/sigmoid:beta=1.0"] + 0.1 * first["loss/sft"]
    assert first["loss"] == pytest.approx(total, rel=1e-4)


def test_a_loss_left_to_trl_runs_beside_ours(tmp_path) -> None:
    both = runs.trainer(tmp_path, ref_model=tiny.model(1), loss_type=["trl:hinge", "dpop"], loss_weights=[0.5, 2.0])
    inputs = next(iter(both.get_train_dataloader()))
    value = both.compute_loss(both.model, inputs)
    ours = runs.trainer(tmp_path, ref_model=tiny.model(1), loss_type=["hinge", "dpop"], loss_weights=[0.5, 2.0])
    torch.testing.assert_close(value, ours.compute_loss(ours.model, inputs))


def test_running_state_is_saved_restored_and_frozen_in_evaluation(tmp_path) -> None:
    settings = {"loss_type": "bco_pair_delta", "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    settings |= {"eval_dataset": tiny.preferences(4), "eval_strategy": "steps", "eval_steps": 1}
    full = runs.trained(tmp_path / "a", ref_model=tiny.model(1), **settings)
    saved = json.loads((tmp_path / "a/checkpoint-2/loss_state.json").read_text())["bco_pair_delta"]
    assert saved["pairs"] == 2 * 4  # two batches of four pairs: evaluation did not count

    resumed = runs.trainer(tmp_path / "a", ref_model=tiny.model(1), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-2"))
    assert resumed.mixture.state_dict() == full.mixture.state_dict()
    expected, got = runs.weights(full), runs.weights(resumed)
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_resuming_with_other_stateful_losses_is_refused(tmp_path) -> None:
    runs.trained(tmp_path, ref_model=tiny.model(1), save_strategy="steps", save_steps=2, max_steps=2)
    other = runs.trainer(tmp_path, ref_model=tiny.model(1), loss_type="bco_pair_delta")
    with pytest.raises(FileNotFoundError, match=r"loss_state\.json is missing.*bco_pair_delta"):
        other.train(resume_from_checkpoint=True)


def test_lora_takes_its_base_as_reference(tmp_path) -> None:
    run = runs.trained(tmp_path, loss_type="dpop", peft_config=LORA)
    assert run.ref_model is None
    first, last = runs.logs(run)[0], runs.logs(run)[2]
    assert first["rewards/margins"] == pytest.approx(0.0, abs=rounding(0.1 * 60))
    assert last["rewards/margins"] > 1e-4


@pytest.mark.parametrize("loss", ["sigmoid", "simpo"])
def test_qlora_trains(tmp_path, monkeypatch, loss: str) -> None:
    # On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights in evaluation forwards and gradients become zero.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    run = runs.trainer(tmp_path / "out", loss_type=loss, **_qlora(tmp_path))
    assert any("4bit" in type(module).__name__ for module in run.model.modules())
    before = runs.weights(run)
    run.train()
    moved = {name for name, tensor in runs.weights(run).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_qlora_trains_to_the_weights_and_losses_of_trl(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    ours = runs.trained(tmp_path / "ours", **_qlora(tmp_path))
    theirs = runs.trained(tmp_path / "theirs", DPOTrainer, **_qlora(tmp_path))
    assert [line.get("loss") for line in runs.logs(ours)] == [line.get("loss") for line in runs.logs(theirs)]
    for name, tensor in runs.weights(theirs).items():
        assert torch.equal(runs.weights(ours)[name], tensor)


def _qlora(folder: Path) -> dict[str, Any]:
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = tiny.saved_model(str(folder / "model"))
    return {"model": model, "peft_config": copy.deepcopy(LORA), "quantization_config": nf4, "learning_rate": 0.1}


def test_evaluate_takes_a_new_dataset_and_a_dictionary_of_them(tmp_path) -> None:
    run = runs.trainer(tmp_path, ref_model=tiny.model(1), loss_type="margin", train_dataset=_with_margin(8))
    alone = run.evaluate(_with_margin(4))
    parts = run.evaluate({"a": _with_margin(4), "b": _with_margin(8)})
    assert parts["eval_a_loss"] == pytest.approx(alone["eval_loss"])
    assert "eval_b_loss" in parts
    with pytest.raises(ValueError, match="eval_dataset has no column 'margin'"):
        run.evaluate(tiny.preferences(4))


def _with_margin(rows: int) -> Dataset:
    return tiny.preferences(rows, margin=[0.1 * index for index in range(rows)])


def test_a_plain_dpo_config_is_refused_with_the_fix(tmp_path) -> None:
    args = runs.config(tmp_path, DPOConfig)
    with pytest.raises(TypeError, match="args must be a DPOExtConfig, got DPOConfig"):
        DPOExtTrainer(tiny.model(), args=args, train_dataset=tiny.preferences())


def test_a_batch_of_one_pair_is_named_where_the_loss_compares_pairs(tmp_path) -> None:
    with pytest.warns(UserWarning, match="aot uses batch statistics"):
        runs.trainer(tmp_path, ref_model=tiny.model(1), loss_type="aot", per_device_train_batch_size=1)


@pytest.mark.parametrize(("loss", "warned"), [("aot", True), ("aot:global=true", False), ("dr_dpo", False)])
def test_over_two_processes_only_what_one_process_compares_alone_is_named(tmp_path, loss: str, warned: bool) -> None:
    mixture = runs.config(tmp_path, loss_type=loss).loss_mixture()
    two = SimpleNamespace(per_device_train_batch_size=1, world_size=2, precompute_ref_log_probs=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _warn_of_likely_mistakes(two, mixture, None)
    assert [("uses batch statistics" in str(w.message)) for w in caught] == [True] * warned


@pytest.mark.parametrize(
    ("loss", "pairs", "processes", "said"),
    [
        ("amapo", 4, 1, ["amapo uses batch statistics, and 4 pairs are few for them: fewer than 8."]),
        ("amapo", 1, 2, ["amapo uses batch statistics, and 2 pairs are few for them: fewer than 8."]),
        ("amapo", 4, 2, []),
        ("amapo", 1, 1, ["amapo uses batch statistics, but the batch holds one pair"]),
        ("dr_dpo", 2, 1, []),
    ],
)
def test_a_batch_of_few_pairs_is_named_where_the_loss_takes_their_spread(
    tmp_path, loss, pairs, processes, said
) -> None:
    mixture = runs.config(tmp_path, loss_type=loss).loss_mixture()
    args = SimpleNamespace(
        per_device_train_batch_size=pairs, world_size=processes, precompute_ref_log_probs=False
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _warn_of_likely_mistakes(args, mixture, None)
    assert [str(w.message)[: len(sentence)] for w, sentence in zip(caught, said, strict=True)] == said


def test_an_experimental_loss_is_named_once(tmp_path) -> None:
    args = runs.config(tmp_path, loss_type=["hdpo:beta=0.1", "sigmoid", "hdpo:beta=1"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _warn_of_likely_mistakes(args, args.loss_mixture(), None)
    (warning,) = caught
    assert str(warning.message).startswith("hdpo: experimental")


def test_correct_use_is_silent(tmp_path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs.trainer(tmp_path, ref_model=tiny.model(1), loss_type=["dpop", "sft"], gradient_checkpointing=False)
    ours = [w for w in caught if "trl_dpo_ext" in w.filename]
    assert not ours


def test_wrong_data_is_named_before_a_model_is_loaded(tmp_path, monkeypatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", load)
    expected = (
        r"3 problems:\n- train_dataset has no column.*\n- eval_dataset is empty.*\n- The model somewhere/else could not"
    )
    with pytest.raises(ValueError, match=expected):
        runs.trainer(
            tmp_path,
            model="somewhere/else",
            train_dataset=Dataset.from_dict({"question": ["a"]}),
            eval_dataset=Dataset.from_dict({"chosen": [], "rejected": []}),
        )


def test_progress_is_the_share_of_steps_done(tmp_path) -> None:
    settings = {"loss_type": "dpo_shift", "max_steps": 4, "ref_model": tiny.model(1)}
    run = runs.trainer(tmp_path, **settings, dpo_shift_schedule="increase_linear", dpo_shift_min=0.4, dpo_shift_max=0.8)
    inputs = next(iter(run.get_train_dataloader()))
    for step, weight in ((0, 0.4), (1, 0.5), (4, 0.8)):
        run.state.max_steps, run.state.global_step = 4, step
        fixed = runs.trainer(tmp_path, **settings, model=run.model, dpo_shift_lambda=weight)
        torch.testing.assert_close(run.compute_loss(run.model, inputs), fixed.compute_loss(fixed.model, inputs))
    run.train()
    assert run.state.global_step == 4


def test_a_divergence_that_trl_does_not_know_trains_and_metrics_are_trls(tmp_path) -> None:
    settings = {"ref_model": tiny.model(1), "max_steps": 2}
    linear = runs.trained(tmp_path / "a", f_divergence_type="forward_kl_linear", **settings)
    plain = runs.trained(tmp_path / "b", f_divergence_type="forward_kl", **settings)
    for ours, theirs in zip(runs.logs(linear), runs.logs(plain), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)  # no log-ratio here is below -10
    assert linear.f_divergence_type == linear.args.f_divergence_type == "forward_kl_linear"
