"""Files and hub splits, row by row as they are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError, reading_parquet
from lowmem_spin.data.sources import Source

BATCH, BUFFER = 1000, 1 << 20  # rows of a Parquet file that are in memory at once, and bytes of each of its columns


def read_rows(source: Source, field: str, split: str) -> Iterator[tuple[str, Any]]:
    """(where, row) of a local file or a hub split."""
    if not source.local:
        yield from _read_hub(source, field, split)
    elif source.location.endswith(".parquet"):
        yield from ((f"row {index + 1}", row) for index, row in enumerate(_read_parquet(source, field)))
    else:
        with Path(source.location).open("rb") as lines:
            for index, line in enumerate(lines):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except UnicodeDecodeError:
                    raise InputError(f"{field}: line {index + 1} is not UTF-8; save the file as UTF-8") from None
                except json.JSONDecodeError as error:
                    raise InputError(
                        f"{field}: line {index + 1} is not JSON ({error.msg}); one object per line is needed"
                    ) from None
                yield f"line {index + 1}", row


def _read_parquet(source: Source, field: str) -> Iterator[Any]:
    """The rows of a Parquet file, some at a time: as Python objects they are many times as large as on the disk."""
    path = Path(source.location)
    try:
        with reading_parquet(path), pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
            for batch in file.iter_batches(BATCH):
                yield from batch.to_pylist()
    except DamagedError as error:
        raise InputError(f"{field}: {source.location!r} is not a Parquet file: {error}") from None


def _read_hub(source: Source, field: str, split: str) -> Iterator[tuple[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(source.location, revision=source.revision, split=split)
    except (ValueError, OSError, DatasetsError) as error:
        raise InputError(f"{field}: {source.location!r} split {split!r}: {' '.join(str(error).split())}") from error
    for index, row in enumerate(rows):
        yield f"row {index + 1}", row
