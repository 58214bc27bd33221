"""What somebody else wrote into a run's folder, a sweep's, or a store moves nothing and reaches nothing outside the store."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import assert_one_line, call
from lowmem_spin.common.checked import read_checked, write_checked
from lowmem_spin.common.errors import InputError
from lowmem_spin.store.store import Store

KEY = "0123456789abcdef0123"


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Somebody's own folder: a file with the name of rows, and a folder that could be an adapter's."""
    folder = tmp_path / "mine"
    (folder / "thesis").mkdir(parents=True)
    (folder / "rows.parquet").write_text("mine")
    (folder / "thesis" / "manifest.json").write_text('{"sha256": "0"}')
    (folder / "thesis" / "adapter_model.safetensors").write_text("mine")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = read_checked(path)
    change(record)
    write_checked(path, record)  # who writes a file can write its checksum too


COMMANDS = ("evaluate", "arena", "chat", "export", "serve", "gc", "report")


def command(name: str, copy: Path) -> list[object]:
    """A command on the run of a copied game."""
    run, more = copy / "run", {"serve": ["--print"], "export": ["--to", copy / "out"], "evaluate": ["--suite", "diversity"]}
    judge = ["--judge-base-url", "http://localhost:9/v1", "--judge-model", "none"]
    if name == "gc":
        return ["gc", "--store", copy / "store", "--runs", run, "--delete", "--aside", "--grace-hours", 0]
    return [name, run, *more.get(name, []), *(judge if name == "arena" else [])]


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_follows_a_path_where_a_key_should_be(name: str, absolute: bool, copy: Path, mine: Path) -> None:
    def path(kind: str, target: str) -> str:
        return str(mine / target) if absolute else f"../../../mine/{target}"

    before, said = content(mine), "which is no key: no game writes that, so somebody else has"
    whole = (copy / "run" / "run.json").read_text()
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "policies.iterate 1": lambda record: record["policies"].update({"iterate 1": path("adapters", "thesis")}),
        "data": lambda record: record.update(data=[path("data", "rows")]),
        "inputs.base": lambda record: record["inputs"].update(base=path("adapters", "thesis")),
    }
    for field, change in changes.items():
        if name == "report" and not field.startswith("policies"):
            continue  # it reads no more of the record
        edit(copy / "run" / "run.json", change)
        assert_one_line(call(*command(name, copy)), f"run.json: {field} has '", said)
        (copy / "run" / "run.json").write_text(whole)
    assert content(mine) == before


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"completions": ["../../mine"]}, "completions has '../../mine', which is no key"),
        ({"completions": "mine"}, "completions has 'mine', which is no key"),
        ({"../mine": [KEY]}, "does not read back"),
        ({"completions": [[KEY]]}, "which is no key"),
    ],
)
def test_gc_frees_nothing_by_a_record_that_no_game_wrote(found: Any, line: str, copy: Path) -> None:
    (copy / "run" / "benchmarks_use.json").write_text(json.dumps(found))
    before = content(copy / "store")
    assert_one_line(call(*command("gc", copy)), "benchmarks_use.json: ", line, "nothing is freed")
    assert content(copy / "store") == before


@pytest.mark.parametrize("wrong", [{"model": [1]}, {"stopped": "early"}, {"data": 3}, {"policies": {"base": 3}}])
def test_a_record_of_other_types_is_one_line(wrong: dict[str, Any], copy: Path) -> None:
    edit(copy / "run" / "run.json", lambda record: record.update(wrong))
    for name in ("chat", "gc"):
        assert_one_line(call(*command(name, copy)), "run.json: ")


@pytest.mark.parametrize("dir", ["../mine", "points/../../mine", "/MINE", "link"])
@pytest.mark.parametrize("name", ["report", "evaluate"])
def test_a_sweep_has_its_points_in_its_own_folder(name: str, dir: str, copy: Path, tmp_path: Path) -> None:
    theirs, run = tmp_path / "sweep", copy.rename(tmp_path / "mine") / "run"
    theirs.mkdir()
    (theirs / "link").symlink_to(run)
    place = dir.replace("/MINE", str(run)).replace("mine", "mine/run") if dir != "/MINE" else str(run)
    point = {"name": "a", "values": {"seed": 1}, "dir": place, "status": "finished", "error": None}
    (theirs / "sweep.json").write_text(json.dumps({"recipe": "q", "axes": {}, "seeds": [1], "points": [point]}))
    before = content(tmp_path / "mine")
    words = [name, theirs, *(["--suite", "diversity"] if name == "evaluate" else [])]
    assert_one_line(call(*words), f"sweep.json: dir '{place}'"[:40], "is not in the sweep's folder", "leave the folder alone")
    assert content(tmp_path / "mine") == before


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", print)


@pytest.mark.parametrize("key", ["", "..", ".", "../../mine/thesis", "/etc", "a/b", "a\0", "thésis"])
def test_a_store_makes_no_path_of_what_is_no_key(key: str, store: Store) -> None:
    makes: list[Callable[[], object]] = [
        lambda: store.adapter(key),
        lambda: store.adapter_sha256(key),
        lambda: store.data(key),
        lambda: store.work(key),
        lambda: store.table("logps", key, {}, "base"),
        lambda: store.result(key, KEY, "base"),
        lambda: store.result(KEY, key, "base"),
        lambda: store.commit_result(KEY, key, {}),
        lambda: store.commit_adapter(key, store.root, {}),
        lambda: store.writing(key).__enter__(),
    ]
    for make in makes[:-2]:
        with pytest.raises(InputError, match=r"^output\.store: .* is no key of ") as error:
            make()
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="is no key of"):
        makes[-1]()


def test_a_store_moves_only_what_is_in_it(store: Store, mine: Path) -> None:
    before = content(mine)
    (store.root / "data").symlink_to(mine)
    (store.root / "completions").mkdir()
    (store.root / "completions" / KEY).symlink_to(mine / "thesis")
    for path in (
        mine / "rows.parquet",
        store.root / "data" / "rows.parquet",
        store.root / ".." / "mine" / "thesis",
        store.root / "completions" / KEY / "manifest.json",
        store.root / "data" / "..",
        store.root,
    ):
        for move in (store.free, lambda path: store.set_aside(path, "is wrong")):
            with pytest.raises(InputError, match=r"^output\.store: .* nothing there is moved; remove the link$"):
                move(path)
    with pytest.raises(InputError, match=r"^output\.store: .* is a link that leads out of the store; remove it$"):
        store.table("completions", KEY, {}, "base")
    assert content(mine) == before


@pytest.mark.parametrize("kind", ["adapters", "work"])
def test_an_adapter_that_is_a_link_out_of_the_store_is_not_touched(kind: str, store: Store, mine: Path) -> None:
    before = content(mine)
    (store.root / kind).mkdir()
    (store.root / kind / KEY).symlink_to(mine / "thesis")
    with pytest.raises(InputError, match="is a link that leads out of the store; remove it"):
        store.adapter(KEY) if kind == "adapters" else store.work(KEY)
    assert store.free(store.root / kind / KEY)  # the link, not what it leads to
    assert not (store.root / kind / KEY).is_symlink() and content(mine) == before
    assert list((store.root / "aside").iterdir()) == []


def test_gc_counts_and_frees_a_link_and_not_what_it_leads_to(copy: Path, mine: Path) -> None:
    before, link = content(mine), copy / "store" / "adapters" / KEY
    link.symlink_to(mine / "thesis")
    result = call(*command("gc", copy))
    assert result.returncode == 0 and KEY in result.stdout, result
    assert not link.is_symlink() and content(mine) == before


def test_remove_deletes_nothing_behind_a_link(copy: Path, tmp_path: Path) -> None:
    """Folders with numbers for names, as of years, and a run of one's own."""
    photos, theirs = tmp_path / "photos", copy / "run"
    (photos / "2025").mkdir(parents=True)
    (photos / "2025" / "party.jpg").write_text("mine")
    own = tmp_path / "points" / "a"
    own.mkdir(parents=True)
    (own / "run.json").write_text("{}")
    before = content(tmp_path / "points") | content(photos)
    (theirs / "iterates").rename(copy / "away")
    (theirs / "iterates").symlink_to(photos)
    (theirs / "points").symlink_to(own.parent)
    assert call("remove", theirs, "--yes").returncode == 0
    assert not theirs.exists() and content(tmp_path / "points") | content(photos) == before
