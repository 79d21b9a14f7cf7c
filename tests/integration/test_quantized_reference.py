"""Training runs with a quantized reference, one in another dtype, or another checkpoint."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import DPOTrainer

from tests.support import runs, tiny
from tests.support.references import LORA, logits
from trl_dpo_ext import load_reference
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.model.memory import weight_bytes


@pytest.mark.parametrize("named", [True, False], ids=["by name", "instance"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_run_with_a_quantized_reference_is_trls_with_that_reference(folder, tmp_path, named: bool, kind: str) -> None:
    def policy() -> Any:
        return folder if named else AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    ours = runs.trained(tmp_path / "ours", model=policy(), ref_quantization=kind, ref_drift_num_pairs=0)
    host = runs.trained(
        tmp_path / "host", DPOTrainer, model=policy(), ref_model=load_reference(folder, quantization=kind)
    )
    for name, tensor in runs.weights(host).items():
        assert torch.equal(runs.weights(ours)[name], tensor)
    assert [line.get("loss") for line in runs.logs(ours)] == [line.get("loss") for line in runs.logs(host)]
    start = load_reference(folder, quantization=kind)
    assert torch.equal(logits(ours.ref_model), logits(start))  # training has left it alone
    assert not any(parameter.requires_grad for parameter in ours.ref_model.parameters())


def test_a_reference_is_not_saved_with_checkpoints(folder, tmp_path) -> None:
    settings = {"model": folder, "max_steps": 1, "save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    runs.trained(tmp_path / "plain", **settings)
    runs.trained(tmp_path / "nf4", ref_quantization="nf4", **settings)
    files = {name: {p.name for p in (tmp_path / name / "checkpoint-1").iterdir()} for name in ("plain", "nf4")}
    assert files["nf4"] - files["plain"] == {"reference_drift.json"}
    sizes = {(tmp_path / name / "checkpoint-1" / "model.safetensors").stat().st_size for name in files}
    assert len(sizes) == 1


def test_an_unquantized_reference_in_another_dtype(folder, tmp_path) -> None:
    run = runs.trained(tmp_path / "out", model=folder, ref_dtype="bfloat16", ref_drift_num_pairs=0)
    assert run.ref_model.dtype == torch.bfloat16
    assert run.model.dtype == torch.float32
    assert weight_bytes(run.model)["all"] - weight_bytes(run.ref_model)["all"] == 2 * run.model.num_parameters()


def test_another_checkpoint_is_the_reference(folder, tmp_path) -> None:
    other = tiny.saved_model(str(tmp_path / "other"), seed=1)
    run = runs.trained(tmp_path / "ours", model=folder, ref_model_name_or_path=other)
    host = runs.trained(tmp_path / "host", DPOTrainer, model=folder, ref_model=tiny.model(1))
    assert run.reference.drift_monitor is None  # it is what it stands for
    for name, tensor in runs.weights(host).items():
        assert torch.equal(runs.weights(run)[name], tensor)


def test_an_instance_with_another_checkpoint_as_reference(folder, tmp_path) -> None:
    run = runs.trainer(tmp_path / "out", model=tiny.model(3), ref_model_name_or_path=folder, ref_quantization="nf4")
    assert torch.equal(logits(run.ref_model), logits(load_reference(folder, quantization="nf4")))


def test_the_policys_loading_flags_hold_for_its_reference(folder, tmp_path) -> None:
    settings = {"model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "eager"}, "ref_quantization": "nf4"}
    run = runs.trainer(tmp_path / "out", model=folder, **settings)
    assert run.ref_model.dtype == torch.bfloat16
    assert run.ref_model.config._attn_implementation == "eager"
    assert run.ref_model.model.layers[0].self_attn.q_proj.compute_dtype == torch.bfloat16


def test_dtype_auto_is_that_of_the_checkpoint_for_the_reference_too(folder, tmp_path) -> None:
    tiny.model().to(torch.bfloat16).save_pretrained(folder)
    run = runs.trainer(tmp_path / "out", model=folder, model_init_kwargs={"dtype": "auto"}, ref_quantization="nf4")
    assert run.model.dtype == run.ref_model.dtype == torch.bfloat16


def test_a_checkpoint_that_is_quantized_already_is_a_reference_for_losses_of_differences(folder, tmp_path) -> None:
    other = str(tmp_path / "nf4")
    load_reference(folder, quantization="nf4").save_pretrained(other)
    run = runs.trained(tmp_path / "out", model=folder, ref_model_name_or_path=other)
    assert torch.equal(logits(run.ref_model), logits(load_reference(folder, quantization="nf4")))
    assert run.reference.drift_monitor is None  # its unquantized form is not known
    with pytest.raises(InputError, match=r"The quantized checkpoint .* cannot be used with dpop.*Name the unquantized"):
        runs.trainer(tmp_path / "b", model=folder, ref_model_name_or_path=other, loss_type="dpop")


@pytest.mark.parametrize("flags", [{"ref_quantization": "nf4"}, {"ref_dtype": "bfloat16"}])
def test_an_adapters_base_is_a_free_reference_and_a_warning_says_so(tmp_path, flags: dict) -> None:
    with pytest.warns(UserWarning, match="base model with the adapter off is a reference that needs no extra memory"):
        run = runs.trained(tmp_path, peft_config=LORA, **flags)
    assert run.ref_model is not None
    assert runs.logs(run)[0]["reference/drift_sequence_std"] > 0


def test_correct_use_is_silent(folder, tmp_path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs.trained(tmp_path / "out", model=folder, ref_quantization="nf4", gradient_checkpointing=False)
    assert not [w for w in caught if "trl_dpo_ext" in w.filename]


def test_qlora_keeps_its_gradients_after_an_evaluation(folder, tmp_path) -> None:
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    with pytest.warns(UserWarning, match="needs no extra memory"):
        run = runs.trainer(
            tmp_path / "out",
            model=folder,
            peft_config=LORA,
            quantization_config=nf4,
            ref_quantization="nf4",
            eval_dataset=tiny.preferences(4),
        )
    run.evaluate()
    before = runs.weights(run)
    run.train()
    moved = {name for name, tensor in runs.weights(run).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    # The same 4-bit weights: what differs is that QLoRA keeps its other layers in another dtype.
    assert abs(run.reference.drift_monitor.measured.sequence_mean) < 0.05


def test_a_reference_in_words(folder, tmp_path) -> None:
    run = runs.trainer(tmp_path / "out", model=folder, ref_quantization="nf4", ref_double_quant=True)
    assert "LlamaForCausalLM in nf4 with quantized scales over float32" in run.describe_reference()
    assert "MiB of weights" in run.describe_reference()
    assert runs.trainer(tmp_path / "b", model=folder).describe_reference().startswith("LlamaForCausalLM in float32, ")
