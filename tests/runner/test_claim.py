"""Whose files: a run folder belongs to one game, what no game wrote is never touched, and what moves together is found."""

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from safetensors.numpy import save_file

from helpers.commands import assert_one_line, call
from helpers.games import QUICKSTART, opened, played, tiny
from lowmem_spin.algorithm.stages import Train
from lowmem_spin.cli import play
from lowmem_spin.common.checked import read_checked
from lowmem_spin.common.display import Display, TimeIsUpError
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import check_inside
from lowmem_spin.config.grid import planned_points, sweep_axes, sweep_folder, sweep_points
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.runner import gc, run_folder
from lowmem_spin.runner import sweep as sweeps
from lowmem_spin.runner.open import OpenGame, SharedResources, open_game
from lowmem_spin.runner.planning.plan import plan
from lowmem_spin.runner.record import link_iterate
from lowmem_spin.runner.run import Player
from lowmem_spin.store.store import Store

OTHER = "training.learning_rate=1e-2"


@pytest.fixture
def masked() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A game, its data, its base and its store in one tree, played where a group shares its files."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(QUICKSTART / "base", folder / "base")
    before = os.umask(0o002)
    try:
        played(folder, f"model.name_or_path={folder / 'base'}")
    finally:
        os.umask(before)
    return folder


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """The tree, copied elsewhere as it is."""
    return Path(shutil.copytree(home, tmp_path / "copy", symlinks=True))


def game(folder: Path, *overrides: str) -> OpenGame:
    return opened(folder, f"model.name_or_path={folder / 'base'}", *overrides)


def begin(folder: Path, *overrides: str, replace: bool = False) -> Player:
    """What a run does before anything is computed."""
    return Player(game(folder, *overrides), Display(Console(quiet=True)), {}, replace=replace)


def content(folder: Path) -> dict[str, Any]:
    """Files by their bytes, links by where they lead."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    return {str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in paths}


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "run.json").read_text())


def edit(path: Path, **changes: Any) -> None:
    known = read_checked(path)
    path.write_text(json.dumps({name: value for name, value in {**known, **changes}.items() if value is not None}))


def planned(home: Path, *options: str, gpu: str | None = None) -> list[str]:
    overrides = tiny(home, f"model.name_or_path={home / 'base'}", *options)
    return plan(planned_points(find_recipe("quickstart"), overrides, {}, 1), home, gpu).notes


@pytest.mark.parametrize(
    "name", ["iterates/my_notes.txt", "recipe.yaml", "report.html", "report_score.png", "serve/a", "run.json"]
)
def test_what_no_game_wrote_is_neither_overwritten_nor_deleted(name: str, home: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    known = re.escape(name.split("/", maxsplit=1)[0])
    for replace in (False, True):
        with pytest.raises(
            InputError, match=rf"^output\.dir: '.*run' has {known} already, but no game .*; choose another folder, "
        ):
            begin(home, f"output.dir={tmp_path / 'run'}", replace=replace)
    assert content(tmp_path) == {f"run/{name}": b"{}"}
    (note,) = (note for note in planned(home, f"output.dir={tmp_path / 'run'}") if "output.dir" in note)
    assert re.match(rf"a run is refused as it is: output\.dir: .* has {known} already", note)


@pytest.mark.parametrize("field", ["output.dir", "output.store"])
@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("file", "is a file"),
        ("file/run", "would be in .*file', which is a file"),
        ("link", "is a link that leads nowhere"),
        ("link/run", "would be in .*link', which is a link that leads nowhere"),
    ],
)
def test_where_no_folder_can_be_made_is_refused(field: str, name: str, what: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    line = rf"^{re.escape(field)}: '.*{name}' {what}; "
    with pytest.raises(InputError, match=line):
        begin(home, f"{field}={tmp_path / name}")
    try:
        (note,) = (note for note in planned(home, f"{field}={tmp_path / name}") if field in note)
    except InputError as error:
        note = str(error)
    assert re.search(line.removeprefix("^"), note)


def test_a_plan_says_what_a_run_refuses(home: Path, tmp_path: Path) -> None:
    assert not any("output.dir" in note for note in planned(home))
    assert not any("output.dir" in note for note in planned(home, gpu="4090"))  # whose game it is, no other card can tell
    (note,) = (note for note in planned(home, OTHER) if "output.dir" in note)
    assert "has another game, whose iterate 0, iterate 1 would be lost" in note


def test_other_files_of_the_user_are_left_alone(copy: Path, tmp_path: Path) -> None:
    mine = {"notes.txt": "run", "iterates/notes.txt": "kept", "iterates/best/weights": "kept", "iterates/7/weights": "kept"}
    for name, text in mine.items():
        path = copy / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (copy / "run" / "iterates" / "best_link").symlink_to("0")
    begin(copy, OTHER, replace=True)
    assert {name: (copy / "run" / name).read_text() for name in mine} == mine
    assert sorted(path.name for path in (copy / "run" / "iterates").iterdir()) == ["7", "best", "best_link", "notes.txt"]
    (tmp_path / "empty" / "iterates").mkdir(parents=True)
    begin(copy, f"output.dir={tmp_path / 'empty'}")  # nothing is in it that could be lost


def test_an_iterate_of_the_users_own_is_not_taken_for_ours(copy: Path) -> None:
    place = copy / "run" / "iterates" / "1"
    place.unlink()
    place.mkdir()
    (place / "adapter_model.safetensors").write_bytes(b"mine")
    before = content(copy / "run")
    for options, replace in (((), False), ((), True), ((OTHER,), True)):
        with pytest.raises(InputError, match=r"iterates/1' is no iterate of a game in this folder; move it away"):
            begin(copy, *options, replace=replace)
    assert content(copy / "run") == before


def test_another_game_is_refused_and_replaces_only_when_asked(copy: Path) -> None:
    before = content(copy / "run")
    words = ["run", "quickstart", *(f"--set={one}" for one in tiny(copy, f"model.name_or_path={copy / 'base'}", OTHER))]
    assert_one_line(
        call(*words), "error: output.dir: ", "has another game, whose iterate 0, iterate 1 would be lost", "--replace"
    )
    assert content(copy / "run") == before
    earlier = record(copy)
    begin(copy, OTHER, replace=True)
    assert set(content(copy / "run")) == {"recipe.yaml", "run.json"}
    assert record(copy)["policies"] != earlier["policies"] and record(copy)["seconds"] == {}
    begin(copy, OTHER)  # and goes on
    begin(copy)  # nothing of the other is there yet that could be lost


@pytest.mark.parametrize(("command", "axis"), [("run", []), ("sweep", ["--alpha=1"])])
def test_the_command_line_replaces_and_trusts_only_when_asked(
    command: str, axis: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def played(*given: Any) -> None:
        replace, trust = given[3:5]
        asked.append((replace, trust.given))
        raise InputError("not now")

    monkeypatch.setattr(play, command, played)
    for options in ([], ["--replace"], ["--trust"]):
        assert call(command, "quickstart", f"--set=output.dir={tmp_path / 'run'}", *axis, *options).returncode == 2
    assert asked == [(False, False), (True, False), (False, True)]


def test_the_same_game_goes_on(copy: Path) -> None:
    edit(copy / "run" / "run.json", seconds={"train": 7.5})
    before = {name: value for name, value in content(copy / "run").items() if name not in ("run.json", "recipe.yaml")}
    for options in (
        [],
        ["game.iterations=3"],
        ["game.iterations=3", "evaluation.compare_sft=true"],
        ["evaluation.compare_sft=false", "runtime.scoring_batch_size=3", "evaluation.benchmarks=[diversity]"],
    ):
        begin(copy, *options)
        now = {name: value for name, value in content(copy / "run").items() if name not in ("run.json", "recipe.yaml")}
        assert now == before and record(copy)["seconds"] == {"train": 7.5}, options
    with pytest.raises(InputError, match=r"has this game with more iterations: iterate 1 would be lost to game.iterations 1; "):
        begin(copy, "game.iterations=1")


def test_what_is_shared_with_the_other_game_is_not_called_lost(copy: Path) -> None:
    """Another history plays the same first iterate."""
    with pytest.raises(InputError, match="has another game, whose iterate 1 would be lost;"):
        begin(copy, "game.alpha=0.5")
    (copy / "run" / "iterates" / "1").unlink()
    (copy / "run" / "metrics.jsonl").unlink()
    begin(copy, "game.alpha=0.5")  # as if the first had been interrupted before it


def test_only_the_numbers_are_left_and_they_count(copy: Path) -> None:
    shutil.rmtree(copy / "run" / "iterates")
    with pytest.raises(InputError, match="another game, whose iterate 0, iterate 1 would be lost"):
        begin(copy, OTHER)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"policies": 3}', '{"policies": {"a": "b"}, "roles": 5}'])
def test_a_damaged_record_does_not_give_the_folder_away(damage: str, copy: Path) -> None:
    earlier = record(copy)
    (copy / "run" / "run.json").write_text(damage)
    if damage != "[]":  # which is whole, and of something else
        with pytest.raises(InputError, match="has another game, whose iterate 0, iterate 1 would be lost"):
            begin(copy, OTHER)
        begin(copy)
        assert record(copy)["policies"] == earlier["policies"]
    else:
        with pytest.raises(InputError, match=r"has run\.json already, but no game"):
            begin(copy)


def test_a_folder_of_an_earlier_version_is_known(copy: Path) -> None:
    edit(copy / "run" / "run.json", ways=None, roles=None)
    lines = [json.loads(line) for line in (copy / "run" / "metrics.jsonl").read_text().splitlines()]
    old = [{name: value for name, value in line.items() if name not in ("role", "iteration")} for line in lines]
    (copy / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    with pytest.raises(InputError, match="another game, whose iterate 0, iterate 1 would be lost"):
        begin(copy, OTHER)
    begin(copy)


def test_copies_of_iterates_are_known_where_a_file_system_has_no_links(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    trained = [stage for stage in game(copy).stages if isinstance(stage, Train)]
    shutil.rmtree(copy / "run" / "iterates")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    for _ in range(2):
        for stage in trained:
            link_iterate(game(copy), stage)
    names = sorted(path.name for path in (copy / "run" / "iterates").iterdir())
    assert names == ["0", "1"] and not any((copy / "run" / "iterates" / name).is_symlink() for name in names)
    begin(copy)
    with pytest.raises(InputError, match="would be lost"):
        begin(copy, OTHER)
    begin(copy, OTHER, replace=True)
    assert list((copy / "run" / "iterates").iterdir()) == []


def test_a_folder_in_a_runs_folder_that_leads_out_of_it_is_not_written_to(tmp_path: Path) -> None:
    for name in ("run/serve", "run/alpaca", "mine"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "linked").symlink_to("run")  # the folder itself may be anywhere
    (tmp_path / "run" / "inside").symlink_to("alpaca")
    (tmp_path / "run" / "mtbench").symlink_to("../mine")
    check_inside(tmp_path / "linked", "serve", "alpaca", "inside", "not/yet/there")
    for name in ("mtbench", "mtbench/model_answer", ".."):
        with pytest.raises(InputError, match=r"' is a link that leads out of '.*linked'; remove it$"):
            check_inside(tmp_path / "linked", "serve", name)


def test_links_that_lead_elsewhere_are_put_right(copy: Path, tmp_path: Path) -> None:
    trained = [stage for stage in game(copy).stages if isinstance(stage, Train)]
    places = [(copy / "store" / "adapters" / stage.policy).resolve() for stage in trained]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    for name, target, said in (
        ("0", "nowhere", True),
        ("1", str(tmp_path / "mine"), True),
        ("0", f"../../store/adapters/{trained[1].policy}", True),
        ("1", f"../../gone/{'a' * 20}", True),
        ("0", "0", True),  # round in a circle
        ("0", f"../../gone/{trained[0].policy}", False),  # a store that was here before
    ):
        (copy / "run" / "iterates" / name).unlink()
        (copy / "run" / "iterates" / name).symlink_to(target)
        going_on, notices = begin(copy).game, list[str]()
        going_on.store.notice = notices.append
        for stage in trained:
            link_iterate(going_on, stage)
        assert [(copy / "run" / "iterates" / number).resolve() for number in "01"] == places
        assert [notice.partition(" led to ")[0] for notice in notices] == [str(copy / "run" / "iterates" / name)] * said
    assert content(tmp_path / "mine") == {"notes": b"mine"}


def test_a_sweep_in_the_folder_of_another_is_refused_whole(tmp_path: Path) -> None:
    path, display = find_recipe("quickstart"), Display(Console(quiet=True))

    def sweep(alphas: str, *more: str) -> sweeps.SweepState:
        overrides = tiny(tmp_path, "game.iterations=1", *more)
        varied = sweep_axes(path, alphas, None, [])
        entries = [sweeps.Entry(point) for point in sweep_points(path, overrides, varied, 1)]
        return sweeps.SweepState("quickstart", sweep_folder(load_recipe(path, overrides)), varied, [42], entries)

    play.sweep(sweep("0.5"), tmp_path, display)
    before = content(tmp_path / "run-sweep")
    for more in ((OTHER,), (OTHER, "game.pairs=100000")):  # the second has no point that could be played
        with pytest.raises(InputError, match=r"has another game|no game could be opened"):
            play.sweep(sweep("0.25,0.5", *more), tmp_path, display)
        assert content(tmp_path / "run-sweep") == before
    late = Display(Console(quiet=True))
    late.deadline = 0.0  # over after its first stage
    with pytest.raises(TimeIsUpError):
        play.sweep(sweep("0.5", OTHER), tmp_path, late, replace=True)
    assert list((tmp_path / "run-sweep" / "points" / "alpha-0.5_seed-42" / "iterates").iterdir()) == []
    play.sweep(sweep("0.5"), tmp_path, display)
    said = Console(record=True, width=200, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    play.sweep(sweep("0.25"), tmp_path, Display(said))
    assert "of an earlier one in this folder: alpha-0.5_seed-42; they stay in " in said.export_text()
    assert (tmp_path / "run-sweep" / "points" / "alpha-0.5_seed-42" / "metrics.jsonl").exists()
    (tmp_path / "mine-sweep").mkdir()
    (tmp_path / "mine-sweep" / "report.md").write_text("mine")
    with pytest.raises(InputError, match=r"has report\.md already, but no game"):
        play.sweep(sweep("0.5", f"output.dir={tmp_path / 'mine'}"), tmp_path, display)
    assert content(tmp_path / "mine-sweep") == {"report.md": b"mine"}


def test_gc_frees_nothing_that_no_store_wrote(copy: Path) -> None:
    """Somebody has a store in a folder that has data of theirs."""
    for name in ("data/train.jsonl", "weights/mine.safetensors", "work/thesis/text"):
        (copy / "store" / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / "store" / name).write_text("mine")
    (copy / "store" / "data" / f"{'a' * 20}.parquet").write_text("ours, of a run that is gone")
    result = call("gc", "--store", copy / "store", "--runs", copy / "run", "--grace-hours", 0, "--delete")
    assert result.returncode == 0 and "a" * 20 in result.stdout, result.stderr
    assert not (copy / "store" / "data" / f"{'a' * 20}.parquet").exists()
    assert (copy / "store" / "data" / "train.jsonl").read_text() == (copy / "store" / "work/thesis/text").read_text() == "mine"


def test_what_was_moved_together_is_found_together(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    for _ in range(2):  # copied, and moved
        run = run_folder.read_run_folder(copy / "run")
        paths = [run.recipe.model.name_or_path, run.recipe.data.path, run.recipe.output.dir, run.recipe.output.store]
        assert [Path("/", path) for path in map(str, paths)] == [
            copy / name for name in ("base", "train.jsonl", "run", "store")
        ]
        store = run_folder.open_store(run, print)
        assert store.root.resolve() == copy / "store"
        assert Path(run_folder.find_base(run, store).location) == copy / "base"
        assert run_folder.find_policy(run, store, "1").adapter.resolve().is_relative_to(copy)  # type: ignore[union-attr]
        assert gc.used_by([copy / "run"]).has("adapters", run.policies["iterate 1"])
        recipe = load_recipe(copy / "run" / "recipe.yaml")
        again = open_game(recipe, copy / "run", Display(Console(quiet=True)), SharedResources())
        player = Player(again, Display(Console(quiet=True)), {})
        for stage in again.stages:
            player.play(stage)  # no engine opens: there is no room for one in SharedResources that nobody closes
        assert not again.engines.pool.opened
        assert load_recipe(copy / "run" / "recipe.yaml", ["game.alpha=0.5"]).output.dir == str(copy / "run-alpha0.5")
        copy = copy.rename(copy.with_name("moved"))


def test_a_run_that_was_moved_alone_finds_the_rest_where_it_was(home: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(home / "run", tmp_path / "alone", symlinks=True))
    run = run_folder.read_run_folder(alone)
    assert run.recipe.model.name_or_path == str(home / "base") and run.recipe.output.dir == str(alone)
    assert run_folder.open_store(run, print).root.resolve() == home / "store"


def test_what_somebody_has_edited_is_theirs(copy: Path, tmp_path: Path) -> None:
    written = yaml.safe_load((copy / "run" / "recipe.yaml").read_text())
    written["output"] |= {"dir": "elsewhere", "store": str(tmp_path / "theirs")}
    written["data"]["path"] = "mine.jsonl"
    (copy / "run" / "recipe.yaml").write_text(yaml.safe_dump(written))
    recipe = run_folder.read_run_folder(copy / "run").recipe
    assert (recipe.output.dir, recipe.output.store, recipe.data.path) == ("elsewhere", str(tmp_path / "theirs"), "mine.jsonl")


def test_an_earlier_versions_run_has_its_store_where_its_iterates_lead(copy: Path, tmp_path: Path) -> None:
    edit(copy / "run" / "run.json", ways=None)
    moved = copy.rename(tmp_path / "moved")
    written = yaml.safe_load((moved / "run" / "recipe.yaml").read_text())
    written["output"] |= {"dir": "runs/run", "store": "runs/store"}
    (moved / "run" / "recipe.yaml").write_text(yaml.safe_dump(written))
    recipe = run_folder.read_run_folder(moved / "run").recipe
    assert (Path(str(recipe.output.dir)), Path(recipe.output.store)) == (moved / "run", moved / "store")


def test_a_group_can_read_what_the_umask_lets_it(home: Path) -> None:
    modes = {
        path: stat.S_IMODE(path.stat().st_mode) for path in (home / "store", home / "run") for path in [path, *path.rglob("*")]
    }
    assert {path: mode for path, mode in modes.items() if mode != (0o775 if path.is_dir() else 0o664)} == {}
    assert any(path.name == "adapter_model.safetensors" for path in modes)


def test_nobody_else_can_where_it_does_not(tmp_path: Path, masked: None) -> None:
    store, made = Store(tmp_path / "store", print), tmp_path / "store" / "work" / "k" / "adapter"
    made.mkdir(parents=True)
    save_file({"a": np.zeros(2)}, made / "adapter_model.safetensors")
    os.chmod(made / "adapter_model.safetensors", 0o644)
    store.commit_adapter("k", made, {})
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert modes == {0o600}
