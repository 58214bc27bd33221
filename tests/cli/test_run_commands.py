"""runs, compare, remove; recipes, copy, --version."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.image import imread
from rich.console import Console
from scipy import stats

from helpers.commands import arguments, call
from helpers.games import tiny
from lowmem_spin import __version__
from lowmem_spin.algorithm.stages import Stage, Train
from lowmem_spin.common.checked import read_checked, write_checked
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.report.intervals import Z
from lowmem_spin.report.overview import Played, overview_grid, played
from lowmem_spin.runner import run as runner
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.removal import remove_results
from lowmem_spin.runner.run_folder import open_store, read_run_folder

RECIPES = sorted(path.stem for path in find_recipe("quickstart").parent.glob("*.yaml"))


BETTER = np.linspace(0.5, 1.5, 8)  # of each held-out row, in nats


@pytest.fixture
def runs(copy: Path) -> Path:
    """Three runs: one finished, one whose last iterate is a nat better by the data's answers, one that was stopped."""
    top = copy / "runs"
    for name in ("first", "better", "stopped"):
        shutil.copytree(copy / "run", top / name, symlinks=False)
    lines = [json.loads(line) for line in (top / "better" / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["chosen_logp"] += 1
    lines[-1]["rows"] = {
        "chosen_logp": [one + more for one, more in zip(lines[-1]["rows"]["chosen_logp"], BETTER, strict=True)]
    }
    lines[-1]["policy"] = "a" * 20
    (top / "better" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = read_checked(top / "better" / "run.json")
    record["policies"][lines[-1]["name"]] = "a" * 20
    write_checked(top / "better" / "run.json", record)
    (top / "stopped" / "metrics.jsonl").unlink()
    shutil.rmtree(top / "stopped" / "iterates" / "1")
    for age, name in enumerate(("stopped", "better", "first"), 1):
        then = time.time() - age * 3600 * 30
        os.utime(top / name / "run.json", (then, then))
    return top


def test_runs_says_how_far_and_how_good_each_is(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "broken").mkdir()
    (runs / "broken" / "run.json").write_text("{")
    result = call("runs", runs)
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    found = list(rows)[3:]
    assert [name for name in found if (runs / name).is_dir()] == ["broken", "stopped", "better", "first"]
    assert "does not read back" in rows["broken"]
    assert "not finished: 1 of 2" in rows["stopped"] and "1 d ago" in rows["stopped"]
    assert "finished" in rows["better"] and "iterate 1: log-prob of" in rows["better"] and "4 d ago" in rows["first"]


def test_iterates_are_counted_by_their_role_whatever_their_names_are(tmp_path: Path) -> None:
    roles = {"base": ("base", None), "first": ("iterate", 0), "second": ("iterate", 1), "iterate 9": ("baseline", 0)}
    parts = {name: {"role": role, "iteration": iteration} for name, (role, iteration) in roles.items()}
    (tmp_path / "run.json").write_text(json.dumps({"policies": dict.fromkeys(roles, "a" * 20), "roles": parts}))
    assert played(tmp_path / "run.json").state == "not finished: 0 of 2 iterates"


def test_a_run_that_is_being_played_says_so_and_is_not_removed(copy: Path) -> None:
    """Nor is a sweep with such a game; others may go."""
    run, sweep = (copy / "run").rename(copy / "half"), copy / "sweep"
    game = sweep / "points" / "a"
    shutil.copytree(run, copy / "other", symlinks=False)
    (run / "metrics.jsonl").unlink()
    shutil.copytree(run, game, symlinks=False)
    recipe = yaml.safe_load((game / "recipe.yaml").read_text())
    recipe["output"]["store"] = str(copy / "store")
    (game / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    waiting = {"name": "a", "values": {"game.alpha": 1}, "dir": "points/a", "status": "waiting"}
    found = {"recipe": "x", "axes": {"game.alpha": [1]}, "seeds": [42], "points": [waiting]}
    (sweep / "sweep.json").write_text(json.dumps(found))

    def state(name: str) -> str:
        (row,) = (line for line in call("runs", copy).stdout.splitlines() if line.startswith(name))
        return row

    users = open_store(read_run_folder(run), print).users
    with users.playing():
        for folder in (run, game):
            users.note(folder, {})
        assert "playing now: 2 of 2" in state("half") and "playing now: 0 of 1" in state("sweep")
        for folder in (run, sweep):
            assert "is being played; stop that first" in call("remove", folder, "--yes").stderr
        assert "finished" in state("other") and call("remove", copy / "other", "--yes").returncode == 0
    assert "not finished: 2 of 2" in state("half") and "not finished: 0 of 1" in state("sweep")
    assert call("remove", run, sweep, "--yes").returncode == 0 and not sweep.exists()


def test_a_sweep_stands_for_its_points(runs: Path) -> None:
    folder = runs / "sweep"
    shutil.copytree(runs / "first", folder / "points" / "a", symlinks=False)
    points = [
        {"name": name, "values": {"game.alpha": alpha}, "dir": f"points/{name}", "status": status}
        for name, alpha, status in (("a", 0.5, "finished"), ("b", 1, "waiting"))
    ]
    (folder / "sweep.json").write_text(
        json.dumps({"recipe": "x", "axes": {"game.alpha": [0.5, 1]}, "seeds": [42], "points": points})
    )
    text = call("runs", runs).stdout
    (row,) = (line for line in text.splitlines() if line.startswith("sweep"))
    assert "not finished: 1 of 2" in row and "alpha 0.5: log-prob" in row
    assert "points/a" not in text


def test_compare_says_what_is_noise_and_draws_it(runs: Path, tmp_path: Path) -> None:
    picture = tmp_path / "two.png"
    result = call("compare", runs / "first", runs / "better", "--picture", picture)
    assert result.returncode == 0, result.stderr
    (row,) = [" ".join(line.split()) for line in result.stdout.splitlines() if line.startswith("first")]
    assert f"-1.00 ±{Z * stats.sem(BETTER):.2f}" in row and "noise" not in row
    assert "better ends with the highest log-prob of data" in result.stdout
    assert imread(picture).shape[0] > 300


def test_games_that_do_not_compare_are_one_line(runs: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        result = call("compare", *words, "--picture", tmp_path / "x.png")
        assert result.returncode == 2 and not (tmp_path / "x.png").exists()
        return result.stderr

    assert "there is nothing to compare: name two" in refused(runs / "first")
    nothing_yet = refused(runs / "first", runs / "stopped")
    assert "stopped' is not finished, and no policy is measured yet; `lowmem-spin runs` says how far it is" in nothing_yet
    lines = [json.loads(line) for line in (runs / "better" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["samples"][0]["prompt_id"] = "another row"
    (runs / "better" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "was measured on other held-out rows than" in refused(runs / "first", runs / "better")
    assert "must end in .png" in call("compare", runs / "first", runs / "first", "--picture", "x.pdf").stderr


def test_a_game_under_way_is_reported_and_compared_as_far_as_it_is(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before its second iterate; then it goes on, and is like any other."""
    make = runner.make

    def interrupted(game: OpenGame, stage: Stage, note: object = None) -> None:
        if isinstance(stage, Train) and stage.name == "iterate 1":
            raise KeyboardInterrupt
        make(game, stage)

    again, picture = copy / "again", copy / "x.png"
    words = arguments(copy, f"output.dir={again}")
    with monkeypatch.context() as patched:
        patched.setattr(runner, "make", interrupted)
        assert call(*words).returncode == 130
    shown = call("report", again)
    assert shown.returncode == 0, shown.stderr
    assert "this game is not finished: what is shown is of the base and 1 of 2 iterates; `lowmem-spin run" in shown.stdout
    assert "iterate 0" in shown.stdout and "iterate 1" not in shown.stdout
    assert "this game is not finished" in (again / "report.html").read_text()
    users = open_store(read_run_folder(again), print).users
    with users.playing():
        users.note(again, {})
        compared = " ".join(call("compare", copy / "run", again, "--picture", picture).stdout.split())
    assert "this game is being played now: what is shown is of the base and 1 of 2 iterates" in compared and picture.exists()
    assert "not finished: 1 of 2" in call("runs", copy).stdout
    assert call(*words).returncode == 0
    assert (again / "metrics.jsonl").read_bytes() == (copy / "run" / "metrics.jsonl").read_bytes()
    assert not list(again.glob("metrics_so_far*")) and "not finished" not in call("report", again).stdout


def test_compare_says_of_which_seeds_a_difference_is(runs: Path, tmp_path: Path) -> None:
    """Two sweeps of two seeds with one of them in common, and one with a game that is not finished."""
    for name, seeds in (("one", (42, 43)), ("two", (43, 44)), ("apart", (42,))):
        points = []
        for seed in seeds:
            shutil.copytree(runs / ("better" if seed == 42 else "first"), runs / name / "points" / str(seed), symlinks=False)
            points.append({"name": str(seed), "values": {"seed": seed}, "dir": f"points/{seed}", "status": "finished"})
        points.append({"name": "99", "values": {"seed": 99}, "dir": "points/99", "status": "waiting"})
        record = {"recipe": "x", "axes": {}, "seeds": [*seeds, 99], "points": points[: len(points) - (name != "one")]}
        (runs / name / "sweep.json").write_text(json.dumps(record))
    said = call("compare", runs / "one", runs / "two", "--picture", tmp_path / "x.png").stdout
    assert "one has seeds 42, 43, two 43, 44: their difference is of seed 43 alone" in said
    assert f"{runs / 'one'}: 1 of its 3 games are not finished, and left out" in said
    apart = call("compare", runs / "two", runs / "apart", "--picture", tmp_path / "x.png").stdout
    assert "none in common: their difference is partly that of the seeds." in apart
    alike = call("compare", runs / "first", runs / "better", "--picture", tmp_path / "x.png").stdout
    assert "their difference is" not in alike


def test_the_same_run_twice_is_the_same_policy(runs: Path, tmp_path: Path) -> None:
    result = call("compare", runs / "first", runs / "first", "--picture", tmp_path / "x.png")
    assert "first (2)" in result.stdout and "the same policy" in result.stdout


def test_remove_takes_what_a_game_wrote_and_nothing_else(copy: Path) -> None:
    store = sorted((copy / "store").rglob("*"))
    (copy / "run" / "notes.txt").write_text("mine")
    (copy / "run" / "iterates" / "best").write_text("mine too")
    result = call("remove", copy / "run", "--yes")
    assert result.returncode == 0, result.stderr
    assert sorted((copy / "store").rglob("*")) == store
    assert sorted(path.name for path in (copy / "run").rglob("*")) == ["best", "iterates", "notes.txt"]
    assert "not of a game, so kept: iterates, notes.txt" in result.stdout
    assert "it is no folder of a run or a sweep" in call("remove", copy / "run", "--yes").stderr


def test_a_game_of_a_sweep_is_not_removed_alone(copy: Path) -> None:
    game = copy / "sweep" / "points" / "a"
    shutil.copytree(copy / "run", game, symlinks=True)
    (copy / "sweep" / "sweep.json").write_text("{}")
    refused = call("remove", game, "--yes")
    assert refused.returncode == 2 and "is a game of the sweep" in refused.stderr and (game / "metrics.jsonl").exists()


def test_remove_asks_first_and_takes_whole_sweeps(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = copy / "sweep"
    shutil.copytree(copy / "run", sweep / "points" / "a", symlinks=True)
    (sweep / "points" / "b").symlink_to(copy / "run")  # somebody's
    (sweep / "sweep.json").write_text("{}")
    (sweep / "workers.json").write_text("{}")
    (sweep / "workers").mkdir()
    (sweep / "workers" / "worker-1.log").write_text("train")
    monkeypatch.setattr(sys, "stdin", StringIO())
    asked = call("remove", sweep)
    assert asked.returncode == 2 and "nothing is removed; --yes removes without asking" in asked.stderr
    assert asked.stdout.endswith("\n")  # the question has a line of its own
    assert (sweep / "points" / "a" / "metrics.jsonl").exists()
    assert "not of a game, so kept: b" in call("remove", sweep, "--yes").stdout
    with pytest.raises(InputError, match=r"has no run\.json and no sweep\.json"):
        remove_results(sweep)
    (sweep / "points" / "b").unlink()
    assert [path.name for path in sweep.rglob("*")] == ["points"] and (
        copy / "run" / "iterates" / "1" / "adapter_model.safetensors"
    ).exists()
    link = copy / "link"
    link.symlink_to(copy / "run")
    assert "is a link" in call("remove", link, "--yes").stderr


def test_every_shipped_recipe_says_what_it_takes() -> None:
    lines = call("recipes").stdout.splitlines()
    assert sorted(line.split()[0] for line in lines[::2]) == RECIPES
    assert all(";" in line for line in lines[1::2])
    assert all(len(line) <= 100 for line in lines)


def test_a_copy_is_the_recipe_and_plays_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("copy", "quickstart", "mine.yaml").returncode == 0
    assert (tmp_path / "mine.yaml").read_bytes() == find_recipe("quickstart").read_bytes()
    assert call("plan", "mine.yaml").returncode == 0
    assert load_recipe(Path("mine.yaml")).output.dir == "runs/mine"  # not where the game that it was copied from may be
    again = call("copy", "quickstart", "mine.yaml")
    assert again.returncode == 2 and "is there already; choose another name" in again.stderr
    assert call("copy", "zoo", tmp_path).returncode == 0 and (tmp_path / "zoo.yaml").exists()


def test_a_near_miss_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    assert f"did you mean {tmp_path / 'mine.yaml'}?" in call("run", tmp_path / "mine.yml").stderr
    assert "did you mean quickstart?" in call("run", "quikstart").stderr
    assert "`lowmem-spin recipes` lists the shipped ones" in call("run", "llama").stderr


def test_help_cuts_no_option_and_no_command_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    first = call("--help").stdout
    commands = re.findall(r"^  ([a-z]+)  +[A-Z]", first, re.MULTILINE)
    assert len(commands) > 15
    for text in (first, *(call(command, "--help").stdout for command in commands)):
        assert "…" not in text and not re.search(r"\w\.\.\.$", text, re.MULTILINE)
    assert "--apply-chat-template / --no-apply-chat-template" in call("evaluate", "--help").stdout


def test_it_says_its_version() -> None:
    said = subprocess.run([sys.executable, "-m", "lowmem_spin", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"lowmem-spin {__version__}\n"


def test_a_run_ends_when_its_hours_are_over_with_what_it_has_stored(tmp_path: Path) -> None:
    sets = [word for override in tiny(tmp_path) for word in ("--set", override)]
    result = call("run", "quickstart", *sets, "--max-hours", "0.0000001")
    assert result.returncode == 0, result.stderr
    assert "1e-07 hours are over; what is finished is stored, run the same command again to continue" in result.stdout
    assert len(list(tmp_path.glob("store/completions/*/*.parquet"))) == 1
    assert "cannot be used; give the hours to play" in call("run", "quickstart", *sets, "--max-hours", "nan").stderr


def _printed(games: list[Played], width: int) -> str:
    printed = StringIO()
    Console(file=printed, width=width).print(overview_grid(games, Path("runs")).table("Games"))
    return printed.getvalue()


def test_a_narrow_terminal_breaks_no_word_and_shares_have_a_unit() -> None:
    games = [
        Played(Path("runs/quickstart_with_a_name"), "finished", "iterate 1: exact match 39.0 ±2.0%", 1000, 5.0),
        Played(Path("runs/b"), "not finished: 1 of 1 iterates", "", 1_700_000, 600.0),
    ]
    shown = _printed(games, 80)
    assert max(map(len, shown.splitlines())) <= 80
    assert all(word in shown for word in ("quickstart_with_a_name", "iterates", "not finished:", "best policy", "±2.0%"))
    assert shown.count("run  ") == 1 and "1.0 kB" in shown  # one table
    words = set(_printed(games, 60).split())
    assert {"quickstart_with_a_name", "finished:", "iterates", "iterate", "exact", "match"} <= words


@pytest.mark.parametrize("before", [[], ["--set=game.history=2"], ["--set", "game.history=2"]])
def test_a_setting_without_its_option_is_led_to_it(before: list[str]) -> None:
    refused = call("run", "quickstart", *before, "game.alpha=0.5")
    assert (refused.returncode, refused.stderr) == (2, "error: 'game.alpha=0.5': did you mean --set game.alpha=0.5?\n")
    assert "--set" not in call("run", "quickstart", "--set", "game.alpha=2").stderr
