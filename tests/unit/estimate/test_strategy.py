"""Parallel strategies are read from accelerate and DeepSpeed configurations."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.support.published_models import MODELS
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.estimate.formulas import Training, estimate
from trl_dpo_ext.estimate.model_size import compute_model_size
from trl_dpo_ext.estimate.strategy import ParallelStrategy, read_strategy
from trl_dpo_ext.recipe_registry import accelerate_configs


def test_every_shipped_accelerate_config_is_read() -> None:
    kinds = {name: read_strategy(file) for name, file in accelerate_configs().items()}
    assert kinds["cpu"].on_cpu
    for name, strategy in kinds.items():
        if name[:4] in ("fsdp", "zero"):
            assert strategy.kind == name[:5]
            assert strategy.offload == name.endswith("offload")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"distributed_type": "NO"}, "single"),
        ({"distributed_type": False}, "single"),  # what YAML makes of a bare NO
        ({"distributed_type": "MULTI_GPU", "num_processes": 4}, "ddp"),
        ({"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {"fsdp_version": 1}}, "fsdp1"),
        ({"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {"fsdp_version": 2}}, "fsdp2"),
        ({"distributed_type": "DEEPSPEED", "num_processes": 4, "deepspeed_config": {"zero_stage": 2}}, "zero2"),
    ],
)
def test_the_engine_is_read_from_an_accelerate_config(tmp_path, keys: dict[str, Any], kind: str) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(keys))
    assert read_strategy(tmp_path / "a.yaml").kind == kind


FSDP = {"distributed_type": "FSDP", "num_processes": 16, "num_machines": 2}


@pytest.mark.parametrize(
    ("fsdp", "shards", "keeps"),
    [
        ({"fsdp_version": 1}, 16, False),
        ({"fsdp_version": 1, "fsdp_sharding_strategy": "SHARD_GRAD_OP"}, 16, True),
        ({"fsdp_version": 1, "fsdp_sharding_strategy": 4}, 8, False),
        ({"fsdp_version": 1, "fsdp_sharding_strategy": "HYBRID_SHARD_ZERO2"}, 8, True),
        ({"fsdp_version": 2, "fsdp_reshard_after_forward": False}, 16, True),
        ({"fsdp_version": 2}, 16, False),
    ],
)
def test_how_fsdp_shards_is_read(tmp_path, fsdp: dict[str, Any], shards: int, keeps: bool) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**FSDP, "fsdp_config": fsdp}))
    strategy = read_strategy(tmp_path / "a.yaml")
    assert (strategy.shards, strategy.keeps_gathered) == (shards, keeps)
    size = compute_model_size(MODELS["llama-3-8b"][0]())
    kept = (
        estimate(size, Training(), strategy).sharding
        - estimate(size, Training(), ParallelStrategy("fsdp2", 16)).sharding
    )
    assert kept == pytest.approx(2 * size.linear * (30 / 32) if keeps else 0)


def test_deepspeeds_own_file_is_read(tmp_path) -> None:
    zero = {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "none"}}
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": zero}))
    keys = {"distributed_type": "DEEPSPEED", "num_processes": 8}
    keys["deepspeed_config"] = {"deepspeed_config_file": str(tmp_path / "zero.json")}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(keys))
    strategy = read_strategy(tmp_path / "a.yaml")
    assert (strategy.kind, strategy.offload, strategy.offload_optimizer) == ("zero3", True, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "is not valid YAML"),
        ("- a", "must hold a YAML mapping"),
        ("distributed_type: TPU\nnum_processes: 8", "distributed_type TPU is not supported"),
        ("num_processes: many", "invalid literal for int"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 4}", "ZeRO stage 4 does not exist"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: no.json}", "No such file"),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_sharding_strategy: ALL}",
            "fsdp_sharding_strategy ALL is not one of",
        ),
    ],
)
def test_a_configuration_that_is_none_is_named(tmp_path, text: str, expected: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=expected) as caught:
        read_strategy(tmp_path / "a.yaml")
    assert "a.yaml" in str(caught.value)
