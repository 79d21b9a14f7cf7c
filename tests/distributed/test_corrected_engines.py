"""A corrected reference under every engine, two processes each: the same bits on both, and the numbers of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.engines import Record, engines, launch
from tests.support import tiny
from tests.support.tolerances import rounding

CORRECTED: dict[str, Any] = {
    "ref_quantization": "nf4",
    "ref_drift_num_pairs": 6,
    "ref_correction_rank": 4,
    "ref_correction_pairs": 8,
}
ALL = ("multi_gpu", "fsdp1", "fsdp2", "zero2", "zero3")

pytestmark = pytest.mark.distributed


def run(folder: Path, engine: str, processes: int = 2, **settings: Any) -> Record:
    folder.mkdir()
    tiny.saved_model(str(folder / "model"))
    tiny.preferences(16).to_json(str(folder / "pairs.jsonl"))
    settings = {"gradient_checkpointing": False, "per_device_train_batch_size": 4 // processes, **CORRECTED, **settings}
    target = "tests.distributed.launched_correction:train"
    return launch(folder, engine, target, settings, processes=processes, flags=["--mixed_precision", "no"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """One process with the same global batch."""
    return run(tmp_path_factory.mktemp("alone") / "job", "single_gpu", 1)


def agrees(split: Record, alone: Record) -> None:
    losses = [line["loss"] for line in alone.steps]
    assert [line["loss"] for line in split.steps] == pytest.approx(losses, abs=2e-4)
    assert split["drift"] == pytest.approx(alone["drift"], abs=rounding(60))
    assert split["drift"]["correction_rank"] == 4


@pytest.mark.parametrize("engine", engines(*ALL))
def test_every_process_holds_the_same_terms(tmp_path, alone: Record, engine: str) -> None:
    split = run(tmp_path / "job", engine)
    agrees(split, alone)
    assert split.ranks[0]["terms"] == split.ranks[1]["terms"]
    assert split.ranks[1]["logits"] == pytest.approx(alone["logits"], abs=1e-3)


@pytest.mark.parametrize("engine", engines("fsdp2", "zero3"))
def test_an_instances_weights_are_what_its_reference_is_corrected_to(tmp_path, alone: Record, engine: str) -> None:
    split = run(tmp_path / "job", engine, instance=True)
    agrees(split, alone)
    assert split.ranks[0]["terms"] == split.ranks[1]["terms"]


@pytest.mark.parametrize("engine", engines("multi_gpu", "fsdp2", "zero3"))
def test_a_corrected_reference_is_stored_and_freed(tmp_path, alone: Record, engine: str) -> None:
    store = {"precompute_ref_log_probs": True, "ref_store": str(tmp_path / "store")}
    agrees(run(tmp_path / "job", engine, **store), alone)
    assert "corrected rank 4 on" in (tmp_path / "store" / "manifest.json").read_text()
