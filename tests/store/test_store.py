"""The store keeps what was committed, refuses what does not read back, and has one writer at a time."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from helpers.unreadable import answering_eio
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError, UnreadableError
from lowmem_spin.common.keys import digest
from lowmem_spin.common.parquet import ParquetTable
from lowmem_spin.store.store import Store
from lowmem_spin.store.table import Table


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Store:
    return Store(tmp_path / "store", said.append)


def table(store: Store, adapter_sha256: str = "base") -> Table:
    return store.table("logps", "key", {"asked": 1}, adapter_sha256)


def rows(*names: str) -> dict[str, list[Any]]:
    count = len(names)
    return {
        "prompt_id": list(names),
        "completion": ["chosen"] * count,
        "content": ["c"] * count,
        "logp": [-1.5] * count,
        "tokens": [3] * count,
    }


def ids(store: Store, adapter_sha256: str = "base") -> list[str]:
    return sorted(table(store, adapter_sha256).read()["prompt_id"].to_pylist())


def test_shards_merge_into_one_file_that_other_tools_open(store: Store) -> None:
    one = table(store)
    one.append(rows("a", "b"))
    one.append(rows("c"))
    assert ids(store) == ["a", "b", "c"]
    one.merge()
    (file,) = one.folder.glob("*.parquet")
    assert pq.read_table(file)["prompt_id"].to_pylist() == ["a", "b", "c"]
    assert '"rows": 3' in (one.folder / "manifest.json").read_text()
    assert ids(store) == ["a", "b", "c"]


def test_a_table_gives_the_rows_of_the_prompts_that_are_asked_for(store: Store) -> None:
    """Whatever was asked before, whoever has written since, and whether or not it is merged."""
    table(store).append(rows("a", "b", "c"))
    one = table(store)
    for wanted in ("b", "ab", "b", "", "bc", "abcd", "ad"):
        for _ in range(2):
            assert one.read(set(wanted))["prompt_id"].to_pylist() == sorted(set(wanted) & set("abc"))
    table(store).append(rows("d"))
    assert one.read({"d"})["prompt_id"].to_pylist() == ["d"]
    one.append(rows("e"))
    assert sorted(one.read(set("de"))["prompt_id"].to_pylist()) == ["d", "e"]
    assert sorted(one.read()["prompt_id"].to_pylist()) == [*"abcde"]
    one.merge()
    assert one.read({"c"})["prompt_id"].to_pylist() == table(store).read({"c"})["prompt_id"].to_pylist() == ["c"]


def test_a_lost_manifest_has_the_number_of_all_rows_whichever_are_asked_for(store: Store) -> None:
    table(store).append(rows("a", "b", "c"))
    (table(store).folder / "manifest.json").unlink()
    table(store).read({"b"})
    assert '"rows": 3' in (table(store).folder / "manifest.json").read_text()


def test_a_merge_that_was_stopped_before_it_deleted_its_shards_leaves_no_row_twice(store: Store) -> None:
    one = table(store)
    for name in "abc":
        one.append(rows(name))
    shards = {path: path.read_bytes() for path in one.folder.glob("shard-*")}
    one.merge()
    for path, content in shards.items():
        path.write_bytes(content)
    assert ids(store) == ["a", "b", "c"]
    assert not list(one.folder.glob("shard-*"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped bit"])
def test_a_damaged_shard_is_set_aside_and_the_others_stay(store: Store, said: list[str], damage: str) -> None:
    table(store).append(rows("kept"))
    (kept,) = table(store).folder.glob("*.parquet")
    table(store).append(rows(*(f"row {n}" for n in range(500))))
    (victim,) = set(table(store).folder.glob("*.parquet")) - {kept}
    content = bytearray(victim.read_bytes())
    if damage == "flipped bit":
        content[len(content) // 3] ^= 1
    victim.write_bytes({"truncated": content[:-20], "empty": b""}.get(damage, bytes(content)))
    assert ids(store) == ["kept"]
    assert len(said) == 1
    assert "computed again" in said[0]
    assert len(list((store.root / "aside").iterdir())) == 1
    assert ids(store) == ["kept"]  # said once: the shard is gone from the table


@contextmanager
def silenced(path: Path, error: str) -> Iterator[None]:
    """For a while the system, for real, answers the file's reader with this error."""
    if error == "EACCES":
        path.chmod(0)
        yield
        path.chmod(0o644)
        return
    healthy = path.rename(path.with_name("healthy"))
    path.symlink_to(answering_eio() if error == "EIO" else path)
    yield
    path.unlink()
    healthy.rename(path)


@pytest.mark.parametrize("error", ["EIO", "ELOOP", "EACCES"])
def test_what_the_system_does_not_let_be_read_stays_and_is_named(store: Store, said: list[str], error: str) -> None:
    if error == "EACCES" and os.geteuid() == 0:
        pytest.skip("nothing is closed to root")
    table(store).append(rows("a"))
    (shard,) = table(store).folder.glob("*.parquet")
    adapter(store, "k", 1.0)
    weights = store.root / "adapters" / "k" / "adapter_model.safetensors"
    store.commit_result("p", "k", {"maker": "base"})
    result = store.root / "results" / "p" / "k.json"
    reads: dict[Path, Callable[[], Any]] = {
        shard: table(store).read,
        weights: lambda: store.adapter("k"),
        result: lambda: store.result("p", "k", "base"),
    }
    for path, read in reads.items():
        with silenced(path, error), pytest.raises(UnreadableError) as caught:
            read()
        assert (caught.value.errno, caught.value.filename) == (getattr(errno, error), str(path))
    assert not (store.root / "aside").exists()
    assert said == []
    assert ids(store) == ["a"]
    assert store.adapter("k") is not None
    assert store.result("p", "k", "base") == {"maker": "base"}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder in which the system makes none")
def test_where_the_system_makes_no_folders_is_one_line() -> None:
    with pytest.raises(
        InputError, match=r"^'/proc/nowhere': the system makes no folder there; choose another output\.store or"
    ):
        Store(Path("/proc/nowhere"), print)


def test_whatever_bit_of_a_table_is_wrong_is_damage_and_nothing_else(store: Store) -> None:
    table(store).append(rows(*(f"row {n}" for n in range(50))))
    (file,) = table(store).folder.glob("*.parquet")
    content, damaged = file.read_bytes(), 0
    for place in range(0, len(content), 3):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            ParquetTable(file).read()
        except DamagedError:
            damaged += 1
    assert damaged > len(content) / 3 / 4  # not all of a footer is checked


def test_a_wrong_bit_that_parquet_itself_would_not_notice_is_noticed(store: Store, said: list[str]) -> None:
    values = [-1.0 - n / 7 for n in range(200)]
    table(store).append({**rows(*(f"row {n}" for n in range(200))), "logp": values})
    (file,) = table(store).folder.glob("*.parquet")
    file.write_bytes(silently_wrong(file.read_bytes(), values))
    assert ids(store) == []
    assert "computed again" in said[0]


def silently_wrong(content: bytes, values: list[float]) -> bytes:
    """The file with one bit flipped such that it reads without complaint, but as other numbers."""
    for place in range(len(content) // 4, len(content)):
        harmed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        try:
            if pq.read_table(pa.BufferReader(harmed))["logp"].to_pylist() != values:
                return harmed
        except (pa.ArrowException, OSError, UnicodeDecodeError):
            continue
    raise AssertionError("no bit of this file can be wrong unnoticed")


def test_an_unfinished_write_is_invisible(store: Store) -> None:
    table(store).append(rows("a"))
    (table(store).folder / ".shard-x.parquet.tmp").write_bytes(b"half a shard")
    assert ids(store) == ["a"]


def test_rows_of_another_adapter_are_not_mixed_in(store: Store, said: list[str]) -> None:
    table(store, "sha of one").append(rows("a"))
    assert ids(store, "sha of another") == []
    assert "another adapter" in said[0]


def adapter(store: Store, key: str, value: float) -> Path:
    work = store.work(key) / "adapter"
    work.mkdir(parents=True)
    save_file({"w": np.full(1000, value, np.float32)}, work / "adapter_model.safetensors")
    return store.commit_adapter(key, work, {"kind": "train"})


def test_commits_are_create_only(store: Store) -> None:
    first = adapter(store, "k", 1.0)
    content = (first / "adapter_model.safetensors").read_bytes()
    assert adapter(store, "k", 2.0) == first  # the loser adopts the winner's result
    assert (first / "adapter_model.safetensors").read_bytes() == content
    assert not store.work("k").exists()


def test_an_adapter_with_a_flipped_byte_is_set_aside(store: Store, said: list[str]) -> None:
    weights = adapter(store, "k", 1.0) / "adapter_model.safetensors"
    assert store.adapter("k") is not None
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    fresh = Store(store.root, said.append)
    assert fresh.adapter("k") is None
    assert "does not have the bytes" in said[0]


def test_one_writer_at_a_time(store: Store, said: list[str]) -> None:
    order: list[str] = []
    other = Store(store.root, said.append)

    def second() -> None:
        with other.writing("k"):
            order.append("second")

    with store.writing("k"):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.3)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert "another process" in said[0]


def test_parts_of_a_table_have_writers_of_their_own_and_are_not_freed_under_them(store: Store, said: list[str]) -> None:
    key = digest("a table")
    made = store.path("logps", key)
    made.mkdir(parents=True)
    other = Store(store.root, said.append)
    with store.writing(key, "chosen"):
        with other.writing(key, digest("answers")), other.writing(key, patience=60):
            assert not said
        assert not other.free(made) and made.exists()
        assert not other.free(store.root / "locks" / f"{key}-chosen.lock")
    assert other.free(made) and not made.exists()
    assert not list((store.root / "locks").glob("*.lock"))


def test_a_store_of_another_version_is_refused(store: Store) -> None:
    (store.root / "FORMAT").write_text("99")
    with pytest.raises(InputError, match=r"output\.store.*'99'.*use another folder"):
        Store(store.root, print)
