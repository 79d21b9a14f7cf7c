"""Altered, truncated and foreign parts are found before their log-probs are used, and named."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
from typing import Any

import numpy as np
import pytest

from tests.support.stored import (
    REFERENCE,
    assert_holds,
    corrupt_values,
    filled,
    first_part,
    keys,
    sequence,
)
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.store.store import Store
from trl_dpo_ext.reference.store.table import MissingSequenceError


@pytest.mark.filterwarnings("ignore:.*is corrupt")
@pytest.mark.slow
def test_no_flipped_byte_gets_through(tmp_path) -> None:
    """At every offset of a small part, and some of a larger one: found, or without any effect on what is read."""
    for count, step in ((3, 1), (400, 53)):
        store = filled(tmp_path / str(count), range(count))
        content, found = first_part(store).read_bytes(), 0
        for at in range(0, len(content), step):
            first_part(store).write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
            try:
                seen = Store.read_only(tmp_path / str(count))
                if not seen.corrupt:
                    assert_holds(seen, range(count))
                assert len(seen.verify().corrupt) == len(seen.corrupt)
                found += bool(seen.corrupt)
            except MissingSequenceError:
                found += 1
            except InputError as error:  # a content part, but of another reference
                pytest.fail(f"offset {at}: {error}")
        assert found > 0.7 * len(content) / step


@pytest.mark.filterwarnings("ignore:.*is corrupt")
def test_no_truncated_part_gets_through(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(50))
    content = first_part(store).read_bytes()
    for length in [*range(0, len(content), 37), len(content) - 1]:
        first_part(store).write_bytes(content[:length])
        seen = Store.read_only(tmp_path / "refs")
        assert list(seen.corrupt) == [first_part(store).name]
        assert seen.missing(keys(range(50))) == keys(range(50))


def test_a_corrupt_part_is_quarantined_named_and_computed_again(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(50), range(50, 60))
    path = first_part(store)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=f"{path.name} is corrupt: .* renamed to {path.name}.damaged"):
        store = Store.open(tmp_path / "refs", REFERENCE)
    assert path.with_name(f"{path.name}.damaged").exists()
    assert store.missing(keys(range(60))) == keys(range(50))
    filled(tmp_path / "refs", range(50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_holds(Store.open(tmp_path / "refs", REFERENCE), range(60))


@pytest.mark.parametrize("read", [lambda store: store.load(keys(range(60))), lambda store: store.values(keys([3]))])
def test_altered_log_probs_are_found_when_they_are_read(tmp_path, read: Any) -> None:
    store = filled(tmp_path / "refs", range(50), range(50, 60))
    corrupt_values(first_part(store))
    store = Store.open(tmp_path / "refs", REFERENCE)
    assert store.missing(keys(range(60))) == []
    with (
        pytest.warns(UserWarning, match="is corrupt: the checksum of its log-probs"),
        pytest.raises(MissingSequenceError),
    ):
        read(store)
    assert store.missing(keys(range(60))) == keys(range(50))


def test_altered_log_probs_are_found_before_the_pass_where_that_is_asked_for(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(50), range(50, 60))
    corrupt_values(first_part(store))
    with pytest.warns(UserWarning, match="corrupt"):
        assert store.missing(keys(range(60)), check_values=True) == keys(range(50))
    filled(tmp_path / "refs", range(50))
    store.refresh()
    assert_holds(store, range(60))


def test_a_sequence_that_another_part_holds_too_survives_the_corruption_of_one(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(50), range(50))
    corrupt_values(first_part(store))
    with pytest.warns(UserWarning, match="corrupt"):
        assert_holds(Store.open(tmp_path / "refs", REFERENCE), range(50))


def test_a_part_of_another_reference_is_refused_by_name(tmp_path) -> None:
    """Whoever copies the parts of two stores together would train against a mixture."""
    store = filled(tmp_path / "refs", range(3))
    other = Store.open(tmp_path / "other", dataclasses.replace(REFERENCE, dtype="bfloat16"))
    with other.writer() as writer:
        writer.add(*sequence(5))
    shutil.copy(first_part(other), tmp_path / "refs" / "parts")
    with pytest.raises(InputError, match=f"{first_part(other).name} was computed with another reference"):
        Store.open(tmp_path / "refs", REFERENCE)
    with pytest.raises(InputError, match="another reference"):
        store.refresh()


def test_verify_names_sequences_that_are_held_twice_with_different_values(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(20), range(10, 30))
    assert store.verify().problems == []
    key, prompt_tokens, logps = sequence(5)
    with store.writer() as writer:
        writer.add(key, prompt_tokens, logps - np.float32(0.5))
    report = store.verify()
    assert report.conflicting == (key,)
    assert report.max_difference == pytest.approx(0.5, abs=1e-6)
    assert_holds(store, [5])  # the older one counts, for every process
