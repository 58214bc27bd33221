"""What the store reads is what was written, or is named, set aside and made again; nothing else comes of damage."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from helpers.harms import HARMS, flipped
from lowmem_spin.common.checked import read_checked
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError
from lowmem_spin.data.rows import SCHEMA, Rows
from lowmem_spin.data.sources import Sources
from lowmem_spin.engines.oracles.reply_cache import Replies
from lowmem_spin.evaluation.benchmark_records import FILE, keep_results
from lowmem_spin.store.store import Store


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Store:
    return Store(tmp_path / "store", said.append)


def adapter(store: Store, key: str = "k") -> Path:
    work = store.work(key) / "adapter"
    work.mkdir(parents=True)
    save_file({"w": np.ones(100, np.float32)}, work / "adapter_model.safetensors")
    (work / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    return store.commit_adapter(key, work, {"kind": "train", "asked": {"a": 1}, "metrics": [{"loss": 0.5}]})


@pytest.mark.parametrize("how", HARMS)
@pytest.mark.parametrize("name", ["manifest.json", "adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_set_aside_and_its_file_named(store: Store, said: list[str], name: str, how: str) -> None:
    HARMS[how](adapter(store) / name)
    assert store.adapter("k") is None
    assert len(said) == 1 and name in said[0] and "does not have the bytes that were committed" in said[0]
    assert adapter(store).exists() and store.adapter("k") is not None and store.manifest("k")["metrics"] == [{"loss": 0.5}]


def test_an_adapter_of_an_earlier_version_is_valid(store: Store, said: list[str]) -> None:
    folder = adapter(store)
    manifest = read_checked(folder / "manifest.json")
    del manifest["files"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert store.adapter("k") == folder and store.adapter_sha256("k") == manifest["sha256"]
    for damage in ("{", "[]", '{"r": "x", "lora_alpha": 8}'):
        (folder / "adapter_config.json").write_text(damage)
        place = Path(shutil.copytree(folder, store.root / "adapters" / f"with{len(damage)}"))
        assert store.adapter(place.name) is None and "adapter_config.json" in said[-1]


@pytest.mark.parametrize("how", HARMS)
def test_a_tables_manifest_is_written_again(store: Store, said: list[str], how: str) -> None:
    columns = {"prompt_id": ["a"], "completion": ["chosen"], "content": ["c"], "logp": [-1.0], "tokens": [3]}
    for _ in range(2):
        store.table("logps", "key", {"asked": 1}, "base").append(columns)
    store.table("logps", "key", {"asked": 1}, "base").merge()
    path = store.root / "logps" / "key" / "manifest.json"
    before = read_checked(path)
    HARMS[how](path)
    assert store.table("logps", "key", {"asked": 1}, "base").read().num_rows == 2
    assert read_checked(path) == before and before["rows"] == 2
    assert len(said) == 1 and "manifest.json" in said[0] and "written again" in said[0]


@pytest.mark.parametrize("how", sorted(set(HARMS) - {"missing"}))
def test_a_damaged_result_is_set_aside(store: Store, said: list[str], how: str) -> None:
    store.commit_result("p", "k", {"maker": "base", "numbers": {"accuracy": 0.5}})
    HARMS[how](store.root / "results" / "p" / "k.json")
    assert store.result("p", "k", "base") is None
    assert len(said) == 1 and "k.json" in said[0] and "computed again" in said[0]


@pytest.mark.parametrize("content", [b"", b"\xff", b"q", None])
def test_a_store_whose_format_is_lost_is_one_line(store: Store, content: bytes | None) -> None:
    stamp = store.root / "FORMAT"
    stamp.unlink()
    stamp.mkdir() if content is None else stamp.write_bytes(content)
    with pytest.raises(InputError, match=r"FORMAT' says no format; delete it, if this version wrote the store$"):
        Store(store.root, print)


def test_a_lock_that_is_a_folder_locks_nothing(store: Store, said: list[str]) -> None:
    (store.root / "locks" / "k.lock").mkdir(parents=True)
    with store.writing("k"):
        pass
    assert len(said) == 1 and "k.lock is a folder" in said[0]


def test_prepared_rows_of_another_shape_are_damage() -> None:
    row: dict[str, list[Any]] = {"id": ["a"], "prompt": [[1]], "chosen": [[2]], "truncated": [False]}
    row |= {"completion": ["x"], "category": [None], "messages": ["[]"]}
    table = pa.table(row, schema=SCHEMA)
    assert Rows(table).ids == ["a"]
    for other in (table.drop_columns("chosen"), table.rename_columns(["i", *table.column_names[1:]])):
        with pytest.raises(DamagedError, match="other columns"):
            Rows(other)
    with pytest.raises(DamagedError, match="counts of rows"):
        Rows(table.replace_schema_metadata({"counts": "{"}))


@pytest.mark.parametrize("how", sorted(set(HARMS) - {"missing"}))
def test_hashes_that_are_not_remembered_are_made_again(tmp_path: Path, said: list[str], how: str) -> None:
    data, memory = tmp_path / "rows.jsonl", tmp_path / "store" / "sources.json"
    data.write_text("{}\n")
    identity = Sources(tmp_path, memory).data("rows.jsonl", None, "data.path").identity
    HARMS[how](memory)
    assert Sources(tmp_path, memory, notice=said.append).data("rows.jsonl", None, "data.path").identity == identity
    assert len(said) == 1 and "sources.json" in said[0] and "are hashed, and hub revisions looked up, again" in said[0]
    assert Sources(tmp_path, memory, notice=said.append).data("rows.jsonl", None, "data.path").identity == identity
    assert len(said) == 1


def test_hashes_that_an_earlier_version_remembered_are_known(tmp_path: Path) -> None:
    (tmp_path / "sources.json").write_text(json.dumps({"hub|dataset|a/b|None": "the commit"}))
    assert Sources(tmp_path, tmp_path / "sources.json").data("a/b", None, "data.path").revision == "the commit"


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[]", b'{"name": "base"}'])
def test_benchmarks_that_do_not_read_are_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(DamagedError, match="does not read back"):
        keep_results(tmp_path, {}, {}, "diversity", "diversity", None)


def replies(path: Path, said: list[str]) -> dict[str, str | None]:
    kept = Replies(path, said.append)
    return {request: kept.get(request) for request in ("one", "two", "old", "new")}


def test_damaged_replies_are_asked_for_again_and_the_others_are_not(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "judge" / "m.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"request": "old", "text": "[[B]]"}) + "\n")  # of an earlier version
    first = Replies(path)
    for request, text in (("one", "[[A]]"), ("two", "a line  with\nends")):
        first.keep(request, text)
    whole = replies(path, said)
    assert whole == {"old": "[[B]]", "one": "[[A]]", "two": "a line  with\nends", "new": None} and said == []
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    for place in range(start, len(content), 3):
        path.write_bytes(flipped(content, place, place % 7))
        said.clear()
        found = replies(path, said)
        assert all(found[request] in (whole[request], None) for request in whole), place
        if found != whole:
            assert len(said) == 1 and "replies do not read back; moved to" in said[0] and "asked for again" in said[0]
            assert replies(path, said) == found and len(said) == 1  # what is wrong is gone
    assert path.with_suffix(".damaged").exists()
    path.write_bytes(content[:-5])  # a kill cut it short, and another process goes on before anybody reads it
    Replies(path, said.append).keep("new", "7")
    assert replies(path, said) == {**whole, "two": None, "new": "7"}


def test_replies_that_are_a_folder_are_set_aside(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "judge" / "m.jsonl").mkdir(parents=True)
    kept = Replies(tmp_path / "judge" / "m.jsonl", said.append)
    assert kept.get("one") is None and len(said) == 1 and "is a folder; moved to" in said[0]
    kept.keep("one", "7")
    assert replies(tmp_path / "judge" / "m.jsonl", said)["one"] == "7"
