"""The format on disk: stores of earlier versions, copies and links are read, and other libraries read it too."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from tests.support.stored import (
    REFERENCE,
    assert_holds,
    filled,
    first_part,
    sequence,
)
from trl_dpo_ext.reference.identity.identity import Identity
from trl_dpo_ext.reference.store.keys import sequence_key
from trl_dpo_ext.reference.store.store import Store

FORMAT_1 = Path(__file__).parent / "store_format_1"
"""A store as version 0.1.0 wrote it at its first commit with this format: it must be readable forever."""

REFERENCE_OF_FORMAT_1 = Identity(
    weights="files:f00d",
    config='{"hidden_size":16,"rope_parameters":{"rope_theta":10000.0}}',
    adapter="beef",
    quantization="nf4 double bfloat16 except lm_head",
    dtype="bfloat16",
    compute_dtype="bfloat16",
)


def logps_of_format_1(number: int) -> tuple[bytes, list[float]]:
    completion = list(range(number % 5))
    return sequence_key([number, 7], completion), [-(number + i) / 8 for i in completion]


def test_a_store_of_format_1_is_opened_verified_loaded_and_added_to(tmp_path) -> None:
    shutil.copytree(FORMAT_1, tmp_path / "refs")
    store = Store.open(tmp_path / "refs", REFERENCE_OF_FORMAT_1)
    assert store.identity == REFERENCE_OF_FORMAT_1
    assert store.identity.fingerprint == "416a530ddbbdc04efa0c2e6c6a29cec7"
    assert store.identity.recorded["source"] == "some/model"
    assert store.identity.recorded["versions"]["trl-dpo-ext"] == "0.1.0"
    assert [part.sequences for part in store.parts] == [12, 12]
    report = store.verify()
    assert (report.problems, report.sequences, len(store)) == ([], 24, 20)
    with store.writer() as writer:
        writer.add(sequence_key([20, 7], []), 2, np.empty(0))
    loaded = Store.open(tmp_path / "refs", REFERENCE_OF_FORMAT_1).load()
    assert len(loaded) == 21
    for number in range(20):
        key, logps = logps_of_format_1(number)
        assert loaded[key].tolist() == logps


def test_parts_are_written_as_format_1_has_them(tmp_path) -> None:
    """Columns, their types, checksums: a version that wrote this store reads what is written today."""
    (tmp_path / "refs").mkdir()
    shutil.copy(FORMAT_1 / "manifest.json", tmp_path / "refs")
    store = Store.open(tmp_path / "refs", REFERENCE_OF_FORMAT_1)
    with store.writer() as writer:
        for number in range(12):
            key, logps = logps_of_format_1(number)
            writer.add(key, 2, np.array(logps))
    old, new = (pq.ParquetFile(first) for first in (sorted((FORMAT_1 / "parts").iterdir())[0], first_part(store)))
    assert new.schema_arrow == old.schema_arrow
    assert new.read().equals(old.read())
    theirs, ours = (dict(file.metadata.metadata) for file in (old, new))
    assert ours.keys() == theirs.keys()
    assert ours[b"trl_dpo_ext.token_logps"] == theirs[b"trl_dpo_ext.token_logps"]
    assert ours[b"trl_dpo_ext.reference"] == theirs[b"trl_dpo_ext.reference"]


def test_a_copy_on_another_machine_is_the_same_store(tmp_path) -> None:
    filled(tmp_path / "refs", range(30))
    shutil.copytree(tmp_path / "refs", tmp_path / "there" / "under another name", copy_function=shutil.copyfile)
    assert_holds(Store.open(tmp_path / "there" / "under another name", REFERENCE), range(30))


def test_links_as_in_the_hubs_cache_are_followed(tmp_path) -> None:
    for path in filled(tmp_path / "refs", range(30)).folder.rglob("*.*"):
        link = tmp_path / "snapshot" / path.relative_to(tmp_path / "refs")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    (tmp_path / "snapshot" / ".gitattributes").write_text("")
    assert_holds(Store.read_only(tmp_path / "snapshot"), range(30))
    assert_holds(Store.open(tmp_path / "snapshot", REFERENCE), range(30))


@pytest.mark.parametrize("how", ["folder", "files"])
def test_the_hubs_datasets_library_reads_it(tmp_path, how: str) -> None:
    store = filled(tmp_path / "refs", range(30), range(30, 50))
    arguments = (
        {"path": str(store.folder)}
        if how == "folder"
        else {"path": "parquet", "data_files": str(store.folder / "parts" / "*.parquet")}
    )
    rows = load_dataset(**arguments, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.num_rows == 50
    by_key = {row["key"]: row for row in rows}
    for number in range(50):
        key, prompt_tokens, logps = sequence(number)
        row = by_key[key.hex()]
        assert (row["prompt_tokens"], row["completion_tokens"]) == (prompt_tokens, len(logps))
        np.testing.assert_array_equal(np.array(row["token_logps"], np.float32), logps)


def test_pandas_and_duckdb_read_it(tmp_path) -> None:
    store = filled(tmp_path / "refs", range(30), range(30, 50))
    key, _, logps = sequence(25)
    frame = pandas.read_parquet(store.folder / "parts").set_index("key")
    np.testing.assert_array_equal(frame.loc[key.hex(), "token_logps"], logps)
    query = f"select completion_tokens, list_sum(token_logps) from '{store.folder}/parts/*.parquet' where key = '{key.hex()}'"
    ((tokens, total),) = duckdb.sql(query).fetchall()
    assert tokens == len(logps)
    assert total == pytest.approx(float(logps.sum()), rel=1e-6)


def test_columns_of_later_versions_are_left_alone(tmp_path) -> None:
    path = first_part(filled(tmp_path / "refs", range(30)))
    table = pq.read_table(path)
    table = table.append_column("entropy", pa.array(np.zeros(30, np.float32)))
    metadata = pq.ParquetFile(path).metadata.metadata
    with pq.ParquetWriter(path, table.schema.with_metadata(None)) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({k: v for k, v in metadata.items() if k.startswith(b"trl_dpo_ext.")})
    assert_holds(Store.open(tmp_path / "refs", REFERENCE), range(30))


def test_rewritten_parts_are_recognized_by_their_content_only_with_their_checksums(tmp_path) -> None:
    """`push_to_hub` of a loaded dataset writes new files without them; such a copy is not trusted."""
    path = first_part(filled(tmp_path / "refs", range(30)))
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.warns(UserWarning, match="checksum of its keys and lengths"):
        assert len(Store.read_only(tmp_path / "refs")) == 0
