"""A store part: one Parquet file, written atomically, with checksums over its index and its values.

Columns: `key` (32 hexadecimal digits, which every reader shows and compares), `prompt_tokens`, `completion_tokens`
(int32) and `token_logps` (list of float32, one per completion token). Other columns are ignored.

Both checksums are in the file's metadata. One covers the index (keys and lengths, about 40 bytes per sequence) and is
checked when a part is opened; the other covers the log-probs and is checked whenever they are read. A flipped byte is
therefore found before the value it belongs to is used.
"""

from __future__ import annotations

import hashlib
import os
from binascii import unhexlify
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .atomic import atomic_write, unique_name
from .keys import pack_keys, unpack_keys

SUFFIX = ".parquet"
CORRUPT_SUFFIX = ".damaged"
INDEX_COLUMNS = ["key", "prompt_tokens", "completion_tokens"]
_PREFIX = "trl_dpo_ext."
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("completion_tokens", pa.int32(), nullable=False),
        pa.field("token_logps", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
    ]
)


class CorruptPartError(Exception):
    """Raised when a part is truncated or altered, or when the file is not a part; the message says which.

    Attributes:
        reason: what is wrong.
        path: the file.
    """

    def __init__(self, reason: str, path: Path) -> None:
        super().__init__(reason, path)
        self.reason, self.path = reason, path

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Part:
    """The index of a part: everything but the log-probs.

    Attributes:
        path: the file.
        reference: fingerprint of the identity that the part was computed with.
        created: date and time in UTC.
        packed_keys: (sequences, 2) uint64, from `pack_keys`.
        prompt_tokens, completion_tokens: (sequences,) int32, lengths.
        checksum: of the log-probs.
    """

    path: Path
    reference: str
    created: str
    packed_keys: np.ndarray
    prompt_tokens: np.ndarray
    completion_tokens: np.ndarray
    checksum: str

    @property
    def sequences(self) -> int:
        """Return the number of sequences."""
        return len(self.packed_keys)

    @property
    def tokens(self) -> int:
        """Return the number of log-probs."""
        return int(self.completion_tokens.sum(dtype=np.int64))


def write_part(
    folder: Path,
    reference: str,
    keys: Sequence[bytes],
    prompt_tokens: Sequence[int] | np.ndarray,
    logps: Sequence[np.ndarray],
) -> Part:
    """Write sequences as one new part and return its index.

    Raises:
        OSError: the write failed; nothing is left behind.
    """
    lengths = np.array([len(row) for row in logps], dtype=np.int32)
    flat = np.concatenate([*logps, np.empty(0, np.float32)]).astype("<f4", copy=False)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    part = Part(
        folder / f"{unique_name()}{SUFFIX}",
        reference,
        created,
        pack_keys(keys),
        np.asarray(prompt_tokens, dtype=np.int32),
        lengths,
        hashlib.blake2b(flat.tobytes(), digest_size=16).hexdigest(),
    )
    atomic_write(part.path, _parquet(part, flat))
    return part


def merge_parts(parts: Sequence[Part]) -> Part:
    """Write the content of several parts of one reference as a new part; the old ones stay.

    Raises:
        CorruptPartError: a part is corrupt.
        OSError: reading or writing failed.
    """
    logps = [row for part in parts for row in np.split(read_logps(part), np.cumsum(part.completion_tokens)[:-1])]
    keys = unpack_keys(np.concatenate([part.packed_keys for part in parts]))
    prompt_tokens = np.concatenate([part.prompt_tokens for part in parts])
    return write_part(parts[0].path.parent, parts[0].reference, keys, prompt_tokens, logps)


def _parquet(part: Part, flat: np.ndarray) -> memoryview:
    offsets = np.zeros(part.sequences + 1, dtype=np.int32)
    np.cumsum(part.completion_tokens, out=offsets[1:])
    table = pa.Table.from_arrays(
        [
            pa.array([key.hex() for key in unpack_keys(part.packed_keys)], pa.string()),
            pa.array(part.prompt_tokens),
            pa.array(part.completion_tokens),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.float32()), type=SCHEMA.field(3).type),
        ],
        schema=SCHEMA,
    )
    sink = pa.BufferOutputStream()
    # Keys and log-probs hardly repeat, so a dictionary would only cost; no statistics, which could not help a search.
    with pq.ParquetWriter(
        sink, SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False, store_schema=False
    ) as writer:
        writer.write_table(table, row_group_size=max(1, part.sequences))
        writer.add_key_value_metadata({_PREFIX + name: value for name, value in _metadata(part).items()})
    return memoryview(sink.getvalue())


def _metadata(part: Part) -> Mapping[str, str]:
    metadata = {"reference": part.reference, "created": part.created, "token_logps": part.checksum}
    content = hashlib.blake2b("\n".join(metadata.values()).encode(), digest_size=16)
    content.update(part.sequences.to_bytes(8, "little") + b"".join(unpack_keys(part.packed_keys)))
    content.update(part.prompt_tokens.astype("<i4").tobytes() + part.completion_tokens.astype("<i4").tobytes())
    return {**metadata, "index": content.hexdigest()}


def read_part(path: Path) -> Part:
    """Read and check the index of a part.

    Raises:
        CorruptPartError: the content is not what was written.
        OSError: the file cannot be read, which does not mean that its content is wrong.
    """
    with _as_corrupt(path), path.open("rb") as file:
        parquet = pq.ParquetFile(file)
        found = {str(k, "utf-8", "replace"): v for k, v in (parquet.metadata.metadata or {}).items()}
        stored = {k.removeprefix(_PREFIX): v.decode() for k, v in found.items() if k.startswith(_PREFIX)}
        table = parquet.read(columns=INDEX_COLUMNS, use_threads=False)
        if table.schema.names != INDEX_COLUMNS:
            raise ValueError(f"its columns are {', '.join(table.schema.names)}")
        part = Part(
            path,
            stored.get("reference", ""),
            stored.get("created", ""),
            pack_keys(map(unhexlify, table["key"].to_pylist())),
            table["prompt_tokens"].to_numpy(),
            table["completion_tokens"].to_numpy(),
            stored.get("token_logps", ""),
        )
        if dict(_metadata(part)) != stored:
            raise ValueError("the checksum of its keys and lengths does not match")
        return part


def read_logps(part: Part) -> np.ndarray:
    """Read and check the log-probs of a part, one sequence after the other: (tokens,) float32.

    Raises:
        CorruptPartError: the content is not what was written.
        OSError: the file cannot be read; `FileNotFoundError` if it is gone.
    """
    with _as_corrupt(part.path), part.path.open("rb") as file:
        column = pq.ParquetFile(file).read(columns=["token_logps"], use_threads=False)["token_logps"]
        if len(column) != part.sequences:
            raise ValueError(f"it has log-probs of {len(column)} sequences instead of {part.sequences}")
        rows = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        lengths = rows.value_lengths().to_numpy(zero_copy_only=False)
        flat = rows.flatten().to_numpy(zero_copy_only=False)
        if not np.array_equal(lengths, part.completion_tokens):
            raise ValueError("the number of its log-probs does not match its lengths")
        if hashlib.blake2b(flat.astype("<f4", copy=False).tobytes(), digest_size=16).hexdigest() != part.checksum:
            raise ValueError("the checksum of its log-probs does not match")
        return flat


@contextmanager
def _as_corrupt(path: Path) -> Iterator[None]:
    """Turn errors about a file's content into `CorruptPartError`; errors of the file system pass."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise CorruptPartError(_first_line(error), path) from error
    except (pa.ArrowException, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise CorruptPartError(_first_line(error), path) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")


def quarantine(path: Path) -> bool:
    """Rename a corrupt part so that no process reads it again; False if the folder does not allow that."""
    try:
        os.rename(path, path.with_name(path.name + CORRUPT_SUFFIX))
    except FileNotFoundError:  # another process was faster
        return True
    except OSError:
        return False
    return True
