"""Files that are whole or absent, and token ids as arrays."""

import hashlib
import itertools
import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# What a disk can answer; any other error of the system is a bug and keeps its traceback.
DISK = {"ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EEXIST", "ENOTDIR"}
Notice = Callable[[str], None]
Tokens = Sequence[int] | np.ndarray
"""Token ids of one prompt or completion."""


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON that is whole or absent."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` write to a temporary file beside `path`, and rename it when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a checksummed Parquet file that is whole or absent."""
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, write_page_checksum=True))


def read_parquet(path: Path) -> pa.Table:
    """Read a Parquet file and verify its checksums."""
    return pq.ParquetFile(path, page_checksum_verification=True).read()


def token_arrays(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A column of token ids as int32 arrays that share its memory: a list of Python ints takes nine times as much."""
    chunks = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in column.chunks]
    return [values[start:end] for offsets, values in chunks for start, end in itertools.pairwise(offsets)]
