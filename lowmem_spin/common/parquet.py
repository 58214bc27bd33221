"""Parquet files whose checksums are verified, read as far as they are asked for; and token ids as arrays."""

import collections
import contextlib
import hashlib
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lowmem_spin.common.files import DamagedError, reading, write_atomically

CHUNK, BATCH = 2**18, 250  # bytes, and rows, that are read at once
GROUP = 500  # rows that a file keeps together: of groups without a row that is asked for, none is read
SEAL, DIGITS = b"sha256 of all else: ", 64  # in a Parquet file's metadata, and the hex digits after it


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a Parquet file that is whole or absent. Its pages have checksums, which other tools check too, and its
    metadata have one of all other bytes: a footer has none of its own."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, write_page_checksum=True) as writer:
        writer.write_table(table, row_group_size=GROUP)
        writer.add_key_value_metadata({"sha256": f"{SEAL.decode()}{'0' * DIGITS}"})
    content = bytearray(sink.getvalue())
    start = content.rindex(SEAL) + len(SEAL)
    content[start : start + DIGITS] = _sha256_around(io.BytesIO(content), start).encode()
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _sha256_around(file: BinaryIO, start: int) -> str:
    """Of all bytes but the digits that begin there."""
    found = hashlib.sha256()
    file.seek(0)
    for size in (*[CHUNK] * (start // CHUNK), start % CHUNK):
        found.update(file.read(size))
    file.seek(start + DIGITS)
    while chunk := file.read(CHUNK):
        found.update(chunk)
    return found.hexdigest()


def _is_sealed(file: BinaryIO, path: Path) -> bool:
    """Whether a Parquet file has a checksum of all other bytes, which then is right; the rest is not held in memory.

    Raises:
        DamagedError: it is wrong.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    footer = max(0, size - 8 - int.from_bytes(file.read(4), "little"))
    file.seek(footer)
    content = file.read()
    start = content.rfind(SEAL) + len(SEAL)
    if start < len(SEAL):
        return False
    if content[start : start + DIGITS].decode("latin-1") != _sha256_around(file, footer + start):
        raise DamagedError("other bytes than were written", path)
    return True


@contextlib.contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Tell wrong bytes of a Parquet file from an error of the system.

    Raises:
        DamagedError: its bytes are wrong.
        FileNotFoundError, UnreadableError: as `reading` does.
    """
    with reading(path):
        try:
            yield
        except (OSError, ValueError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # pyarrow's own, of wrong bytes, have no number
                raise
            raise DamagedError(_first_line(error), path) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class ParquetTable:
    """A Parquet file whose checksums are right, read as far as it is asked for: a table that need not fit in memory.

    They are that of the file and, where an earlier version wrote none, those of its pages. Raises as `reading_parquet` does,
    also when it is read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with reading(path), path.open("rb") as file:
            sealed = _is_sealed(file, path)
        with (reading if sealed else reading_parquet)(path):  # an error of bytes that are right is something else
            self._file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=CHUNK)
            if not sealed:
                collections.deque(self._file.iter_batches(BATCH), maxlen=0)
        schema = self._file.schema_arrow
        known = {name: value for name, value in (schema.metadata or {}).items() if name != b"sha256"}
        self.schema: pa.Schema = schema.with_metadata(known or None)
        self.num_rows: int = self._file.metadata.num_rows

    def batches(self, columns: Sequence[str] | None = None, group: int | None = None) -> Iterator[pa.Table]:
        """All rows, or those of a group, some at a time; of all columns, or of these."""
        groups = None if group is None else [group]
        with reading_parquet(self._path):
            for batch in self._file.iter_batches(BATCH, row_groups=groups, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])

    def read(self) -> pa.Table:
        """All of it."""
        return pa.concat_tables([self.schema.empty_table(), *self.batches()])

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all rows."""
        return pa.chunked_array([part[name].combine_chunks() for part in self.batches([name])], self.schema.field(name).type)

    def filter(self, mask: np.ndarray) -> pa.Table:
        """The rows where `mask` is true, without the others in memory."""
        start, found = 0, [self.schema.empty_table()]
        for group in range(self._file.num_row_groups):
            size = self._file.metadata.row_group(group).num_rows
            if mask[start : start + size].any():
                for part in self.batches(group=group):
                    found.append(part.filter(mask[start : start + len(part)]))
                    start += len(part)
            else:
                start += size
        return pa.concat_tables(found)


def token_arrays(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A column of token ids as int32 arrays that share its memory: a list of Python ints takes nine times as much."""
    chunks = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in column.chunks]
    return [values[start:end] for offsets, values in chunks for start, end in itertools.pairwise(offsets)]
