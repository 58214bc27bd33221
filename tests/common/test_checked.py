"""Files that are read are what was written, or damage and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.harms import HARMS, flipped
from lowmem_spin.common.checked import folder_fault, read_checked, seal_folder, write_checked
from lowmem_spin.common.files import DamagedError
from lowmem_spin.common.parquet import ParquetTable, write_parquet


def every_flip(path: Path, step: int = 1) -> Iterator[int]:
    """The file with one wrong bit after another; the place of each."""
    content = path.read_bytes()
    for place in range(0, len(content), step):
        path.write_bytes(flipped(content, place, place % 8))
        yield place
    path.write_bytes(content)


ROWS = pa.table({"a": list(range(20)), "text": [f"row {n}" for n in range(20)]}).replace_schema_metadata({"maker": "x"})


def test_whatever_bit_of_a_table_is_wrong_it_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, ROWS)
    assert ParquetTable(path).read().equals(ROWS, check_metadata=True)
    assert pq.read_table(path).equals(ROWS)  # as other tools read it
    read = 0
    for _ in every_flip(path, 2):
        try:
            assert ParquetTable(path).read().equals(ROWS)  # the checksum's own name is wrong, and nothing else
            read += 1
        except DamagedError:
            continue
    assert read <= len("sha256 of all else: ")


def test_a_table_of_an_earlier_version_is_read_and_its_damage_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(ROWS, path, write_page_checksum=True)
    assert ParquetTable(path).read().equals(ROWS, check_metadata=True)
    damaged = 0
    for _ in every_flip(path, 3):
        try:
            table = ParquetTable(path)
        except DamagedError:
            damaged += 1
        else:
            table.read().to_pylist()  # whoever opens it is told, and sets it aside; not whoever reads it later
    assert damaged > path.stat().st_size / 3 / 4


@pytest.mark.parametrize("sealed", [True, False])
def test_a_part_of_a_table_is_what_it_is_in_the_whole(tmp_path: Path, sealed: bool) -> None:
    schema = pa.schema({"n": pa.int64(), "ids": pa.list_(pa.field("element", pa.int32()))}, {"a": "b"})
    rows = pa.table({"n": list(range(1234)), "ids": [[n] * (n % 7) for n in range(1234)]}, schema)
    path = tmp_path / "a.parquet"
    write_parquet(path, rows) if sealed else pq.write_table(rows, path, write_page_checksum=True)
    table = ParquetTable(path)
    assert table.num_rows == 1234 and table.schema.equals(rows.schema, check_metadata=True)
    assert table.column("ids").to_pylist() == rows["ids"].to_pylist()
    assert pa.concat_tables(table.batches(["n"])).equals(rows.select(["n"]))
    for wanted in ([], [0], [1233], [3, 249, 250, 999], range(1234)):
        mask = np.isin(np.arange(1234), wanted)
        assert table.filter(mask).equals(rows.filter(mask), check_metadata=True)


def test_a_table_that_is_damaged_after_it_was_verified_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, ROWS)
    table, content = ParquetTable(path), path.read_bytes()
    first = pq.read_metadata(path).row_group(0).column(0)
    path.write_bytes(flipped(content, 4 + first.total_compressed_size - 1, 0))  # of its last page
    with pytest.raises(DamagedError):
        table.read()


def test_of_rows_that_nobody_asks_for_few_are_read(tmp_path: Path) -> None:
    """Nor is their damage noticed then, if they were right when the file was opened."""
    path, rows = tmp_path / "a.parquet", pa.table({"n": list(range(1234))})
    write_parquet(path, rows)
    table, groups = ParquetTable(path), pq.read_metadata(path)
    assert groups.num_row_groups > 2
    last = groups.row_group(groups.num_row_groups - 1).column(0)
    path.write_bytes(flipped(path.read_bytes(), last.dictionary_page_offset + last.total_compressed_size - 1, 0))
    mask = np.arange(1234) == 7
    assert table.filter(mask).equals(rows.filter(mask))
    with pytest.raises(DamagedError):
        table.filter(np.arange(1234) == 1233)


def test_memory_that_runs_out_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    path = tmp_path / "a.parquet"
    pq.write_table(ROWS, path)  # as earlier versions wrote it: only its reading tells whether it is whole
    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(MemoryError):
        ParquetTable(path).read()


def test_whatever_bit_of_a_small_file_is_wrong_it_is_noticed(tmp_path: Path) -> None:
    path, record = tmp_path / "a.json", {"b": 1.5, "a": {"é": [None, True, "x" * 30]}}
    write_checked(path, record)
    assert read_checked(path) == record
    same = 0
    for _ in every_flip(path):
        try:
            assert record.items() <= read_checked(path).items()  # the checksum's own name is wrong, and nothing else
            same += 1
        except DamagedError:
            continue
    assert same <= len('"checksum"') + 8  # and spaces that another space stands for
    path.write_text(json.dumps(record))  # as earlier versions wrote it
    assert read_checked(path) == record


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("name", ["a.json", "inner/b.bin", "manifest.json"])
def test_a_folder_is_whole_if_all_its_files_are(tmp_path: Path, name: str, how: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.json").write_text('{"a": 1, "b": 2}')
    (tmp_path / "inner" / "b.bin").write_bytes(bytes(range(100)))
    assert folder_fault(tmp_path) == "has no manifest.json, which is written last"
    seal_folder(tmp_path)
    assert folder_fault(tmp_path) is None
    HARMS[how](tmp_path / name)
    assert name in str(folder_fault(tmp_path))


def test_a_folder_with_a_file_more_is_not_whole(tmp_path: Path) -> None:
    seal_folder(tmp_path)
    (tmp_path / "optimizer.bin").touch()
    assert folder_fault(tmp_path) == "has a file that was not written with it, optimizer.bin"
