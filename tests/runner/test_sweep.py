"""Sweeps and plans: what is counted is what is computed; games in step end as games alone; kills, hours and failures."""

import itertools
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.commands import call
from helpers.faults import ROWS
from helpers.forked import Command
from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.stages import Evaluate, Generate, Inputs
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.grid import sweep_axes, sweep_points
from lowmem_spin.config.load import find_recipe
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.runner.sweep import in_step, numbered

PAIRS = 16
SMALL = [f"data.path={ROWS}", f"game.pairs={PAIRS}", "game.iterations=3", "data.resample=false", "evaluation.health_prompts=8"]
SMALL += ["evaluation.compare_sft=false", "evaluation.metric=none", "evaluation.path=null", "generation.max_new_tokens=12"]
GRID = ["--alpha", "0.5,1.0", "--history", "1,2,inf"]


def words(name: str, folder: Path, *more: str) -> list[str]:
    chosen = [*SMALL, f"output.dir={folder / 'game'}", f"output.store={folder / 'store'}"]
    return [name, "quickstart", *(f"--set={change}" for change in chosen), *more]


def finished(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return call(*words("sweep", folder, *GRID, *more))


def planned(folder: Path, *shape: str) -> dict[str, Any]:
    answer = call(*words("plan", folder, *(shape or GRID), "--json"))
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    before = planned(folder)
    (folder / "before.json").write_text(json.dumps(before))
    result = finished(folder)
    assert result.returncode == 0, result.stderr
    return folder


def adapters(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("store/adapters/*/adapter_model.safetensors")}


def rows_in(store: Path) -> Counter[str]:
    """Rows of the tables and the pairs of the adapters, counted in the files themselves."""
    counts: Counter[str] = Counter()
    for kind, name in (("completions", "generate"), ("logps", "score")):
        for path in store.glob(f"{kind}/*/*.parquet"):
            counts[name] += pq.read_metadata(path).num_rows
    for path in store.glob("adapters/*/manifest.json"):
        counts["train"] += json.loads(path.read_text())["rows"]
    return counts


def of_tables(plan: dict[str, Any]) -> Counter[str]:
    """What a plan says that rows_in will find."""
    counts: Counter[str] = Counter()
    for stage in plan["stages"]:
        counts["generate" if stage["side"] == "completions" else "train" if stage["side"] == "pairs" else "score"] += stage[
            "rows"
        ]
    return counts


def reached(store: Path) -> int:
    """How many rows there are, while a sweep is at work on them."""
    try:
        return rows_in(store).total()
    except FileNotFoundError:  # shards were merged in this moment
        return 0


def test_what_was_planned_is_what_was_computed(whole: Path) -> None:
    before, after = json.loads((whole / "before.json").read_text())["totals"], planned(whole)
    assert after["exact"] and before["generate"] == before["generate"] | {"stored": 0}
    for kind in ("generate", "score", "train"):
        assert before[kind]["shared"] == after["totals"][kind]["shared"] == after["totals"][kind]["stored"], kind
        assert after["totals"][kind]["to_do"] == 0
    assert of_tables(after) == rows_in(whole / "store")  # nothing is in the store that was not planned


def test_the_numbers_are_the_ones_derived_by_hand(whole: Path) -> None:
    """6 games of 3 iterations over PAIRS prompts; in passes of the prompt set.

    Generate: the base once; iterate 0 once; iterate 1: one of (alpha, h = 1) and half of h = 2's and inf's each.
    At t = 1, h = 1 and inf are one game, so 2 x 2 second iterates; h = 2 answers with a half from iterate 0, which h = 1
    has in full. At t = 2 h = 1 asks all of its iterate 1, inf the newer half of the same, h = 2 a half of its own.
    """
    totals = planned(whole)["totals"]
    passes = {
        kind: (totals[kind]["independent"] / PAIRS, totals[kind]["shared"] / PAIRS) for kind in ("generate", "score", "train")
    }
    assert passes["generate"] == (18, 1 + 1 + 2 * (1 + 0.5))
    assert passes["train"] == (18, 1 + 4 + 6)
    # alpha 1: 2 passes at each t; alpha 0.5: 2 at t = 0, else 4. Three histories each.
    assert passes["score"][0] == 3 * 6 + 3 * 10


@pytest.mark.parametrize("prepared", [True, False])
def test_four_alphas_and_two_histories(whole: Path, tmp_path: Path, prepared: bool) -> None:
    """The counts that test_game.py derives independently, by the command, whether the rows are prepared or not."""
    plan = planned(whole if prepared else tmp_path, "--alpha", "0.8,0.9,0.95,1.0", "--history", "1,2")
    assert plan["exact"] is prepared
    found = {kind: (total["shared"] / PAIRS, total["independent"] / PAIRS) for kind, total in plan["totals"].items()}
    expected = {"generate": (8, 24), "score": (26, 72), "train": (17, 24)}
    assert {kind: found[kind] for kind in expected} == expected
    assert all(stage["gpu_memory_bytes"] > 0 and stage["seconds"] >= 0 for stage in plan["stages"])


def test_without_prepared_rows_a_plan_is_an_upper_bound(whole: Path, tmp_path: Path) -> None:
    shape = ["--alpha", "0.5,1.0", "--seeds", "2", "--grid", "data.resample=true,false"]
    before, after = planned(tmp_path, *shape), planned(whole, *shape)
    assert (before["exact"], after["exact"]) == (False, True)
    for kind in ("generate", "score", "train"):
        assert before["totals"][kind]["shared"] >= after["totals"][kind]["shared"], kind
        assert before["totals"][kind]["independent"] == after["totals"][kind]["independent"]


def test_looking_through_a_finished_sweep_leaves_it_finished(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy", symlinks=True)
    for path in (tmp_path / "copy" / "game-sweep" / "points").iterdir():
        assert len(list((path / "iterates").iterdir())) == 3
    result = finished(tmp_path / "copy", "--max-hours", "0.0000001")
    assert result.returncode == 0, result.stderr
    assert "hours are over" in result.stdout
    for path in (tmp_path / "copy" / "game-sweep" / "points").iterdir():
        assert len(list((path / "iterates").iterdir())) == 3
    states = {point["status"] for point in json.loads((tmp_path / "copy" / "game-sweep" / "sweep.json").read_text())["points"]}
    assert states == {"finished"}
    assert adapters(tmp_path / "copy") == adapters(whole)


def test_a_game_in_step_is_the_game_alone(whole: Path, tmp_path: Path) -> None:
    alone = call(*words("run", tmp_path, "--set", "game.alpha=0.5", "--set", "game.history=2"))
    assert alone.returncode == 0, alone.stderr
    record = json.loads((tmp_path / "game" / "run.json").read_text())
    point = json.loads((whole / "game-sweep" / "points" / "alpha-0.5_history-2_seed-42" / "run.json").read_text())
    assert point["policies"] == record["policies"]
    together = adapters(whole)
    for key, weights in adapters(tmp_path).items():
        assert together[key] == weights


def test_five_kills_and_the_table_is_the_same(whole: Path, tmp_path: Path) -> None:
    """Of four of the six games; h = inf differs from 2 only in its last iteration."""
    some = ["--alpha", "0.5,1.0", "--history", "1,2"]
    draw, every = random.Random(5), of_tables(planned(whole, *some))
    for share in (0.02, 0.2, 0.4, 0.6, 0.85):
        process = Command(*words("sweep", tmp_path, *some))
        while process.poll() is None and reached(tmp_path / "store") < share * every.total():
            time.sleep(0.1)  # each look opens all the files
        time.sleep(draw.uniform(0, 0.2))
        process.send_signal(draw.choice([signal.SIGKILL, signal.SIGINT]))
        process.communicate()
        assert process.returncode != 0  # it was hit at work
    assert call(*words("sweep", tmp_path, *some)).returncode == 0
    assert adapters(tmp_path).items() < adapters(whole).items()
    assert rows_in(tmp_path / "store") == every
    points = list((tmp_path / "game-sweep" / "points").iterdir())
    assert len(points) == 4
    for point in points:
        theirs = whole / "game-sweep" / "points" / point.name / "metrics.jsonl"
        assert (point / "metrics.jsonl").read_text() == theirs.read_text()


def test_hours_that_are_over_stop_it_with_all_that_was_computed_stored(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are over at the first look at the clock after the second iteration has begun to train."""
    look = Display.stop_if_late

    def late(display: Display) -> None:
        assert display.deadline is not None and display.deadline > time.perf_counter()
        if len(adapters(tmp_path)) > 1:
            display.deadline = -math.inf
        look(display)

    monkeypatch.setattr(Display, "stop_if_late", late)
    result = finished(tmp_path, "--max-hours", "100")
    assert result.returncode == 0, result.stderr
    assert "100 hours are over; what is finished is stored" in result.stdout
    states = [point["status"] for point in json.loads((tmp_path / "game-sweep" / "sweep.json").read_text())["points"]]
    assert "waiting" in states
    before = rows_in(tmp_path / "store")
    assert before["generate"] and before < rows_in(whole / "store")


def test_one_points_failure_does_not_stop_the_others(tmp_path: Path) -> None:
    shape = ["--alpha", "0.5", "--grid", "game.pairs=16,1000000", "--set", "game.iterations=1"]
    result = call(*words("sweep", tmp_path, *shape))
    assert result.returncode == 1
    found = json.loads((tmp_path / "game-sweep" / "sweep.json").read_text())["points"]
    assert [point["status"] for point in found] == ["finished", "failed"]
    assert found[1]["error"].startswith("game.pairs: 1000000 prompts are needed")
    assert "alpha-0.5_pairs-1000000_seed-42 failed: game.pairs" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: sweep quickstart: there is nothing to vary; add --alpha, --history, --grid or --seeds, or play this one"),
        (["--alpha", ""], "--grid 'game.alpha=': write it as field=value,value"),
        (["--alpha", "0.5,2"], "game.alpha: 2 cannot be used"),
        (["--grid", "game.aplha=1,2"], "did you mean alpha?"),
        (["--alpha", "1", "--grid", "game.alpha=0.5"], "game.alpha is varied twice"),
        (["--seeds", "0"], "--seeds 0: cannot be used; give at least 1"),
        (["--grid", "game.alpha=[1"], "not valid YAML"),
        (["--grid", "seed=1,2"], "use --seeds"),
        (["--grid", "output.dir=a,b"], "fields of output cannot be varied"),
        (["--alpha", "0.5", "--max-hours", "-1"], "--max-hours -1.0: cannot be used"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], line: str, tmp_path: Path) -> None:
    result = call(*words("sweep", tmp_path, *arguments))
    assert result.returncode == 2
    assert line in result.stderr and len(result.stderr.splitlines()) == 1 and "Traceback" not in result.stderr
    assert not (tmp_path / "game-sweep").exists()


def test_a_plan_loads_no_torch(tmp_path: Path) -> None:
    run = "from lowmem_spin.cli.main import app; app(standalone_mode=False)"
    script = f"import sys; {run}; assert 'torch' not in sys.modules, 'torch'"
    arguments = words("plan", tmp_path, *GRID)
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, "inf"]), st.booleans()), min_size=1, max_size=4))
def test_every_game_keeps_its_order_and_no_policy_plays_before_it_is_trained(shapes: list[tuple[int, Any, bool]]) -> None:
    games = []
    for iterations, history, sft in shapes:
        content = {"game": {"iterations": iterations, "history": history, "pairs": 10}, "evaluation": {"compare_sft": sft}}
        recipe = Recipe.model_validate({"model": {"name_or_path": "m"}, "data": {"path": "d"}, **content})
        games.append(numbered(list(play(recipe, Inputs("b", "d", {}, {})))))
    steps = in_step(games, ["b", "a", "b", "a"][: len(games)])
    for number, game in enumerate(games):
        assert [step.stage for step in steps if step.game == number and not step.samples_only] == [stage for _, stage in game]
    engines = [["b", "a", "b", "a"][step.game] for step in steps if isinstance(step.stage, Generate)]
    rounds = [max(t for t, stage in game if isinstance(stage, Generate)) + 1 for game in games]
    switches = sum(one != other for one, other in itertools.pairwise(engines))
    assert switches < 2 * max(rounds)  # once in an iteration, and once between two
    ready: set[tuple[int, Any]] = set()
    for step in steps:  # samples before what is made of them, and not before there is a policy to draw from
        if step.samples_only:
            ready.add((step.game, step.stage))
        assert not isinstance(step.stage, Evaluate) or step.stage.name == "plain SFT" or (step.game, step.stage) in ready


def test_names_are_unique_and_files_can_bear_them(quickstart: Path) -> None:
    varied = sweep_axes(
        find_recipe("quickstart"),
        "0.5,1",
        None,
        ["training.lora.target_modules=all-linear,[q_proj,v_proj]", "model.name_or_path=a/b,'../c d'"],
    )
    names = [point.name for point in sweep_points(quickstart.parent / "quickstart.yaml", [], varied, 2)]
    assert len(set(names)) == len(names) == 16
    assert all("/" not in name and " " not in name for name in names)
    grid = ["training.lora.target_modules=[q_proj],_q_proj_", f"model.chat_template=chatml,{'x' * 300}"]
    alike = sweep_axes(find_recipe("quickstart"), None, "inf,.inf,2", grid)
    names = [point.name for point in sweep_points(quickstart.parent / "quickstart.yaml", [], alike, 1)]
    assert len(set(names)) == len(names) == 2 * 2 * 2 and max(map(len, names)) <= 100
    with pytest.raises(InputError, match="a value is empty"):
        sweep_axes(find_recipe("quickstart"), "0.5,null", None, [])
