"""A store knows which run folders need what of it, wherever they are and whether they are being played; gc asks it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from helpers.commands import SMALL, assert_one_line, call
from lowmem_spin.cli.play import run
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.runner import gc, run_folder
from lowmem_spin.runner.open import SharedResources, open_game
from lowmem_spin.runner.run import Player
from lowmem_spin.store.store import Store
from lowmem_spin.store.users import KINDS, Users, UserState

KEY, OTHER = "0123456789abcdef0123", "5" * 20


@contextmanager
def played_by_another_process(users: Users, folder: Path, keys: dict[str, set[str]]) -> Iterator[subprocess.Popen[bytes]]:
    """Until it is killed."""
    users.note(folder, keys)
    (record,) = [user.record for user in users.known() if user.folder == folder]
    lease = users.folder / f"{'e' * 32}.lock"
    record.write_text(json.dumps({**json.loads(record.read_text()), "lease": lease.stem}))
    code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, lease], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def users(tmp_path: Path) -> Users:
    return Store(tmp_path / "store", print).users


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "drive" / "run"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    return folder


def state(users: Users) -> UserState:
    (user,) = users.known()
    return user.state


def test_what_has_become_of_a_run_is_seen_from_its_folder(users: Users, folder: Path) -> None:
    users.note(folder, {"adapters": {KEY}})
    assert state(users) is UserState.HERE
    folder.parent.rename(folder.parents[1] / "unplugged")
    assert state(users) is UserState.AWAY
    folder.parent.write_text("a file where the drive was")
    assert state(users) is UserState.AWAY
    folder.parent.unlink()
    (folder.parents[1] / "unplugged").rename(folder.parent)
    (folder / "run.json").unlink()
    assert state(users) is UserState.GONE
    shutil.rmtree(folder)
    assert state(users) is UserState.GONE
    (user,) = users.known()
    record = json.loads(user.record.read_text())
    user.record.write_text(json.dumps(record | {"device": record["device"] + 1}))  # an empty mount point is another drive
    assert state(users) is UserState.AWAY


def test_a_user_is_noted_once_and_what_it_needs_more_is_added(users: Users, folder: Path) -> None:
    users.note(folder, {"adapters": {KEY}})
    users.note(folder, {"completions": [OTHER]}, more=True)
    (user,) = users.known()
    assert {kind: keys for kind, keys in user.keys.items() if keys} == {"adapters": {KEY}, "completions": {OTHER}}
    users.note(folder / ".." / "run", {"logps": {OTHER}})  # another game in the same place
    (user,) = users.known()
    assert {kind: keys for kind, keys in user.keys.items() if keys} == {"logps": {OTHER}} and user.keys.keys() == set(KINDS)


def test_who_plays_is_known_until_the_process_dies(users: Users, folder: Path) -> None:
    shutil.rmtree(folder)  # however little there is of it yet
    with played_by_another_process(users, folder, {"adapters": {KEY}}) as process:
        assert state(users) is UserState.PLAYED and users.anyone() and list(users.leases()) == []
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert state(users) is UserState.GONE and not users.anyone() and len(list(users.leases())) == 1


def test_this_process_plays_from_begin_to_end(users: Users, folder: Path) -> None:
    with users.playing():
        users.begin()  # another game of the same sweep
        users.note(folder, {})
        assert state(users) is UserState.PLAYED and users.anyone()
    assert state(users) is UserState.HERE and not users.anyone() and not list(users.folder.glob("*.lock"))


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", '{"folder": "/elsewhere"}', lambda text: text.replace(KEY, "../.."), lambda text: text.replace("run", "x")],
)
def test_a_record_that_does_not_read_may_be_of_anything(damage: Any, users: Users, folder: Path) -> None:
    users.note(folder, {"adapters": {KEY}})
    (user,) = users.known()
    user.record.write_text(damage if isinstance(damage, str) else damage(user.record.read_text()))
    with pytest.raises(
        InputError, match=r"users/[0-9a-f]{20}\.json: does not read, .* play that run again, or delete the file"
    ):
        users.known()
    users.note(folder, {"adapters": {KEY}}, more=True)  # as playing it again does
    assert state(users) is UserState.HERE


def test_a_store_that_can_only_be_read_says_so(folder: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is closed to root")
    said: list[str] = []
    users = Store(tmp_path / "store", said.append).users
    users.folder.mkdir()
    users.folder.chmod(0o500)
    with users.playing():
        users.note(folder, {})
    users.folder.chmod(0o700)
    assert len(said) == 2 and all("gc is not told that this run uses the store" in line for line in said)


def stored(store: Path) -> set[Path]:
    return {path for kind in KINDS for path in (store / kind).glob("*")}


@pytest.fixture
def shared(copy: Path) -> Path:
    """A finished game, and another one that has only begun below runs/, in a store that knows only of the second."""
    shutil.rmtree(copy / "store" / "users")
    changes = {**SMALL, "output.store": copy / "store", "output.dir": copy / "runs" / "begun", "game.alpha": 0.3}
    path = find_recipe("quickstart")
    recipe = load_recipe(path, [f"{name}={value}" for name, value in changes.items()])
    display = Display(Console(quiet=True))
    Player(open_game(recipe, path.parent, display, SharedResources()), display, {})
    return copy


def free(home: Path, *more: object) -> subprocess.CompletedProcess[str]:
    result = call("gc", "--store", home / "store", "--runs", home / "runs", "--delete", "--grace-hours", 0, *more)
    assert result.returncode == 0, result.stderr
    return result


def said(result: subprocess.CompletedProcess[str]) -> str:
    return " ".join(result.stdout.split())


def register(home: Path, folder: Path) -> Store:
    """As whoever plays or measures it does."""
    store = Store(home / "store", print)
    store.users.note(folder, gc.keys_of(run_folder.read_run_folder(folder)))
    return store


def test_a_run_registers_itself_and_ends_its_lease(whole: Path) -> None:
    (user,) = Store(whole / "store", print).users.known()
    used = gc.used_by([whole / "run"])
    assert (user.folder, user.state, user.keys) == (whole / "run", UserState.HERE, used.keys)
    assert not list((whole / "store" / "users").glob("*.lock"))
    assert gc.leftovers(Store(whole / "store", print)) == []


def test_gc_keeps_what_a_run_elsewhere_uses(shared: Path) -> None:
    before = stored(shared / "store")
    register(shared, shared / "run")
    assert "1 run below " in said(result := free(shared)) and " and 1 elsewhere use " in said(result)
    assert stored(shared / "store") == before
    (shared / "run").rename(shared / "moved")
    shown = call("gc", "--store", shared / "store", "--runs", shared / "runs", "--grace-hours", 0)
    gone = (
        f"{shared / 'run'}: this run folder no longer exists, so its results can be deleted; if you have moved it, give --runs"
    )
    assert gone in shown.stdout.replace("\n", "")
    assert stored(shared / "store") == before and len(list((shared / "store" / "users").glob("*.json"))) == 2
    register(shared, Path(shutil.copytree(shared / "moved", shared / "runs" / "sweep" / "points" / "a", symlinks=True)))
    shutil.rmtree(shared / "runs" / "sweep")  # below --runs, what is not there was deleted, however much went with it
    free(shared)
    used = gc.used_by([shared / "runs" / "begun"])
    assert {path for path in before if used.has(path.parent.name, path.stem)} == stored(shared / "store") < before
    assert len(list((shared / "store" / "users").glob("*.json"))) == 1
    assert "no longer exists" not in free(shared).stdout


def test_gc_keeps_what_a_run_on_a_drive_that_is_away_used(shared: Path) -> None:
    drive = shared / "drive"
    drive.mkdir()
    (shared / "run").rename(drive / "run")
    register(shared, drive / "run")
    drive.rename(shared / "unplugged")
    before = stored(shared / "store")
    result = free(shared)
    assert "is not here, nor is the drive or folder that it was in: what it used on 20" in said(result)
    assert stored(shared / "store") == before


def test_gc_keeps_all_of_a_run_that_is_played_even_if_its_folder_is_deleted(shared: Path) -> None:
    store = Store(shared / "store", print)
    keys, before = gc.keys_of(run_folder.read_run_folder(shared / "run")), stored(shared / "store")
    torn = shared / "store" / "data" / f".{KEY}.parquet.{'a' * 32}"
    torn.write_text("half of it")
    with played_by_another_process(store.users, shared / "run", keys):
        shutil.rmtree(shared / "run")
        result = free(shared)
        assert f"{shared / 'run'} is being played: all that it uses is kept" in said(result)
        assert "leftovers stay: a game is being played" in said(result)
        assert stored(shared / "store") - {torn} == before and torn.exists()
    free(shared)
    assert stored(shared / "store") < before and not torn.exists()


def test_gc_leaves_alone_what_is_young(shared: Path) -> None:
    old = (shared / "run" / "iterates" / "1").resolve()  # no other run has it
    shutil.rmtree(shared / "run")
    before = stored(shared / "store")
    words = ["gc", "--store", shared / "store", "--runs", shared / "runs", "--delete"]
    result = call(*words)
    assert "nothing deleted: " in said(result) and "is unused but younger than 24 h; --grace-hours 0 deletes it" in said(result)
    assert "nothing is unused" not in result.stdout and stored(shared / "store") == before
    assert "nothing to delete: " in (shown := said(call(*words[:-1]))) and "--grace-hours 0 shows it" in shown
    for path in (old, *old.rglob("*")):
        os.utime(path, (0, time.time() - 30 * 3600))
    assert "is unused but younger than 24 h" in said(call(*words))
    assert stored(shared / "store") == before - {old}


def test_gc_finds_what_killed_processes_have_left(shared: Path) -> None:
    root = shared / "store"
    (adapter, *_) = (root / "adapters").iterdir()
    (table, *_) = (root / "logps").iterdir()
    store, used = register(shared, shared / "run"), stored(root)
    left = [
        root / f".sources.json.{'a' * 32}",
        root / "weights" / f".{KEY}.{'b' * 32}",
        table / f".shard-{'1' * 32}.parquet.{'c' * 32}",
        root / "work" / adapter.name,
        root / "aside" / f"freed-{KEY}-12345678",
        root / "locks" / f"{OTHER}.lock",
        root / "users" / f"{'d' * 32}.lock",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        if path.parent.name in ("weights", "work"):
            path.mkdir()
            (path / "model.safetensors").write_bytes(b"x" * 10**6)
        else:
            path.write_text("")
    (root / "data" / ".mine").write_text("nobody's leftover")
    with store.writing(OTHER):
        assert {item.path for item in gc.leftovers(store)} == set(left)
        shown = call("gc", "--store", root, "--runs", shared / "runs", "--grace-hours", 0)
        assert shown.stdout.count("leftover ") == len(left) and "2.0 MB" in shown.stdout, shown.stdout
        assert "is unused but younger than 24 h" in call("gc", "--store", root, "--runs", shared / "runs").stdout
        assert "a process is computing it" in free(shared).stdout
    free(shared)
    assert not any(path.exists() for path in left)
    assert stored(root) == (used - {root / "work" / adapter.name}) | {root / "data" / ".mine"}


def test_gc_does_not_go_on_without_a_record(shared: Path) -> None:
    path = shared / "store" / "users" / f"{digest('somewhere')}.json"
    path.write_text("{")
    before = stored(shared / "store")
    result = call("gc", "--store", shared / "store", "--runs", shared / "runs", "--delete")
    assert_one_line(result, f"{path.name}: does not read", "nothing is freed")
    assert stored(shared / "store") == before


def test_a_game_that_is_refused_ends_its_lease(copy: Path) -> None:
    path, display = find_recipe("quickstart"), Display(Console(quiet=True))
    changes = {**SMALL, "output.store": copy / "store", "output.dir": copy / "run", "game.alpha": 0.3}
    with pytest.raises(InputError, match="has another game"):
        run(load_recipe(path, [f"{name}={value}" for name, value in changes.items()]), path.parent, display)
    assert not list((copy / "store" / "users").glob("*.lock"))
