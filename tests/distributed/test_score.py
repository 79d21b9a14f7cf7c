"""Scores by two processes under every engine are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tests.distributed import engines
from tests.support import scoring, tiny
from trl_dpo_ext import score_preferences
from trl_dpo_ext.reference.store.store import Store

pytestmark = pytest.mark.distributed
FLAGS = ["--mixed_precision", "no"]
WRAPPED = {
    "multi_gpu": {"LlamaForCausalLM", "PeftModelForCausalLM"},
    "fsdp1": {"FullyShardedDataParallel"},
    "fsdp2": {"FSDPLlamaForCausalLM", "FSDPPeftModelForCausalLM"},
    "zero2": {"DeepSpeedEngine"},
    "zero3": {"DeepSpeedEngine"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and an odd number of pairs, of which one is too long."""
    folder = tmp_path_factory.mktemp("files")
    scoring.saved_models(folder)
    rows: list[Any] = tiny.preferences(7).to_list()
    rows[2] = {**rows[2], "prompt": "well let me think about that it is a very good question say yes"}
    Dataset.from_list(rows).to_json(str(folder / "pairs.jsonl"))
    return folder


@pytest.fixture(scope="module")
def by_one(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pairs = Dataset.from_json(str(files / "pairs.jsonl"))
    args = scoring.config(tmp_path_factory.mktemp("one"), max_length=14)
    results = {
        "adapter": score_preferences(str(files / "adapter"), pairs, args=args),
        "policy": score_preferences(str(files / "policy"), pairs, args=args, reference=str(files / "base")),
    }
    return {name: {of: scoring.sums(result.pairs, of) for of in ("policy", "ref")} for name, result in results.items()}


def job(tmp_path: Path, files: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir()
    for name in ("base", "policy", "adapter", "pairs.jsonl"):
        (folder / name).symlink_to(files / name)
    return folder


def check(record: engines.Record, by_one: dict[str, Any], engine: str) -> None:
    """Compare what every process has found with what one process finds, and see that the engine ran the models."""
    assert record["processes"] == 2
    for name, expected in by_one.items():
        for rank in record.ranks:
            found = rank["scores"][name]
            for of in ("policy", "ref"):
                np.testing.assert_allclose(found[of], expected[of], atol=scoring.ATOL, rtol=0)
            assert {*found["ran"]} <= WRAPPED[engine]


@pytest.mark.parametrize("engine", engines.engines(*WRAPPED))
def test_two_processes_score_as_one(engine, tmp_path, files, by_one):
    folder = job(tmp_path, files)
    record = engines.launch(folder, engine, "tests.distributed.scoring:score", {"max_length": 14}, flags=FLAGS)
    check(record, by_one, engine)
    for name in by_one:
        assert record["scores"][name]["passes"]["policy"]["computed"] == 12  # six rows are kept, of two sequences each
        assert record["scores"][name]["ran"]


def test_a_killed_score_goes_on_where_it_was(tmp_path, files, by_one):
    folder = job(tmp_path, files)
    small = {"max_length": 14, "precompute_ref_max_tokens": 8, "precompute_ref_log_probs": True}
    with pytest.raises(engines.JobFailed, match=r"SIGKILL|Signal 9"):  # and nothing else has failed
        engines.launch(folder, "multi_gpu", "tests.distributed.scoring:score_and_die", small, flags=FLAGS)
    kept = len(Store.read_only(folder / "work" / "adapter" / "policy"))
    assert 0 < kept < 12
    record = engines.launch(folder, "multi_gpu", "tests.distributed.scoring:score", small, flags=FLAGS)
    passes = record["scores"]["adapter"]["passes"]
    assert (passes["policy"]["found"], passes["policy"]["computed"]) == (kept, 12 - kept)
    check(record, by_one, "multi_gpu")
    again = engines.launch(folder, "multi_gpu", "tests.distributed.scoring:score", small, flags=FLAGS)
    for name in by_one:
        assert again["scores"][name]["passes"]["policy"]["computed"] == 0
        assert again["scores"][name]["passes"]["reference"]["computed"] == 0
        assert again["scores"][name]["ran"] == []


def test_the_command_writes_and_prints_once(tmp_path, files, by_one):
    folder = job(tmp_path, files)
    flags = [
        "--model_name_or_path",
        "adapter",
        "--dataset_name",
        "pairs.jsonl",
        "--max_length",
        "14",
        "--bf16",
        "false",
    ]
    flags += ["--output", "scored.parquet", "--report_to", "none", "--disable_tqdm", "true", "--beta", "0.5"]
    argv = {"argv": ["score", *flags]}
    record = engines.launch(folder, "multi_gpu", "tests.distributed.scoring:command", argv, flags=FLAGS)
    assert record.printed.count("Wrote scored.parquet: 7 rows") == 1
    assert record.printed.count("Policy     adapter") == 1
    written = Dataset.from_parquet(str(folder / "scored.parquet"))
    found = np.array([written[f"dpo_policy_{side}_logps"][:] for side in ("chosen", "rejected")], dtype=float).T
    np.testing.assert_allclose(found, by_one["adapter"]["policy"], atol=scoring.ATOL, rtol=0)
    assert not (folder / "scored.parquet.work").exists()
