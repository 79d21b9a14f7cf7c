"""The store: what goes in comes out, whatever happened to the process, the disk or the files."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from stored import REFERENCE, filled, keys, right, sequence

from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.store import MissingSequence, Store


def test_what_goes_in_comes_out_also_of_another_object(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(300), range(200, 500))
    for seen in (store, Store.open(tmp_path / "refs", REFERENCE), Store.read_only(tmp_path / "refs")):
        assert len(seen) == 500
        assert len(seen.parts) == 2
        right(seen, range(500))
        right(seen, [499, 3, 250, 3])


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
    with pytest.raises(MissingSequence, match=f"2 sequences are not in .*refs; .*{keys([77])[0].hex()}") as caught:
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
    assert "--ref_store another folder" in said


def test_log_probs_that_are_not_finite_are_refused(tmp_path) -> None:
    store = Store.open(tmp_path / "refs", REFERENCE)
    with store.writer() as writer:
        for bad in (np.nan, np.inf, -np.inf, 1e300):
            with pytest.raises(ValueError, match="log-probs must be finite"):
                writer.add(keys([1])[0], 2, np.array([-1.0, bad]))
        writer.add(*sequence(5))
    right(store, [5])
    assert len(store) == 1
