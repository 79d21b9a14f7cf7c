"""A reference that follows the policy is moved as asked and resumes exactly, or the run is stopped."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import BitsAndBytesConfig
from trl import DPOTrainer

from tests.support import runs, tiny
from trl_dpo_ext import load_reference
from trl_dpo_ext._trl import SecondAdapter
from trl_dpo_ext.errors import InputError

from .listing import Kind

moving = Kind("The reference is to move (`sync_ref_model`)")

SYNC: dict[str, Any] = {"sync_ref_model": True, "ref_model_sync_steps": 2, "max_steps": 6}
SAVED: dict[str, Any] = {**SYNC, "save_strategy": "steps", "save_steps": 3}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
HARD = {"ref_model_mixup_alpha": 1.0}


def lora(**more: Any) -> dict[str, Any]:
    return {"peft_config": peft.LoraConfig(**{**LORA, **more})}


def losses(run: Any) -> list[float]:
    return [line["loss"] for line in runs.logs(run) if "loss" in line]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.saved_model(str(tmp_path_factory.mktemp("moving") / "model"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    """Step 3 of 6 of a run whose reference moved at step 2, saved by this package."""
    folder = tmp_path_factory.mktemp("moving")
    runs.trained(folder, model=model, **{**SAVED, "max_steps": 3})
    return folder / "checkpoint-3"


@pytest.mark.parametrize(
    "more",
    [
        moving.case("sync_ref_model, killed and resumed at step 3 of 6", "equals the whole run bit for bit", {}),
        moving.case("the same with LoRA", "equals the whole run; TRL refuses LoRA here", lora()),
        moving.case("the same with LoRA and ref_model_mixup_alpha=1", "equals the whole run", {**lora(), **HARD}),
        moving.case("the same with DoRA and ref_model_mixup_alpha=1", "equals the whole run", {**lora(use_dora=True), **HARD}),
        moving.case("the same, with bfloat16 weights in the reference (ref_dtype)", "equals the whole run", {"ref_dtype": "bfloat16"}),
    ],
)  # fmt: skip
def test_a_resumed_run_is_the_whole_run(tmp_path, model: str, more: dict) -> None:
    whole = runs.trained(tmp_path / "whole", model=model, **SAVED, **more)
    again = runs.trainer(tmp_path / "again", model=model, **SAVED, **more)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert losses(again) == losses(whole)
    expected, found = runs.weights(whole), runs.weights(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "kind",
    [
        moving.case("resuming sync_ref_model from a checkpoint of TRL's", "error: the moved reference is missing", "trl"),
        moving.case("resuming sync_ref_model from a run without it", "error: the moved reference is missing", "fixed"),
        moving.case("resuming after the moved reference was deleted", "error: the moved reference is missing", "deleted"),
    ],
)  # fmt: skip
def test_a_checkpoint_without_the_moved_reference_is_refused(tmp_path, model: str, checkpoint: Path, kind: str) -> None:
    folder = tmp_path / "before" / "checkpoint-3"
    if kind == "deleted":
        shutil.copytree(checkpoint, folder)
        (folder / "synced_reference.safetensors").unlink()
    else:
        settings = {**SAVED, "max_steps": 3} | ({"sync_ref_model": False} if kind == "fixed" else {})
        more: dict = {"kind": DPOTrainer} if kind == "trl" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runs.trained(folder.parent, model=model, **settings, **more)
    run = runs.trainer(tmp_path / "again", model=model, **SAVED)
    with pytest.raises(
        InputError, match=r"at step 3 the reference had moved \(ref_model_sync_steps=2\).*start a new run"
    ):
        run.train(resume_from_checkpoint=str(folder))


@moving("resuming without sync_ref_model from a run whose reference had moved", "error: another reference")
def test_a_moved_reference_is_not_forgotten(tmp_path, model: str, checkpoint: Path) -> None:
    run = runs.trainer(tmp_path, model=model)
    with pytest.raises(InputError, match=r"was saved with sync_ref_model=True.*Set sync_ref_model=True to resume"):
        run.train(resume_from_checkpoint=str(checkpoint))
    free = runs.trainer(tmp_path, model=model, loss_type="simpo", max_steps=4)
    free.train(resume_from_checkpoint=str(checkpoint))  # reads no reference


@moving("resuming a trainer whose reference has moved from before its first move", "error: create a new trainer")
def test_a_moved_reference_does_not_go_back(tmp_path, model: str) -> None:
    settings = {**SAVED, "save_steps": 1, "max_steps": 2}
    run = runs.trained(tmp_path, model=model, **settings)
    with pytest.raises(InputError, match=r"This trainer's reference has moved.*Create a new trainer"):
        run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@moving("resuming with another adapter than the checkpoint's", "error: weights of another reference")
def test_another_adapters_reference_is_refused(tmp_path, model: str, checkpoint: Path) -> None:
    run = runs.trainer(tmp_path, model=model, **SAVED, **lora())
    with pytest.raises(
        InputError, match=r"weights of another reference.*Resume with the model and the adapter settings"
    ):
        run.train(resume_from_checkpoint=str(checkpoint))


OPTIONS = [
    moving.case("with precompute_ref_log_probs", "error: stored log-probs do not change", {"precompute_ref_log_probs": True}, "the reference would change"),
    moving.case("with ref_quantization", "error: quantized weights cannot be mixed", {"ref_quantization": "nf4"}, "cannot be copied into"),
    moving.case("with ref_calibrate", "error: the shift is measured once", {"ref_dtype": "bfloat16", "ref_calibrate": True}, "the shift is measured once"),
    moving.case("with a loss that reads no reference", "error: nothing to move", {"loss_type": "simpo"}, "sync_ref_model=True has no effect: this run of simpo needs no reference"),
    moving.case("with reference_free", "error: nothing to move", {"reference_free": True}, "sync_ref_model=True has no effect"),
    moving.case("ref_model_mixup_alpha=0", "error", {"ref_model_mixup_alpha": 0.0}, "ref_model_mixup_alpha must be above 0 and at most 1.*got 0.0"),
    moving.case("ref_model_mixup_alpha=1.5", "error", {"ref_model_mixup_alpha": 1.5}, "got 1.5"),
    moving.case("ref_model_sync_steps=0", "error; TRL divides by zero at the first step", {"ref_model_sync_steps": 0}, "ref_model_sync_steps must be at least 1; got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options_that_do_not_go_with_a_moving_reference(tmp_path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        runs.config(tmp_path, **{**SYNC, **options})


ADAPTERS = [
    moving.case("LoRA with a ref_model", "error: the reference has to be the adapter's start", lambda: {**lora(), "ref_model": tiny.model(1)}, "cannot move another model toward an adapter"),
    moving.case("LoRA with ref_dtype", "error: the same", lambda: {**lora(), "ref_dtype": "bfloat16"}, "cannot move another model toward an adapter"),
    moving.case("LoRA with bias='lora_only'", "error: shared biases would move at every step", lambda: lora(bias="lora_only"), "bias='lora_only', which trains the base's biases"),
    moving.case("DoRA with the default ref_model_mixup_alpha", "error: set it to 1", lambda: lora(use_dora=True), "cannot be used with DoRA.*Set ref_model_mixup_alpha=1"),
    moving.case("IA3 with the default ref_model_mixup_alpha", "error: set it to 1", lambda: {"peft_config": peft.IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[])}, "cannot be used with IA3.*Set ref_model_mixup_alpha=1"),
    moving.case("prompt tuning", "error: virtual tokens cannot be mixed", lambda: {"peft_config": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), **HARD}, "virtual tokens cannot be mixed"),
    moving.case("LoRA with target_parameters", "error: use target_modules", lambda: lora(target_modules=[], target_parameters=["lm_head.weight"]), "target_parameters.*Use target_modules"),
    moving.case("a quantized ref_model", "error: quantized weights cannot be mixed", lambda: {"ref_model": "nf4"}, "quantized ref_model"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), ADAPTERS)
def test_adapters_and_references_that_cannot_be_mixed_are_refused_before_loading(
    tmp_path, monkeypatch, model: str, make: Any, message: str
) -> None:
    given = make()
    if given.get("ref_model") == "nf4":
        given["ref_model"] = load_reference(model, quantization="nf4")

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", load)
    with pytest.raises(InputError, match=message):
        runs.trainer(tmp_path, model=model, **SYNC, **given)


@moving("a ref_model of another size", "error: which weights differ; TRL fails at the first move")
def test_a_reference_of_another_size_is_refused(tmp_path, model: str) -> None:
    config = copy.deepcopy(tiny.model().config)
    config.intermediate_size *= 2
    larger = type(tiny.model())(config)
    with pytest.raises(
        InputError, match=r"the policy's architecture: 3 weights differ \(first: .*mlp.down_proj.weight"
    ):
        runs.trainer(tmp_path, model=model, ref_model=larger, **SYNC)


@moving("LoRA with trained weights outside the adapter", "error: the reference shares them")
def test_weights_that_are_shared_with_the_reference_are_refused() -> None:
    policy: Any = peft.get_peft_model(tiny.model(), peft.LoraConfig(**LORA))
    policy.get_base_model().lm_head.weight.requires_grad_(True)
    with pytest.raises(InputError, match=r"1 trained weights outside the adapter 'default' are shared.*lm_head.weight"):
        SecondAdapter(policy)  # old versions of PEFT freeze the base again when TRL adds its copy


@moving("a 4-bit policy with LoRA (QLoRA)", "its second adapter moves")
def test_a_quantized_policy_has_a_reference_that_moves(tmp_path, model: str) -> None:
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    settings = {**SYNC, **HARD, "max_steps": 3, "model": model, "quantization_config": quantized, **lora()}
    first, moved, copied = losses(runs.trained(tmp_path, **settings))
    assert first == pytest.approx(0.6931, abs=1e-4)
    assert moved != pytest.approx(0.6931, abs=1e-4)
    assert copied == pytest.approx(0.6931, abs=1e-4)


@moving("ref_model_sync_steps above the number of steps", "warning: the reference does not move")
def test_a_run_that_ends_before_the_first_move_is_warned_of(tmp_path, model: str) -> None:
    run = runs.trainer(tmp_path, model=model, sync_ref_model=True, max_steps=1)
    with pytest.warns(
        UserWarning, match="The reference does not move: the run ends after 1 steps, and ref_model_sync_steps=512"
    ):
        run.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        moving.case("ref_model_mixup_alpha without sync_ref_model", "warning: no effect", HARD, "ref_model_mixup_alpha=1.0 has no effect without"),
        moving.case("ref_model_sync_steps without sync_ref_model", "warning: no effect", {"ref_model_sync_steps": 64}, "ref_model_sync_steps=64 has no effect"),
    ],
)  # fmt: skip
def test_options_of_a_moving_reference_are_not_ignored(tmp_path, model: str, options: dict, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        runs.trainer(tmp_path, model=model, **options)
