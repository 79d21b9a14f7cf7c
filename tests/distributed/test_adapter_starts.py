"""A start from a saved adapter under the engines that shard: the adapter trains, and its frozen copy is the reference."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.distributed.engines import launch, needs_deepspeed
from tests.support import tiny
from tests.support.references import logits

pytestmark = pytest.mark.distributed

STORED = ["--precompute_ref_log_probs", "true"]
MERGED = ["--merge_adapter", "true"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sft")
    base = AutoModelForCausalLM.from_pretrained(tiny.saved_model(str(folder / "base")))
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(str(folder / "adapter"))
    return str(folder / "adapter")


@pytest.mark.parametrize(
    ("engine", "more"),
    [
        pytest.param("fsdp1_lora", [], id="fsdp1"),
        pytest.param("fsdp1_lora", STORED, id="fsdp1 stored"),
        pytest.param("fsdp2", MERGED, id="fsdp2 merged"),
        pytest.param("fsdp2", STORED, id="fsdp2 stored"),
        pytest.param("zero3", [], id="zero3", marks=needs_deepspeed),
        pytest.param("zero3", STORED, id="zero3 stored", marks=needs_deepspeed),
    ],
)
def test_a_saved_adapter_is_the_start_and_the_reference(
    tmp_path: Path, adapter: str, engine: str, more: list[str]
) -> None:
    tiny.preferences(8).to_json(str(tmp_path / "pairs.jsonl"))
    out = tmp_path / "out"
    flags = ["--model_name_or_path", adapter, "--dataset_name", str(tmp_path / "pairs.jsonl"), "--output_dir", str(out)]
    flags += ["--max_steps", "2", "--logging_steps", "1", "--report_to", "none", "--ddp_backend", "gloo"]
    flags += ["--learning_rate", "0.01", "--save_strategy", "no", "--per_device_train_batch_size", "2"]
    flags += ["--ref_store", str(tmp_path / "refs")] if more == STORED else []
    record = launch(tmp_path / "job", engine, ["-m", "trl_dpo_ext", "train", *flags, *more], processes=2)
    first = next(line for line in record["logs"] if "loss" in line)
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)  # in bf16, from rows of other lengths
    assert first["grad_norm"] > 0
    kind = AutoModelForCausalLM if more == MERGED else peft.AutoPeftModelForCausalLM
    moved = logits(kind.from_pretrained(out, dtype=torch.float32)) - logits(
        peft.AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
    )
    assert 0 < moved.abs().max() < 1
