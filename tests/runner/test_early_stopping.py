"""When a game ends early: by a table of cases, and in a game that does."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from helpers.games import opened, played, stored, tiny
from lowmem_spin.algorithm.roles import role_of_name
from lowmem_spin.cli import play
from lowmem_spin.cli.play import run
from lowmem_spin.cli.results import show_sweep
from lowmem_spin.common.display import Display
from lowmem_spin.config.choices import StopWhen
from lowmem_spin.config.grid import sweep_axes, sweep_folder, sweep_points
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.report.load import read_run_results, read_sweep
from lowmem_spin.report.summary import verdict
from lowmem_spin.runner import run_folder
from lowmem_spin.runner import sweep as sweeps
from lowmem_spin.runner.early_stopping import EarlyStop, stops_early
from lowmem_spin.runner.health import Estimate, Health
from lowmem_spin.runner.planning import plan as planning
from lowmem_spin.runner.run import Player
from lowmem_spin.store.store import Store


def health(name: str, kl: float = 0.0, length: float = 10.0, chosen: float = -5.0, wins: float | None = None) -> Health:
    def estimate(mean: float) -> Estimate:
        return Estimate(np.array([mean, mean]))

    nothing = estimate(0.0)
    return Health(
        name, *role_of_name(name), "key", "rows", estimate(chosen),
        estimate(kl), nothing, nothing, estimate(length), nothing, nothing, nothing,
        win_rate_to_previous=None if wins is None else estimate(wins),
    )  # fmt: skip


def healths(**columns: Sequence[Any]) -> list[Health]:
    rows = enumerate(zip(*columns.values(), strict=True))
    return [health(f"iterate {t - 1}" if t else "base", **dict(zip(columns, row, strict=True))) for t, row in rows]


@pytest.mark.parametrize(
    ("when", "columns", "expected"),
    [
        ({}, {"kl": [0, 9], "length": [10, 90], "chosen": [-1, -9]}, None),
        ({"kl_to_base": 3}, {"kl": [0, 2, 3]}, None),
        ({"kl_to_base": 3}, {"kl": [0, 2, 3.5]}, ("iterate 1", "iterate 0", "KL to base is 3.50, over 3")),
        ({"kl_to_base": 3}, {"kl": [0, 4]}, ("iterate 0", "base", "KL to base is 4.00, over 3")),
        ({"length_drift": 0.5}, {"length": [10, 15]}, None),
        ({"length_drift": 0.5}, {"length": [10, 12, 16]}, ("iterate 1", "iterate 0", "answers are 60% longer than base's")),
        ({"length_drift": 0.5}, {"length": [10, 4]}, ("iterate 0", "base", "answers are 60% shorter than base's")),
        ({"win_rate_below": 0.4}, {"wins": [None, 0.4]}, None),
        (
            {"win_rate_below": 0.4},
            {"wins": [None, 0.6, 0.3]},
            ("iterate 1", "iterate 0", "win-rate against iterate 0 is 0.30, below 0.4"),
        ),
        ({"chosen_logp_falls": 2}, {"chosen": [-5, -6]}, None),  # not so many iterates yet
        ({"chosen_logp_falls": 2}, {"chosen": [-5, -4, -6]}, None),
        ({"chosen_logp_falls": 2}, {"chosen": [-5, -6, -6]}, None),  # level is no fall
        (
            {"chosen_logp_falls": 2},
            {"chosen": [-5, -4, -6, -7]},
            ("iterate 2", "iterate 0", "the log-prob of held-out answers has fallen for 2 iterations, to -7.00"),
        ),
        (
            {"chosen_logp_falls": 1},
            {"chosen": [-5, -6]},
            ("iterate 0", "base", "the log-prob of held-out answers has fallen for an iteration, to -6.00"),
        ),
        (  # of several, the one that goes back furthest
            {"kl_to_base": 3, "chosen_logp_falls": 2, "length_drift": 0.1},
            {"kl": [0, 1, 2, 9], "length": [10, 10, 10, 20], "chosen": [-5, -4, -6, -7]},
            ("iterate 2", "iterate 0", "the log-prob of held-out answers has fallen for 2 iterations, to -7.00"),
        ),
        ({"kl_to_base": 3}, {"kl": [0, 9, 2]}, None),  # only the newest is looked at
    ],
)
def test_the_brake(when: dict[str, float], columns: dict[str, list[Any]], expected: tuple[str, str, str] | None) -> None:
    found = stops_early(StopWhen.model_validate(when), healths(**columns))
    assert found == (None if expected is None else EarlyStop(*expected))


TWO, THREE = ["game.iterations=2"], ["game.iterations=3", "evaluation={health_prompts: 4, compare_sft: true}"]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def names(store: Path) -> list[str]:
    manifests = (json.loads(path.read_text()) for path in store.glob("adapters/*/manifest.json"))
    return sorted(manifest["name"] for manifest in manifests)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a game that ends after its second iterate of three, when a KL is passed that its first has not."""
    folder, path = tmp_path_factory.mktemp("stopped"), find_recipe("quickstart")
    first, second = (record["kl_to_base"] for record in metrics(played(folder, *TWO).folder)[1:])
    assert second > first + 0.1
    (folder / "bound.txt").write_text(str((first + second) / 2))
    assert names(folder / "store") == ["iterate 0", "iterate 1"]
    run(load_recipe(path, tiny(folder, *THREE, brake(folder))), folder, Display(Console(quiet=True)))
    return folder


def brake(folder: Path) -> str:
    return f"game.stop_when.kl_to_base={(folder / 'bound.txt').read_text()}"


def test_a_game_that_ends_early_keeps_the_iterate_before(stopped: Path) -> None:
    assert names(stopped / "store") == ["SFT 0", "SFT 1", "SFT 2", "iterate 0", "iterate 1"]
    folder = stopped / "run"
    found = metrics(folder)
    assert [one["name"] for one in found] == ["base", "iterate 0", "iterate 1", "plain SFT"]
    told = record(folder)["stopped"]
    why = f"KL to base is {found[2]['kl_to_base']:.2f}, over {float((stopped / 'bound.txt').read_text()):g}"
    assert told == {"after": "iterate 1", "keep": "iterate 0", "why": why}
    one = run_folder.read_run_folder(folder)
    kept = run_folder.find_policy(one, Store(stopped / "store", print), None)
    assert (kept.name, kept.key) == ("iterate 0", record(folder)["policies"]["iterate 0"])
    assert run_folder.find_policy(one, Store(stopped / "store", print), "1").name == "iterate 1"
    results = read_run_results(folder)
    assert [policy.name for policy in results.played] == ["base", "iterate 0", "iterate 1"]
    assert f"The game was ended after iterate 1: {why}. iterate 0 is the one to keep." in verdict(results)
    assert "iterate 0 is the one to keep" in (folder / "report.html").read_text()


def test_running_it_again_changes_nothing(stopped: Path) -> None:
    def files() -> dict[Path, bytes]:
        files = [path for path in stopped.rglob("*") if path.is_file() and path.name != "run.json"]
        kept = {path: path.read_bytes() for path in files if path.parent.name != "users"}  # which say when it was played
        ended = {name: value for name, value in record(stopped / "run").items() if name != "seconds"}
        return {**kept, stopped: json.dumps(ended).encode()}

    before = files()
    played(stopped, *THREE, brake(stopped))
    assert files() == before


def test_how_it_ended_is_not_forgotten_while_it_is_looked_through_again(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped / "run", tmp_path / "run", symlinks=True)
    game = opened(stopped, *THREE, brake(stopped), f"output.dir={tmp_path / 'run'}")
    player = Player(game, Display(Console(quiet=True)), {})
    player.play(game.stages[0])  # and interrupted
    assert record(tmp_path / "run")["stopped"]["keep"] == "iterate 0"
    assert [policy.name for policy in read_run_results(tmp_path / "run").played] == ["base", "iterate 0", "iterate 1"]
    Player(opened(stopped, *TWO, f"output.dir={tmp_path / 'run'}"), Display(Console(quiet=True)), {})
    assert "stopped" not in record(tmp_path / "run")  # which is of another game now


def test_a_sweep_with_such_a_point_finishes_and_without_the_brake_the_game_goes_on(stopped: Path, tmp_path: Path) -> None:
    path, overrides = find_recipe("quickstart"), tiny(stopped, *THREE)
    varied = sweep_axes(path, None, None, [f"{brake(stopped)},1000"])
    asked = sweep_points(path, overrides, varied, 1)
    plan = planning.plan(asked, stopped)
    assert "game.stop_when may end a game earlier: this is the most that it takes" in plan.notes
    totals = plan.totals()
    assert (totals["train"]["shared"], totals["train"]["stored"]) == (36, 24)  # all three iterates, for both points
    base = load_recipe(path, overrides)
    sweep = sweeps.SweepState("quickstart", sweep_folder(base), varied, [42], [sweeps.Entry(point) for point in asked])
    display = Display(Console(quiet=True))
    play.sweep(sweep, stopped, display)
    assert [entry.status for entry in sweep.entries] == ["finished", "finished"]
    show_sweep(sweep, display)
    ends = [metrics(Path(str(point.recipe.output.dir))) for point in asked]
    assert [[one["name"] for one in end] for end in ends] == [
        ["base", "iterate 0", "iterate 1", "plain SFT"],
        ["base", "iterate 0", "iterate 1", "iterate 2", "plain SFT"],
    ]
    assert "stopped" not in record(Path(str(asked[1].recipe.output.dir)))
    shutil.copytree(stopped / "run", tmp_path / "run", symlinks=True)
    played(stopped, *THREE, f"output.dir={tmp_path / 'run'}")  # the brake is taken off where it had ended the game
    assert "stopped" not in record(tmp_path / "run")
    assert [one["name"] for one in metrics(tmp_path / "run")] == [one["name"] for one in ends[1]]
    again = sweeps.SweepState("quickstart", sweep_folder(base), varied, [42], [sweeps.Entry(point) for point in asked])
    late = Display(Console(quiet=True))
    late.deadline = 0.0
    with pytest.raises(KeyboardInterrupt):
        play.sweep(again, stopped, late)
    assert len(read_sweep(sweep.folder).runs) == 2  # what is finished stays so, and can be reported
    assert [entry.status for entry in again.entries] == ["finished", "finished"]


def test_a_warm_start_does_not_end_a_game(tmp_path: Path) -> None:
    """It moves further than any iterate; lengths are then compared with its own."""
    options = ["warm_start={rows: 12, learning_rate: 5e-2}", "game.stop_when.length_drift=0.9", "training.learning_rate=1e-9"]
    game = played(tmp_path, *options, "game.iterations=1")
    found = metrics(game.folder)
    assert [one["name"] for one in found] == ["base", "warm start", "iterate 0"]
    assert "stopped" not in record(game.folder)
    moved = [*options, "training.learning_rate=5e-2", "game.iterations=1", "game.stop_when.kl_to_base=1e-9"]
    (tmp_path / "moved").mkdir()
    keep = played(tmp_path / "moved", *moved)
    assert record(keep.folder)["stopped"]["keep"] == "warm start"
    one = run_folder.read_run_folder(keep.folder)
    assert run_folder.find_policy(one, keep.store, None).name == "warm start"
    assert len(stored(keep.store.root, "completions")) == 3
    assert read_run_results(keep.folder).policies
