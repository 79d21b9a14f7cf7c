"""What a store gives back: every sequence bit for bit, what it lacks, and never another reference's."""

from __future__ import annotations

import dataclasses
import pickle
import time

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.support.stored import (
    REFERENCE,
    assert_holds,
    filled,
    keys,
    sequence,
)
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.store.store import Store
from trl_dpo_ext.reference.store.table import LogpTable, MissingSequenceError


def test_what_goes_in_comes_out_also_of_another_object(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(300), range(200, 500))
    for seen in (store, Store.open(tmp_path / "refs", REFERENCE), Store.read_only(tmp_path / "refs")):
        assert len(seen) == 500
        assert len(seen.parts) == 2
        assert_holds(seen, range(500))
        assert_holds(seen, [499, 3, 250, 3])


def test_missing_says_each_key_once_in_the_order_asked(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(10))
    asked = keys([12, 3, 11, 12, 9, 30])
    assert store.missing(iter(asked)) == keys([12, 11, 30])
    assert keys([3])[0] in store
    assert keys([12])[0] not in store


def test_a_store_that_holds_nothing_answers_too(tmp_path) -> None:
    store = Store.open(tmp_path / "deep" / "refs", REFERENCE)
    assert len(store) == 0
    assert store.missing(keys(range(3))) == keys(range(3))
    assert store.values([]) == []
    assert len(store.load()) == 0


def test_what_is_missing_is_numbered_and_the_first_is_named(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(10))
    with pytest.raises(MissingSequenceError, match=f"2 sequences are not in .*refs; .*{keys([77])[0].hex()}") as caught:
        store.values(keys([5, 77, 78]))
    assert caught.value.keys == keys([77, 78])
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # as a dataloader's worker passes it on


def test_another_reference_is_refused_with_what_differs(tmp_path) -> None:
    filled(tmp_path / "refs", range(3))
    other = dataclasses.replace(REFERENCE, quantization="nf4 double bfloat16", dtype="bfloat16")
    with pytest.raises(InputError) as caught:
        Store.open(tmp_path / "refs", other)
    said = str(caught.value)
    assert "quantization is none in the store and nf4 double bfloat16 in this run (--ref_quantization)" in said
    assert "dtype is float32 in the store and bfloat16 in this run" in said
    assert "Choose another --ref_store directory" in said


def test_log_probs_that_are_not_finite_are_refused(tmp_path) -> None:
    store = Store.open(tmp_path / "refs", REFERENCE)
    with store.writer() as writer:
        for bad in (np.nan, np.inf, -np.inf, 1e300):
            with pytest.raises(ValueError, match="log-probs must be finite"):
                writer.add(keys([1])[0], 2, np.array([-1.0, bad]))
        writer.add(*sequence(5))
    assert_holds(store, [5])
    assert len(store) == 1


def test_parts_are_cut_by_time_and_by_tokens(tmp_path) -> None:
    store = Store.open(tmp_path / "refs", REFERENCE)
    with store.writer(seconds=0.02) as writer:
        writer.add(*sequence(1))
        assert writer.written == 0
        time.sleep(0.03)
        writer.add(*sequence(2))
        assert writer.written == 2
    with store.writer(tokens=20) as writer:
        for number in (12, 25):  # 12 tokens each
            writer.add(*sequence(number))
        assert writer.written == 2


@pytest.mark.slow
def test_a_long_pass_leaves_few_parts(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(1000), sequences=2)
    assert len(list((tmp_path / "refs" / "parts").iterdir())) < 40
    for seen in (store, Store.open(tmp_path / "refs", REFERENCE)):
        assert_holds(seen, range(1000))
        assert sum(part.sequences for part in seen.parts) == 1000


def test_dataloader_workers_read_what_was_loaded(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(64))
    loaded = store.load(keys(range(64)))
    sent = pickle.loads(pickle.dumps(Collator(loaded)))  # as spawned workers get it; forked ones share it
    for collate in (sent, Collator(loaded)):
        batches = DataLoader(range(64), batch_size=8, num_workers=2, multiprocessing_context="fork", collate_fn=collate)  # type: ignore[arg-type]
        for batch, number in zip(batches, range(0, 64, 8), strict=True):
            for row, logps in enumerate(batch):
                np.testing.assert_array_equal(logps, sequence(number + row)[2])
    assert pickle.loads(pickle.dumps(store)).missing(keys([64])) == keys([64])
    assert loaded.nbytes == 64 * 32 + 8 + 4 * len(loaded.flat)


@dataclasses.dataclass
class Collator:
    loaded: LogpTable

    def __call__(self, numbers: list[int]) -> list[np.ndarray]:
        return self.loaded.values(keys(numbers))
