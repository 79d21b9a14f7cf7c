"""The store under every engine: filled by two processes as by one, read without a cast, and none the worse for a kill."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest

from tests.distributed import engines
from tests.support import tiny
from tests.support.tolerances import rounding
from trl_dpo_ext.reference.store.store import Store

pytestmark = pytest.mark.distributed
FLAGS = ["--mixed_precision", "no"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and an odd number of pairs, and the store that one process makes of them."""
    folder = tmp_path_factory.mktemp("files")
    tiny.saved_model(str(folder / "model"))
    tiny.preferences(7).to_json(str(folder / "pairs.jsonl"))
    return folder


def job(tmp_path: Path, files: Path) -> Path:
    folder = tmp_path / "job"
    folder.mkdir(exist_ok=True)
    for name in ("model", "pairs.jsonl"):
        if not (folder / name).exists():
            (folder / name).symlink_to(files / name)
    return folder


def stored(folder: Path) -> dict[bytes, np.ndarray]:
    loaded = Store.read_only(folder).load()
    keys = [part.packed_keys for part in Store.read_only(folder).parts]
    words = np.unique(np.concatenate(keys), axis=0)
    found = [row.astype(">u8").tobytes() for row in words]
    return dict(zip(found, loaded.values(found), strict=True))


@pytest.fixture(scope="module")
def by_one(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, np.ndarray]:
    folder = job(tmp_path_factory.mktemp("one"), files)
    engines.launch(folder, "single_gpu", "tests.distributed.storing:train", processes=1, flags=FLAGS)
    return stored(folder / "refs")


def assert_equal(ours: dict[bytes, np.ndarray], expected: dict[bytes, np.ndarray]) -> None:
    assert ours.keys() == expected.keys()
    for key, logps in expected.items():
        np.testing.assert_allclose(ours[key], logps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", engines.engines())
def test_two_processes_of_every_engine_store_what_one_stores_and_train_from_it(engine, tmp_path, files, by_one):
    folder = job(tmp_path, files)
    first = engines.launch(
        folder, engine, "tests.distributed.storing:train", {"per_device_train_batch_size": 2}, flags=FLAGS
    )
    assert_equal(stored(folder / "refs"), by_one)
    assert first["report"]["computed"] == len(by_one)
    assert first.steps[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert first.steps[0]["rewards/margins"] == pytest.approx(0, abs=rounding(0.1 * 60))

    again = engines.launch(
        folder, engine, "tests.distributed.storing:train", {"seed": 3, "per_device_train_batch_size": 1}, flags=FLAGS
    )
    assert again["report"]["computed"] == 0
    assert again["report"]["found"] == len(by_one)


@pytest.mark.parametrize("engine", engines.engines("fsdp2", "zero3"))
def test_a_reference_that_was_given_is_compared_with_what_is_stored(engine, tmp_path, files, by_one):
    folder = job(tmp_path, files)
    target, settings = "tests.distributed.storing:train", {"reference": "model"}
    engines.launch(folder, engine, target, settings, flags=FLAGS)
    again = engines.launch(folder, engine, target, settings, flags=FLAGS)
    assert again["report"]["found"] == len(by_one)
    assert again.steps[0]["loss"] == pytest.approx(0.6931, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"in_memory": True},
        # Two steps, so that training does not meet the odd pair; dispatched batches TRL cannot train on at all.
        {"accelerator_config": {"even_batches": False}, "per_device_train_batch_size": 1},
        {"accelerator_config": {"dispatch_batches": True}, "fill_only": True},
        {"accelerator_config": {"split_batches": True}, "per_device_train_batch_size": 2},
        {"lora": {"r": 2, "target_modules": ["q_proj"]}},
        {"ref_store": "refs-{rank}"},
    ],
    ids=["data in memory", "uneven", "dispatched", "split", "LoRA", "a folder on each node"],
)
def test_two_processes_in_ways_that_trls_pass_does_not_survive(settings, tmp_path, files, by_one):
    folder = job(tmp_path, files)
    record = engines.launch(folder, "multi_gpu", "tests.distributed.storing:train", settings, flags=FLAGS)
    if "fill_only" not in settings:
        assert record.steps[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    for name in ["refs"] if "ref_store" not in settings else ["refs-0", "refs-1"]:
        assert_equal(stored(folder / name), by_one)


@pytest.mark.parametrize("engine", engines.engines("fsdp1", "fsdp1_lora", "fsdp2", "zero2", "zero3"))
def test_with_an_adapter_it_is_the_base_that_is_stored(engine, tmp_path, files, by_one):
    folder = job(tmp_path, files)
    # An adapter that starts as noise: what is stored must not have seen it.
    lora = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    settings = {
        "lora": lora,
        "per_device_train_batch_size": 2,
        "verify_reference": False,
        "gradient_checkpointing": True,
    }
    record = engines.launch(folder, engine, "tests.distributed.storing:train", settings, flags=FLAGS)
    assert_equal(stored(folder / "refs"), by_one)
    assert abs(record.steps[0]["rewards/margins"]) > 1e-3  # and the policy has


@pytest.mark.parametrize("engine", engines.engines("fsdp1", "fsdp2"))
def test_of_an_adapter_that_is_trained_on_its_start_is_stored(engine, tmp_path, files, by_one):
    folder = job(tmp_path, files)
    record = engines.launch(
        folder, engine, "tests.distributed.storing:train_on", {"per_device_train_batch_size": 2}, flags=FLAGS
    )
    ours = stored(folder / "refs")
    assert ours.keys() == by_one.keys()
    assert max(abs(ours[key] - logps).max() for key, logps in by_one.items()) > 0.1
    assert record.steps[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # the self-check has compared them too


def test_two_processes_share_the_work(tmp_path, files):
    folder = job(tmp_path, files)
    (folder / "pairs.jsonl").unlink()
    many_pairs(folder / "pairs.jsonl", 200)
    record = engines.launch(
        folder, "multi_gpu", "tests.distributed.storing:train", {"precompute_ref_max_tokens": 200}, flags=FLAGS
    )
    assert record["report"]["computed"] == len(Store.read_only(folder / "refs"))  # nothing twice
    assert len(Store.read_only(folder / "refs").parts) > 1  # each process wrote parts


def many_pairs(file: Path, pairs: int) -> None:
    words, chance = tiny.SENTENCE.split(), random.Random(0)
    rows = [
        {
            side: " " + " ".join(chance.choices(words, k=chance.randint(4, 15)))
            for side in ("prompt", "chosen", "rejected")
        }
        for _ in range(pairs)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("engine", engines.engines("multi_gpu", "zero3"))
def test_a_launched_pass_that_is_killed_goes_on_where_it_stopped(engine, tmp_path, files):
    folder = job(tmp_path, files)
    (folder / "pairs.jsonl").unlink()
    many_pairs(folder / "pairs.jsonl", 1500)
    slow = {"precompute_ref_max_tokens": 40}
    running = engines.start(folder, engine, "tests.distributed.storing:train", slow, flags=FLAGS)
    deadline = time.monotonic() + 300
    while not list((folder / "refs" / "parts").glob("*.parquet")):
        assert time.monotonic() < deadline, running.printed[-3000:]
        time.sleep(0.05)
    running.kill()
    kept = len(Store.read_only(folder / "refs"))
    assert kept > 0
    record = engines.launch(
        folder, engine, "tests.distributed.storing:train", {"precompute_ref_max_tokens": 2000}, flags=FLAGS
    )
    assert record["report"]["found"] == kept
    assert record["report"]["found"] + record["report"]["computed"] == len(Store.read_only(folder / "refs"))


@pytest.mark.parametrize("nodes", [1, 2])
def test_of_four_processes_one_of_each_node_reads_and_the_others_map_what_it_read(nodes, tmp_path, files, by_one):
    folder = job(tmp_path, files)
    settings = {"per_device_train_batch_size": 1, "seed": 3}
    launched = {"processes": 4, "nodes": nodes, "flags": FLAGS}
    first = engines.launch(folder, "multi_gpu", "tests.distributed.storing:train", settings, **launched)
    assert first["report"]["computed"] == len(by_one)
    again = engines.launch(folder, "multi_gpu", "tests.distributed.storing:train_counting", settings, **launched)
    assert again.steps == first.steps
    assert again["report"] == {**again["report"], "computed": 0, "found": len(by_one)}
    readers = [rank for rank, record in enumerate(again.ranks) if record["read"]]
    assert readers == ([0] if nodes == 1 else [0, 2])
    assert all(record["mapped"][0] > 0 for record in again.ranks)


def test_of_a_killed_reader_the_others_tell_and_end(tmp_path, files):
    folder = job(tmp_path, files)
    with pytest.raises(engines.JobFailed, match=r"SIGKILL|Signal 9|exitcode: -9"):
        engines.launch(folder, "multi_gpu", "tests.distributed.storing:fill_without_reader", processes=3, flags=FLAGS)
    said = [file.read_text() for file in sorted(folder.glob("raised-*.txt"))]
    assert said
    assert all("Process 0 ended while reading the train dataset" in each for each in said)


@pytest.mark.parametrize("engine", engines.engines("multi_gpu", "fsdp1", "fsdp2", "zero3"))
def test_rows_with_and_without_images_are_stored_by_two_processes_of_every_engine(engine, tmp_path):
    """Processes that gather weights for each module would wait forever if one alone ran the vision tower."""
    stores = []
    for name, processes in (("single_gpu", 1), (engine, 2)):
        folder = tmp_path / name
        folder.mkdir()
        settings = {"family": "qwen2.5-vl", "precompute_ref_max_tokens": 60}
        record = engines.launch(
            folder, name, "tests.distributed.storing:fill_with_images", settings, processes=processes, flags=FLAGS
        )
        assert record["report"]["images"] == 7  # each once for both sides
        stores.append(stored(folder / "refs"))
    assert_equal(stores[1], stores[0])
