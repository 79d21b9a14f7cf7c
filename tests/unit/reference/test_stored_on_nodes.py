"""The stored log-probs of a run over several processes: one of each node reads data and store, all look them up."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tests.support.processes import mapped_memory, together
from tests.support.stored import REFERENCE, corrupt_values
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.precompute import stored, wanted
from trl_dpo_ext.reference.precompute.batching import Batch
from trl_dpo_ext.reference.precompute.pass_run import Fetch
from trl_dpo_ext.reference.precompute.processes import Communicator
from trl_dpo_ext.reference.precompute.sequences import TokenSequence, batch_sequences
from trl_dpo_ext.reference.precompute.stored import StoredLogps
from trl_dpo_ext.reference.store import parts, table
from trl_dpo_ext.reference.store import store as stores
from trl_dpo_ext.reference.store.store import Store

pytestmark = pytest.mark.slow

ROWS = 60
COLLATOR = DataCollatorForPreference(0)


def data(start: int = 0, rows: int = ROWS) -> Dataset:
    made: dict[str, list[list[int]]] = {name: [] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}
    for number in range(start, start + rows):
        for at, column in enumerate(made.values()):
            column.append([number + 1] * (1 + (number + at) % 5))
    return Dataset(pa.table({name: pa.array(column, pa.list_(pa.int64())) for name, column in made.items()}))


def rows_of(dataset: Dataset) -> list[dict[str, Any]]:
    return [dataset[at] for at in range(len(dataset))]


def logps(sequence: TokenSequence) -> np.ndarray:
    return -(np.arange(len(sequence.completion)) + sequence.prompt[0] / 7).astype(np.float32)


def sequences(dataset: Dataset) -> dict[bytes, TokenSequence]:
    return {each.key: each for each in batch_sequences(COLLATOR(rows_of(dataset))) if each is not None}


class Counts:
    """What a process has read: parts' indexes and log-probs, and batches of rows whose keys it has computed."""

    def __init__(self) -> None:
        self.indexes = self.logps = self.keys = self.computed = 0

    def count(self, patch: pytest.MonkeyPatch) -> None:
        def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*args: Any) -> Any:
                setattr(self, name, getattr(self, name) + 1)
                return function(*args)

            return counting

        patch.setattr(stores, "read_part", counted("indexes", parts.read_part))
        read = counted("logps", parts.read_logps)
        patch.setattr(stores, "read_logps", read)
        patch.setattr(table, "read_logps", read)
        patch.setattr(wanted, "packed_sequence_keys", counted("keys", wanted.packed_sequence_keys))

    @property
    def anything(self) -> bool:
        return bool(self.indexes + self.logps + self.keys)


def opened(folder: Path, communicator: Communicator, local_rank: int | None = None) -> StoredLogps:
    accelerator = SimpleNamespace(
        local_process_index=communicator.rank if local_rank is None else local_rank, device=torch.device("cpu")
    )
    host = SimpleNamespace(
        trainer=SimpleNamespace(accelerator=accelerator, args=SimpleNamespace(disable_tqdm=True)),
        collated_columns=lambda: None,
        is_sharded=False,
        has_images=False,
    )
    made = StoredLogps(host, Store.open(folder, REFERENCE, read_index=False), max_tokens=20)  # type: ignore[arg-type]
    made.communicator = communicator
    return made


@pytest.fixture(autouse=True)
def _made_up_model(monkeypatch) -> None:
    def starter(*_: Any) -> Callable[[Batch], Fetch]:
        return lambda batch: lambda: [logps(sequence) for sequence in batch.sequences]

    monkeypatch.setattr(stored, "packing_problems", lambda _: [])
    monkeypatch.setattr(stored, "_starter", starter)


@contextlib.contextmanager
def running() -> Iterator[tuple[Any, Any]]:
    yield None, SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: None), dtype=torch.float32)


@contextlib.contextmanager
def not_running() -> Iterator[tuple[Any, Any]]:
    raise AssertionError("the reference was asked for, but nothing is missing")
    yield


def assert_right(found: Any, *datasets: Dataset) -> None:
    for dataset in datasets:
        for key, sequence in sequences(dataset).items():
            np.testing.assert_array_equal(found[key], logps(sequence))


def raised(results: list[Any]) -> list[str]:
    """What each process has raised."""
    for result in results:
        assert isinstance(result, InputError), result
    return [str(result) for result in results]


def right(results: list[Any]) -> list[Any]:
    """What each process has returned."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("local_ranks", [[0, 1, 2, 3], [0, 1, 0, 1]], ids=["one node", "two nodes"])
def test_one_process_of_each_node_reads_and_all_have_the_same(tmp_path, local_ranks: list[int]) -> None:
    def work(communicator: Communicator) -> Any:
        counts, run = Counts(), opened(tmp_path / "refs", communicator, local_ranks[communicator.rank])
        with pytest.MonkeyPatch.context() as patch:
            run.fill(data(), "train", COLLATOR, running)
            computed = vars(run.stats).copy()
            counts.count(patch)
            again = opened(tmp_path / "refs", communicator, local_ranks[communicator.rank])
            again.fill(data(), "train", COLLATOR, not_running)
            again.fill(data(10, 20), "eval", COLLATOR, not_running)
            collator = again.collator(COLLATOR)
            assert_right(collator.logps, data())
            batch = collator(rows_of(data(3, 2)))["ref_token_logps"]
        communicator.gather(None)
        return counts.anything, computed, vars(again.stats), batch.tolist(), mapped_memory()

    results = right(together(4, work))
    assert [result[0] for result in results] == [local == 0 for local in local_ranks]
    expected = len(sequences(data()))
    for _, computed, found, batch, (mapped, _) in results:
        assert (computed["computed"], computed["found"]) == (expected, 0)
        assert (found["computed"], found["found"]) == (0, expected + len(sequences(data(10, 20))))
        assert batch == results[0][3]
        assert mapped > 0


def test_data_of_ones_own_on_one_process_are_found_and_computed(tmp_path) -> None:
    def work(communicator: Communicator) -> Any:
        counts, mine = Counts(), data(0 if communicator.rank != 2 else 40)
        run = opened(tmp_path / "refs", communicator)
        with pytest.MonkeyPatch.context() as patch:
            counts.count(patch)
            run.fill(mine, "train", COLLATOR, running)
        collator = run.collator(COLLATOR)
        assert_right(collator.logps, data(), data(40))
        return bool(counts.keys), len(collator.logps)

    everything = len({**sequences(data()), **sequences(data(40))})
    results = right(together(4, work))
    assert results == [(True, everything), (False, everything), (True, everything), (False, everything)]


def test_one_changed_token_of_one_process_is_found(tmp_path) -> None:
    """As after a file that was written anew between two processes' reading."""

    def work(communicator: Communicator) -> None:
        rows: Any = data().to_dict()
        if communicator.rank == 1:
            rows["rejected_ids"][17][-1] = 9999
        mine = Dataset.from_dict(rows)
        run = opened(tmp_path / "refs", communicator)
        run.fill(mine, "train", COLLATOR, running)
        assert_right(run.collator(COLLATOR).logps, mine)

    right(together(3, work))
    assert len(Store.read_only(tmp_path / "refs")) == len(sequences(data())) + 1


def test_another_collator_of_each_process_is_asked_by_itself(tmp_path) -> None:
    def work(communicator: Communicator) -> None:
        def collator(rows: list[Any]) -> Any:
            return COLLATOR([{**row, "prompt_ids": [communicator.rank + 1]} for row in rows])

        run = opened(tmp_path / "refs", communicator)
        run.fill(data(), "train", collator, running)
        run.collator(collator)(rows_of(data()))  # finds what it asks for

    right(together(3, work))
    assert len(Store.read_only(tmp_path / "refs")) > 2 * len(sequences(data()))


def test_a_new_dataset_is_added_to_what_was_loaded(tmp_path) -> None:
    def work(communicator: Communicator) -> int:
        run = opened(tmp_path / "refs", communicator)
        run.fill(data(), "train", COLLATOR, running)
        collator = run.collator(COLLATOR)
        before = collator.logps
        run.fill(data(100, 20), "eval", COLLATOR, running)
        assert_right(collator.logps, data(), data(100, 20))
        assert_right(before, data())  # a worker that was forked before still has it
        return len(collator.logps)

    assert right(together(2, work)) == [len(sequences(data())) + len(sequences(data(100, 20)))] * 2


def test_a_stream_is_served_from_all_of_the_store(tmp_path) -> None:
    def work(communicator: Communicator) -> int:
        run = opened(tmp_path / "refs", communicator)
        run.fill(data(), "train", COLLATOR, running)
        run.fill(data(0, 5).to_iterable_dataset(), "eval", COLLATOR, not_running)
        run.fill(data(70, 5).to_iterable_dataset(), "more", COLLATOR, running, streams=True)
        return len(run.collator(COLLATOR).logps)

    assert right(together(2, work)) == [len(sequences(data())) + len(sequences(data(70, 5)))] * 2


def test_a_corrupt_part_is_found_once_and_computed_anew(tmp_path) -> None:
    alone = opened(tmp_path / "refs", Communicator())
    for start in (0, 100):
        alone.fill(data(start), "train", COLLATOR, running)
    corrupt_values(alone.store.parts[0].path)

    def work(communicator: Communicator) -> Any:
        run = opened(tmp_path / "refs", communicator)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for start in (0, 100):
                run.fill(data(start), "train", COLLATOR, running)
        assert_right(run.collator(COLLATOR).logps, data(), data(100))
        return [str(warning.message) for warning in caught if "corrupt" in str(warning.message)], run.stats.computed

    results = right(together(3, work))
    assert [len(said) for said, _ in results] == [1, 0, 0]
    assert "is corrupt: the checksum of its log-probs" in results[0][0][0]
    assert {computed for _, computed in results} == {len(sequences(data()))}


def test_a_part_that_is_altered_before_it_is_loaded_ends_all_processes(tmp_path) -> None:
    def work(communicator: Communicator) -> None:
        run = opened(tmp_path / "refs", communicator)
        run.fill(data(), "train", COLLATOR, running)
        if communicator.rank == 0:
            for part in run.store.parts:
                corrupt_values(part.path)
        warnings.simplefilter("ignore")
        run.collator(COLLATOR)

    first, *others = together(3, work)
    assert "sequences are not in the reference store" in str(first)
    for said in raised(others):
        assert "Process 0 failed while reading the reference store" in said
        assert "sequences are not in the reference store" in said


def test_a_read_only_store_that_holds_everything_is_enough(tmp_path, monkeypatch) -> None:
    opened(tmp_path / "refs", Communicator()).fill(data(), "train", COLLATOR, running)
    monkeypatch.setattr(stores, "write_error", lambda _: "Read-only file system")

    def work(communicator: Communicator) -> None:
        run = opened(tmp_path / "refs", communicator)
        run.fill(data(), "train", COLLATOR, not_running)
        assert_right(run.collator(COLLATOR).logps, data())

    before = sorted((tmp_path / "refs").rglob("*"))
    right(together(3, work))
    assert sorted((tmp_path / "refs").rglob("*")) == before


def test_a_store_that_cannot_be_read_ends_all_processes_with_its_name(tmp_path, monkeypatch) -> None:
    opened(tmp_path / "refs", Communicator()).fill(data(), "train", COLLATOR, running)

    def stale(path: Path) -> Any:
        raise OSError(116, "Stale file handle", str(path))

    monkeypatch.setattr(stores, "read_part", stale)
    results = together(3, lambda each: opened(tmp_path / "refs", each).fill(data(), "train", COLLATOR, not_running))
    for said in raised(results):
        assert "Cannot read" in said
        assert "Stale file handle" in said


def test_data_that_cannot_be_read_end_all_processes(tmp_path) -> None:
    rows: Any = data().to_dict()
    rows["chosen_ids"][3] = [-100]
    results = together(
        3, lambda each: opened(tmp_path / "refs", each).fill(Dataset.from_dict(rows), "train", COLLATOR, running)
    )
    for result in results:
        assert isinstance(result, ValueError)
        assert "Token ids" in str(result)
    assert "Process 0 failed while reading the train dataset" in str(results[1])


def test_portions_are_filled_one_after_the_other(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(wanted, "SEQUENCES_AT_ONCE", 30)
    monkeypatch.setattr(wanted, "_ROWS_AT_ONCE", 7)
    opened(tmp_path / "refs", Communicator()).fill(data(0, 9), "train", COLLATOR, running)

    def work(communicator: Communicator) -> Any:
        # Of unlike length: the second process has nothing left while the others go on.
        mine = data() if communicator.rank != 1 else data(0, 5)
        run = opened(tmp_path / "refs", communicator)
        run.fill(mine, "train", COLLATOR, running)
        assert_right(run.collator(COLLATOR).logps, mine)
        return run.stats.found, run.stats.computed

    all_of, old, short = (len(sequences(data(0, rows))) for rows in (ROWS, 9, 5))
    found = right(together(3, work))
    assert found == [(old, all_of - old), (short, all_of - old), (old, all_of - old)]


def test_what_was_found_and_computed_is_said(tmp_path) -> None:
    opened(tmp_path / "refs", Communicator()).fill(data(0, 5), "train", COLLATOR, running)
    run = opened(tmp_path / "refs", Communicator())
    run.fill(data(0, 10), "train", COLLATOR, running)
    found, everything = len(sequences(data(0, 5))), len(sequences(data(0, 10)))
    assert f"{found} sequences found, {everything - found} computed" in str(run.stats)


def test_a_store_that_stays_incomplete_is_named_with_its_likely_cause(tmp_path) -> None:
    run = opened(tmp_path / "refs", Communicator(0, 2, lambda value: [value, value]))  # the other does nothing
    count = len(sequences(data()))
    with pytest.raises(InputError, match=rf"\d+ of {count} sequences are still missing from .*refs .* a shared filesy"):
        run.fill(data(), "train", COLLATOR, running)


def test_nodes_with_folders_of_their_own_fill_both(tmp_path) -> None:
    def work(communicator: Communicator) -> int:
        node = communicator.rank // 2
        run = opened(tmp_path / f"refs-{node}", communicator, communicator.rank % 2)
        run.fill(data(), "train", COLLATOR, running)
        assert_right(run.collator(COLLATOR).logps, data())
        return run.stats.computed

    count = len(sequences(data()))
    assert right(together(4, work)) == [2 * count] * 4
    assert [len(Store.read_only(tmp_path / f"refs-{node}")) for node in range(2)] == [count, count]
