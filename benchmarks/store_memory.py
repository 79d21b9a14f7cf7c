"""Memory of stored reference log-probs in training, and the time until they can be looked up, with 1 to 4 processes.

A store and a dataset of made-up sequences are written once. Then real processes, which talk through gloo, find that
nothing is missing, read the store, and look one batch up, as a trainer's construction does; no model runs. Memory is
what that adds to each process: its proportional share (PSS), where a page that n processes map counts as 1/n in each,
so that the sum over processes is what the machine needs. Neither pages of files count, which the system can drop, nor
what allocators keep for later. CPU seconds depend less on the machine's other work than wall seconds.

With --store_only, forked processes read the store alone, and for comparison each a copy of its own, as earlier versions
did: no data are searched, and a minute is enough for a million sequences.

Run: python benchmarks/store_memory.py [--before CHECKOUT_OF_AN_EARLIER_VERSION] [--sequences N] [--tokens N]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import inspect
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parent.parent
PROMPT_TOKENS = 50
VOCABULARY = 50_000
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def identity() -> Any:
    from trl_dpo_ext.reference.identity.identity import Identity

    return Identity(weights="made up", config="{}")


def write(folder: Path, pairs: int, tokens: int) -> None:
    """A dataset of pairs in an Arrow file, as `datasets` caches it, and a store that holds all of their sequences."""
    from datasets.arrow_writer import ArrowWriter

    from trl_dpo_ext.reference.store.keys import sequence_key
    from trl_dpo_ext.reference.store.store import Store

    random = np.random.default_rng(0)
    with (
        ArrowWriter(path=str(folder / "data.arrow")) as data,
        Store.open(folder / "refs", identity()).writer() as store,
    ):
        for _ in range(pairs):
            sizes = zip(COLUMNS, (PROMPT_TOKENS, tokens, tokens), strict=True)
            row = {name: random.integers(0, VOCABULARY, size).tolist() for name, size in sizes}
            data.write(row)
            for completion in COLUMNS[1:]:
                key = sequence_key(row["prompt_ids"], row[completion])
                store.add(key, PROMPT_TOKENS, -random.exponential(size=tokens).astype(np.float32))
        data.finalize()


def memory() -> int:
    """Proportional share of this process's memory that is in use, without pages of files, in bytes."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def looking_up(accelerator: Any, folder: Path) -> tuple[Any, Any]:
    """What a trainer's construction does with a store that holds everything: the data, and their collator."""
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    from trl_dpo_ext.reference.precompute.stored import StoredLogps
    from trl_dpo_ext.reference.store.store import Store

    data, collator = Dataset.from_file(str(folder / "data.arrow")), DataCollatorForPreference(0)
    trainer = SimpleNamespace(accelerator=accelerator, args=SimpleNamespace(disable_tqdm=True))
    host = SimpleNamespace(trainer=trainer, collated_columns=lambda: list(COLUMNS), is_sharded=False)
    lazily = {"read_index": False} if "read_index" in inspect.signature(Store.open).parameters else {}
    stored = StoredLogps(host, Store.open(folder / "refs", identity(), **lazily))  # type: ignore[arg-type]
    stored.fill(data, "train", collator, None)  # type: ignore[arg-type]
    made = stored.collator(collator)
    made([data[at] for at in range(8)])
    return data, (stored, made)


def process(folder: Path) -> None:
    """One process."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    looking_up(accelerator, folder / "small")  # so that only what grows with the data is measured
    accelerator.wait_for_everyone()
    before = memory()
    began, cpu = time.perf_counter(), time.process_time()
    data, (_stored, collator) = looking_up(accelerator, folder)
    taken = time.perf_counter() - began, time.process_time() - cpu
    for at in range(0, len(data), len(data) // 500):  # as training reads them
        collator([data[at]])
    touched = float(np.asarray(collator.logps.flat).sum())
    accelerator.wait_for_everyone()
    added = memory() - before
    accelerator.wait_for_everyone()
    result = {"added": added, "wall": taken[0], "cpu": taken[1], "sum": touched}
    (folder / f"result-{accelerator.process_index}.json").write_text(json.dumps(result))
    accelerator.wait_for_everyone()


def together(folder: Path, package: Path, count: int) -> list[dict[str, float]]:
    """What each of `count` processes with the package of this checkout has measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"PYTHONPATH": str(package), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--process", str(folder)]
    children = []
    for rank in range(count):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        variables = {name: str(value) for name, value in place.items()} if count > 1 else {}
        children.append(subprocess.Popen(command, env={**os.environ, **common, **variables}))
    assert [child.wait() for child in children] == [0] * count, "a process has failed"
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(count)]


def write_store(folder: Path, sequences: int, tokens: int) -> None:
    """A store of made-up sequences with made-up keys."""
    from trl_dpo_ext.reference.store.store import Store

    random = np.random.default_rng(0)
    with Store.open(folder, identity()).writer() as store:
        for start in range(0, sequences, 10_000):
            logps = -random.exponential(size=(10_000, tokens)).astype(np.float32)
            for number in range(start, min(start + 10_000, sequences)):
                store.add(b"%016d" % number, PROMPT_TOKENS, logps[number - start])


def read(folder: Path, shared: bool) -> Any:
    """For a forked process: read all of a store, and measure that."""
    from trl_dpo_ext.reference.precompute.processes import Communicator, Node
    from trl_dpo_ext.reference.store.store import Store
    from trl_dpo_ext.reference.store.table import LogpTable

    def work(communicator: Communicator) -> dict[str, float]:
        before = memory()
        began, cpu = time.perf_counter(), time.process_time()
        store = Store.open(folder, identity(), read_index=not shared)
        if shared:
            node = Node.find(communicator, communicator.rank, folder)
            made = node.once(lambda allocate: store.load_arrays(None, allocate), "reading the store")
            store.forget()
            loaded = LogpTable.of(made.arrays, "a store", made.memory)
        else:
            loaded = store.load()
        taken = time.perf_counter() - began, time.process_time() - cpu
        index = loaded.index
        used = (loaded.flat, loaded.offsets, index.high, index.low, index.positions)
        touched = sum(float(array.sum()) for array in used)
        communicator.gather(None)
        added = memory() - before
        communicator.gather(len(store.corrupt))
        return {"added": added, "wall": taken[0], "cpu": taken[1], "sum": touched}

    return work


def store_only(options: argparse.Namespace) -> dict[tuple[str, int], list[dict[str, float]]]:
    sys.path.insert(0, str(ROOT))
    from tests.support import processes

    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        write_store(Path(name) / "refs", options.sequences, options.tokens)
        for count in options.processes:
            for version, shared in (("a copy each", False), ("shared", True)):
                results = processes.together(count, read(Path(name) / "refs", shared), timeout=600)
                assert all(isinstance(result, dict) for result in results), results
                rows[version, count] = results
    assert len({result["sum"] for results in rows.values() for result in results}) == 1, "not the same"
    return rows


def table(rows: dict[tuple[str, int], list[dict[str, float]]]) -> str:
    head = ["version", "processes", "memory of all", "largest of one", "wall", "CPU of all"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (version, count), results in rows.items():
        added = [result["added"] for result in results]
        cells = [version, str(count), mb(sum(added)), mb(max(added))]
        cells += [f"{max(r['wall'] for r in results):.1f} s", f"{sum(r['cpu'] for r in results):.1f} s"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mb(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="checkout of an earlier version to compare with")
    parser.add_argument("--sequences", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=100, help="of each completion")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--store_only", action="store_true", help="read the store without searching data")
    parser.add_argument("--process", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        process(options.process)
        return
    if options.store_only:
        print(table(store_only(options)))
        return
    versions = {**({"before": options.before} if options.before else {}), "now": ROOT}
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "small").mkdir()
        write(Path(name) / "small", 100, 4)
        write(Path(name), options.sequences // 2, options.tokens)
        for count in options.processes:
            for version, package in versions.items():
                rows[version, count] = together(Path(name), package, count)
                assert len({result["sum"] for results in rows.values() for result in results}) == 1, "not the same"
                print(table({(version, count): rows[version, count]}).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
