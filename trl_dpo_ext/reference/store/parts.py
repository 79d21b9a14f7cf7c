"""One part of a store: a Parquet file that is written whole, checks itself, and is read in two steps.

Columns: `key` (32 hexadecimal digits, which every reader shows and compares), `prompt_tokens`, `completion_tokens`
(int32) and `token_logps` (list of float32, one per completion token). Other columns may stand beside them.

Two checksums stand in the file's metadata. One covers the key and the lengths, which opening reads (about 40 bytes a
sequence); the other covers the log-probs and is checked whenever they are read. Flipped bytes thus never get through:
those among keys and lengths are found at opening, those among log-probs at their first use.
"""

from __future__ import annotations

import binascii
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .atomic import atomic_write, unique_name
from .keys import KEY_BYTES, keys_from_bytes, keys_to_bytes, unpack_keys

SUFFIX = ".parquet"
DAMAGED = ".damaged"
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
    """A part that is truncated, altered or no part at all; the message says which.

    Attributes:
        path (`Path`): The file.
    """

    def __init__(self, reason: str, path: Path) -> None:
        super().__init__(reason, path)
        self.reason, self.path = reason, path

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Part:
    """What opening a part reads: everything but the log-probs.

    Attributes:
        path (`Path`): The file.
        reference (`str`): Fingerprint of the identity it was computed with.
        created (`str`): Date and time in UTC.
        words (`np.ndarray` of shape `(sequences, 2)`): The keys, as `pack_keys` gives them.
        prompt_tokens, completion_tokens (`np.ndarray` of shape `(sequences,)`): Lengths, int32.
        checksum (`str`): Of the log-probs.
    """

    path: Path
    reference: str
    created: str
    words: np.ndarray
    prompt_tokens: np.ndarray
    completion_tokens: np.ndarray
    checksum: str

    @property
    def sequences(self) -> int:
        """How many it holds."""
        return len(self.words)

    @property
    def tokens(self) -> int:
        """How many log-probs it holds."""
        return int(self.completion_tokens.sum(dtype=np.int64))


def write_part(
    folder: Path,
    reference: str,
    keys: Sequence[bytes],
    prompt_tokens: Sequence[int] | np.ndarray,
    logps: Sequence[np.ndarray],
) -> Part:
    """Write sequences as one new part and return what opening it would read.

    Raises:
        OSError: As the system says, with nothing left behind.
    """
    words = keys_from_bytes(b"".join(keys))
    lengths = np.array([len(row) for row in logps], dtype=np.int32)
    flat = np.concatenate([*logps, np.empty(0, np.float32)]).astype("<f4", copy=False)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    part = Part(
        folder / f"{unique_name()}{SUFFIX}",
        reference,
        created,
        words,
        np.asarray(prompt_tokens, dtype=np.int32),
        lengths,
        hashlib.blake2b(flat.tobytes(), digest_size=16).hexdigest(),
    )
    atomic_write(part.path, _parquet(part, flat))
    return part


def merge_parts(parts: Sequence[Part]) -> Part:
    """Write the content of several parts of one reference as a new one; the old ones stay.

    Raises:
        CorruptPartError: When one is not what was written.
        OSError: As the system says.
    """
    logps = [row for part in parts for row in np.split(read_logps(part), np.cumsum(part.completion_tokens)[:-1])]
    words = np.concatenate([part.words for part in parts])
    prompt_tokens = np.concatenate([part.prompt_tokens for part in parts])
    return write_part(parts[0].path.parent, parts[0].reference, unpack_keys(words), prompt_tokens, logps)


def _parquet(part: Part, flat: np.ndarray) -> memoryview:
    offsets = np.zeros(part.sequences + 1, dtype=np.int32)
    np.cumsum(part.completion_tokens, out=offsets[1:])
    table = pa.Table.from_arrays(
        [
            pa.array([key.hex() for key in unpack_keys(part.words)], pa.string()),
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
    content.update(part.sequences.to_bytes(8, "little") + keys_to_bytes(part.words))
    content.update(part.prompt_tokens.astype("<i4").tobytes() + part.completion_tokens.astype("<i4").tobytes())
    return {**metadata, "index": content.hexdigest()}


def read_part(path: Path) -> Part:
    """Read and check the keys and lengths of a part.

    Raises:
        CorruptPartError: When it is not what was written.
        OSError: When the file cannot be read, which says nothing about its content.
    """
    with _damage_named(path), path.open("rb") as file:
        parquet = pq.ParquetFile(file)
        found = {str(k, "utf-8", "replace"): v for k, v in (parquet.metadata.metadata or {}).items()}
        stored = {k.removeprefix(_PREFIX): v.decode() for k, v in found.items() if k.startswith(_PREFIX)}
        table = parquet.read(columns=INDEX_COLUMNS, use_threads=False)
        if table.schema.names != INDEX_COLUMNS:
            raise ValueError(f"it has the columns {', '.join(table.schema.names)}")
        part = Part(
            path,
            stored.get("reference", ""),
            stored.get("created", ""),
            keys_from_bytes(_unhexed(table["key"])),
            table["prompt_tokens"].to_numpy(),
            table["completion_tokens"].to_numpy(),
            stored.get("token_logps", ""),
        )
        if dict(_metadata(part)) != stored:
            raise ValueError("the checksum of its keys and lengths does not fit")
        return part


def _unhexed(column: pa.ChunkedArray) -> bytes:
    keys = binascii.unhexlify("".join(column.to_pylist()))
    if len(keys) != KEY_BYTES * len(column):
        raise ValueError("it holds keys of another length")
    return keys


def read_logps(part: Part) -> np.ndarray:
    """Read and check the log-probs of a part, one sequence after the other: float32 of shape `(tokens,)`.

    Raises:
        CorruptPartError: When they are not what was written.
        OSError: When the file cannot be read; `FileNotFoundError` where it is gone.
    """
    with _damage_named(part.path), part.path.open("rb") as file:
        column = pq.ParquetFile(file).read(columns=["token_logps"], use_threads=False)["token_logps"]
        if len(column) != part.sequences:
            raise ValueError(f"it holds log-probs of {len(column)} sequences, not {part.sequences}")
        rows = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        lengths = rows.value_lengths().to_numpy(zero_copy_only=False)
        flat = rows.flatten().to_numpy(zero_copy_only=False)
        if not np.array_equal(lengths, part.completion_tokens):
            raise ValueError("its log-probs are not as many as its lengths say")
        if hashlib.blake2b(flat.astype("<f4", copy=False).tobytes(), digest_size=16).hexdigest() != part.checksum:
            raise ValueError("the checksum of its log-probs does not fit")
        return flat


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """What Arrow raises for content it cannot read, told apart from files that cannot be read."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise CorruptPartError(_first_line(error), path) from error
    except (pa.ArrowException, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise CorruptPartError(_first_line(error), path) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def quarantine(path: Path) -> bool:
    """Rename a damaged part so that nobody reads it again; False where the folder does not let us."""
    try:
        os.rename(path, path.with_name(path.name + DAMAGED))
    except FileNotFoundError:  # another process was faster
        return True
    except OSError:
        return False
    return True
