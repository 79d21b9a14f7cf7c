"""A reference that is not the policy's copy under every engine, two processes each: whole, frozen, and the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.engines import Record, engines, launch
from tests.support import tiny
from tests.support.tolerances import rounding

FLAGS = ["--mixed_precision", "no"]
NF4: dict[str, Any] = {"ref_quantization": "nf4", "ref_drift_num_pairs": 6, "ref_calibrate": True, "loss_type": "dpop"}
ALL = ("multi_gpu", "fsdp1", "fsdp2", "zero2", "zero3")
LORA: dict[str, Any] = {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}

pytestmark = pytest.mark.distributed


def run(folder: Path, engine: str, processes: int = 2, **settings: Any) -> Record:
    folder.mkdir()
    tiny.saved_model(str(folder / "model"))
    tiny.preferences(16).to_json(str(folder / "pairs.jsonl"))
    settings = {"gradient_checkpointing": False, "per_device_train_batch_size": 4 // processes, **settings}
    return launch(
        folder, engine, "tests.distributed.launched_reference:train", settings, processes=processes, flags=FLAGS
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """One process with the same global batch, for full training and for LoRA."""
    folder = tmp_path_factory.mktemp("alone")
    return {
        "full": run(folder / "full", "single_gpu", 1, **NF4),
        "lora": run(folder / "lora", "single_gpu", 1, **NF4, **LORA),
        "bf16": run(folder / "bf16", "single_gpu", 1, ref_dtype="bfloat16"),
    }


def same_training(split: Record, whole: Record) -> None:
    losses = [line["loss"] for line in whole.steps]
    assert len(losses) == 3
    assert losses[0] != losses[2]
    assert [line["loss"] for line in split.steps] == pytest.approx(losses, abs=2e-4)
    assert all(line["grad_norm"] > 0 for line in split.steps)
    assert split["drift"] == pytest.approx(whole["drift"], abs=rounding(60))
    assert split.ranks[1]["drift"] == split["drift"]


def is_whole_and_unchanged(record: Record) -> None:
    for rank in record.ranks:
        assert rank["units"] == []
        assert (rank["training"], rank["grad"], rank["unchanged"]) == (False, False, True)


@pytest.mark.parametrize("engine", engines(*ALL))
def test_a_quantized_reference_is_whole_on_every_process(tmp_path, alone: dict[str, Record], engine: str) -> None:
    split = run(tmp_path / "job", engine, **NF4)
    same_training(split, alone["full"])
    is_whole_and_unchanged(split)


@pytest.mark.parametrize("engine", engines("fsdp2", "zero3"))
def test_a_reference_of_an_instances_weights(tmp_path, alone: dict[str, Record], engine: str) -> None:
    split = run(tmp_path / "job", engine, instance=True, **NF4)
    same_training(split, alone["full"])
    is_whole_and_unchanged(split)


@pytest.mark.parametrize("engine", engines("fsdp2", "zero3"))
def test_a_quantized_reference_beside_lora(tmp_path, alone: dict[str, Record], engine: str) -> None:
    split = run(tmp_path / "job", engine, **NF4, **LORA)
    same_training(split, alone["lora"])
    is_whole_and_unchanged(split)


@pytest.mark.parametrize("engine", engines("multi_gpu", "fsdp2", "zero3"))
def test_a_quantized_reference_beside_qlora(tmp_path, engine: str) -> None:
    split = run(tmp_path / "job", engine, **NF4, **LORA, qlora="uint8")
    assert all(line["grad_norm"] > 0 for line in split.steps)
    is_whole_and_unchanged(split)
    assert abs(split["drift"]["sequence_mean"]) < 0.05  # the same 4-bit weights


@pytest.mark.parametrize("engine", engines("multi_gpu", "fsdp2", "zero3"))
def test_a_quantized_reference_is_stored_and_freed(tmp_path, alone: dict[str, Record], engine: str) -> None:
    store = {"precompute_ref_log_probs": True, "ref_store": str(tmp_path / "store")}
    split = run(tmp_path / "job", engine, **NF4, **store)
    same_training(split, alone["full"])
    assert (tmp_path / "store" / "manifest.json").is_file()


@pytest.mark.parametrize("engine", engines("fsdp1", "fsdp2", "zero2"))
def test_an_unquantized_reference_keeps_its_dtype(tmp_path, alone: dict[str, Record], engine: str) -> None:
    split = run(tmp_path / "job", engine, ref_dtype="bfloat16")
    losses = [line["loss"] for line in alone["bf16"].steps]
    assert [line["loss"] for line in split.steps] == pytest.approx(losses, abs=2e-4)
    assert split["drift"]["sequence_std"] == pytest.approx(alone["bf16"]["drift"]["sequence_std"], rel=0.05)
    layers = [] if engine == "zero2" else ["", "model.layers.0"]
    assert [name.replace("_fsdp_wrapped_module.", "") for name in split["units"]] == layers


@pytest.mark.parametrize("engine", engines("fsdp2"))
def test_trls_own_reference_is_split_layer_by_layer_too(tmp_path, engine: str) -> None:
    assert run(tmp_path / "job", engine)["units"] == ["", "model.layers.0"]


@pytest.mark.parametrize("engine", engines("fsdp1"))
def test_qlora_under_fsdp1_trains_where_all_weights_have_one_dtype(tmp_path, engine: str) -> None:
    one = {"qlora": "bfloat16", "model_init_kwargs": {"dtype": "bfloat16"}}
    split = run(tmp_path / "job", engine, **LORA, **one)
    assert all(line["grad_norm"] > 0 for line in split.steps)
