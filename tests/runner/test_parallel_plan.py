"""How long several workers take, as a plan says it: against hand-made graphs, all their paths, and the sweep's own steps."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.commands import assert_one_line, call
from helpers.games import opened, tiny
from lowmem_spin.config.grid import planned_points, sweep_axes
from lowmem_spin.config.load import find_recipe
from lowmem_spin.engines import machine
from lowmem_spin.runner.planning import parallel
from lowmem_spin.runner.planning.forecast import steps_ahead
from lowmem_spin.runner.planning.parallel import longest_chain, simulated, timed_steps
from lowmem_spin.runner.planning.plan import PlannedWork, plan
from lowmem_spin.runner.schedule import Node, Schedule
from lowmem_spin.runner.steps import in_step, numbered, scheduled

FREE = Node(frozenset())


def after(*needs: int, settled: int = -1) -> Node:
    return Node(frozenset(needs), settled)


@pytest.mark.parametrize(
    ("nodes", "seconds", "takes", "chain"),
    [
        ([FREE] * 4, [3, 3, 2, 2], {1: 10, 2: 5, 3: 4, 4: 3}, 3),
        ([FREE, after(0), after(0), after(1, 2)], [1, 5, 3, 2], {1: 11, 2: 8, 9: 8}, 8),
        ([FREE, after(0), FREE, after(2)], [4, 4, 1, 1], {1: 10, 2: 8}, 8),
        ([FREE, FREE, after(1, settled=0)], [9, 2, 1], {1: 12, 2: 10}, 10),  # the last may have become needless by the first
        ([], [], {1: 0}, 0),
    ],
)
def test_graphs_by_hand(nodes: list[Node], seconds: list[float], takes: dict[int, float], chain: float) -> None:
    assert {count: simulated(Schedule(nodes), seconds, count) for count in takes} == takes
    assert longest_chain(nodes, seconds) == chain


@pytest.mark.parametrize(
    ("nodes", "seconds", "shared", "takes"),
    [
        ([FREE], [12], {0: 500}, {1: 12, 2: 6, 3: 4}),
        ([FREE, after(0)], [12, 5], {0: 500}, {1: 17, 2: 11, 4: 8}),  # the second is a training
        ([FREE, FREE], [10, 4], {0: 500}, {1: 14, 2: 7}),  # who is free after 4 takes half of the 6 that are left
        ([FREE, FREE], [10, 4], {0: 500, 1: 500}, {2: 7, 3: pytest.approx(14 / 3)}),  # two take the first, then all
        ([FREE, FREE], [10, 4], {}, {2: 10}),
    ],
)
def test_steps_that_are_shared_take_as_much_less_time(
    nodes: list[Node], seconds: list[float], shared: dict[int, int], takes: dict[int, float]
) -> None:
    assert {count: simulated(Schedule(nodes), seconds, count, shared) for count in takes} == takes


@st.composite
def timed_graphs(draw: st.DrawFn) -> tuple[list[Node], list[float]]:
    nodes: list[Node] = []
    for place in range(draw(st.integers(1, 9))):
        needs = draw(st.frozensets(st.integers(0, place - 1), max_size=3)) if place else frozenset()
        settled = draw(st.sampled_from([-1, -1, -1, place - 1])) if place else -1
        nodes.append(Node(needs, settled, draw(st.sampled_from("ab"))))
    seconds = draw(st.lists(st.sampled_from([0, 1, 2, 3, 7]), min_size=len(nodes), max_size=len(nodes)))
    return nodes, list(map(float, seconds))


def longest_path(nodes: Sequence[Node], seconds: Sequence[float]) -> float:
    """Of all paths, tried one by one."""

    def until(place: int) -> float:
        node = nodes[place]
        return seconds[place] + max((until(before) for before in {*node.needs, *range(node.settled + 1)}), default=0.0)

    return max(map(until, range(len(nodes))))


@given(timed_graphs(), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_no_worker_rests_while_there_is_something_for_it(graph: tuple[list[Node], list[float]], count: int) -> None:
    """Graham's bounds of such schedules; and with a worker for each step, the longest path."""
    nodes, seconds = graph
    chain, takes = longest_path(nodes, seconds), simulated(Schedule(nodes), seconds, count)
    assert longest_chain(nodes, seconds) == chain == simulated(Schedule(nodes), seconds, len(nodes))
    assert max(chain, sum(seconds) / count) - 1e-9 <= takes <= sum(seconds) / count + (1 - 1 / count) * chain + 1e-9
    assert simulated(Schedule(nodes), seconds, 1) == sum(seconds)
    together = simulated(Schedule(nodes), seconds, count, dict.fromkeys(range(len(nodes)), 1))
    assert together == pytest.approx(sum(seconds) / count)  # of steps that may all be shared nobody ever rests


def planned(
    recipe: str, changes: Sequence[str], alpha: str | None, workers: str | None, gpu: str | None = None, seeds: int = 1
) -> PlannedWork:
    path = find_recipe(recipe)
    points = planned_points(path, list(changes), sweep_axes(path, alpha, None, []), seeds)
    return plan(points, path.parent, gpu, workers=workers)


@pytest.mark.parametrize(
    ("recipe", "alpha", "gpu", "seeds"),
    [("quickstart", "0.5,1", None, 2), ("mistral7b_sppo", None, "4090", 2), ("gemma2b_taste", "0.5,1", "4090", 1)],
)
def test_one_worker_takes_as_long_as_no_workers(
    recipe: str, alpha: str | None, gpu: str | None, seeds: int, tmp_path: Path
) -> None:
    folder = [f"output.store={tmp_path / 'store'}", f"output.dir={tmp_path / 'run'}"]
    folder += ["game.pairs=500"] * (recipe == "mistral7b_sppo")
    one, two, many = (planned(recipe, folder, alpha, count, gpu, seeds).parallel for count in ("1", "2", "100"))
    total = planned(recipe, folder, alpha, None, gpu, seeds).total()
    assert one and two and many
    assert one.seconds == pytest.approx(total.seconds) and one.untimed == total.untimed
    assert total.seconds / 2 <= two.seconds < 0.8 * total.seconds
    assert many.longest_chain == one.longest_chain < many.seconds < two.seconds  # what is not shared; small steps are neither


def test_what_is_stored_takes_no_time(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A game is finished; another with another alpha shares what it can, and its own steps are all that is left."""
    from helpers.faults import SHORT

    changes = [*SHORT, f"output.store={copy / 'store'}", f"output.dir={copy / 'new'}"]
    finished = planned("quickstart", changes, "0.95", "2").parallel
    assert finished is not None and finished.line() == "With 2 workers: nothing left to compute"
    both, alone = (planned("quickstart", changes, alpha, "1") for alpha in ("0.95,0.5", "0.5"))
    assert both.parallel and alone.parallel
    assert both.parallel.seconds == pytest.approx(alone.parallel.seconds) == pytest.approx(both.total().seconds)
    assert both.parallel.seconds > 0
    assert both.parallel.longest_chain == pytest.approx(alone.parallel.longest_chain)


def test_the_steps_are_those_of_the_sweep(tmp_path: Path) -> None:
    """Needs, engines and what is made of every step, once as a sweep of open games schedules them and once as the plan does."""
    values = ["0.5", "1"]
    changes = tiny(tmp_path, "game.stop_when.kl_to_base=9", "evaluation.compare_sft=true")
    games = [opened(tmp_path, *changes, f"game.alpha={alpha}") for alpha in values]
    engines = [game.signature for game in games]
    steps = in_step([numbered(game.stages) for game in games], engines)
    ahead = steps_ahead([(games[step.game], step.stage, step.samples_only) for step in steps])
    sweeps = scheduled([game.recipe for game in games], engines, steps, ahead)
    seen: list[Schedule] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "timed_steps", lambda *args: keep(seen, timed_steps, *args))
        made = planned("quickstart", changes, ",".join(values), "2")
    assert made.exact and len(seen) == 1
    assert list(seen[0].nodes) == list(sweeps.nodes) and seen[0].made == sweeps.made
    assert any(node.settled >= 0 for node in sweeps.nodes)


def keep(seen: list[Schedule], make: Callable[..., tuple[Schedule, Any, Any]], *args: object) -> tuple[Schedule, Any, Any]:
    found = make(*args)
    seen.append(Schedule(found[0].nodes, set(found[0].made)))
    return found


def test_the_command_says_so_in_one_line_and_as_json(tmp_path: Path) -> None:
    words = [
        "plan",
        "mistral7b_sppo",
        "--seeds",
        "2",
        "--gpu",
        "4090",
        "--workers",
        "3",
        f"--set=output.store={tmp_path}",
        "--set=game.pairs=500",
    ]
    made = planned("mistral7b_sppo", [f"output.store={tmp_path}", "game.pairs=500"], None, "3", "4090", 2).parallel
    assert made is not None and made.untimed
    total, said = call(*words).stdout.splitlines()[:2]
    assert total.startswith("Total: about ") and said == made.line()
    assert said.startswith("With 3 workers: about ") and ", and the judge on top; the longest chain of steps, " in said
    told = json.loads(call(*words, "--json").stdout)["workers"]
    assert told == {
        **{"count": 3, "seconds": round(made.seconds, 1), "longest_chain_seconds": round(made.longest_chain, 1)},
        "without": ["judge"],
    }
    assert "workers" not in json.loads(call(*words[:6], "--json").stdout)


def test_a_model_that_is_not_known_takes_unknown_time(tmp_path: Path) -> None:
    changes = [f"output.store={tmp_path}", "model.name_or_path=someone/unheard-of", "model.quantization=nf4"]
    made = planned("gemma2b_taste", changes, "0.5,1", "2", "4090").parallel
    assert made is not None and math.isnan(made.seconds) and made.line() == "With 2 workers: unknown time"
    assert made.record() == {"count": 2, "seconds": None, "longest_chain_seconds": None, "without": []}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--alpha", "0.5,1", "--workers", "0"], "--workers 0: give a number from 1 to 1000, or auto"),
        (["--alpha", "0.5,1", "--workers", "²"], "--workers ²: give a number from 1 to 1000, or auto"),
        (
            ["--alpha", "0.5,1", "--workers", "auto", "--gpu", "T4"],
            "--workers auto: it counts the GPUs here, and --gpu T4 plans",
        ),
    ],
)
def test_workers_that_cannot_be_planned_are_one_line(words: list[str], line: str) -> None:
    assert_one_line(call("plan", "quickstart", *words), line)


def test_workers_share_the_gpus_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "visible_gpus", lambda: 2)
    monkeypatch.setattr(machine, "cuda_capability", lambda: 9)
    monkeypatch.setattr(machine, "_memory", lambda field: 24e9)
    changes = [f"output.store={tmp_path}", "generation.engine=hf", "training.engine=hf"]
    made = planned("gemma2b_taste", changes, "0.5,1", "auto").parallel
    assert made is not None and made.count == 2
    words = ["gemma2b_taste", "--alpha", "0.5,1", "--workers", "3", *(f"--set={change}" for change in changes)]
    assert_one_line(
        call("plan", *words), "--workers 3: a worker has a GPU of its own, and there are 2; give 2, or auto; or plan for"
    )


def test_on_one_cpu_it_is_said_that_workers_share_it(tmp_path: Path) -> None:
    changes = [f"output.store={tmp_path}", "runtime.device=cpu"]
    said = [any("share its cores" in note for note in planned("quickstart", changes, "0.5,1", n).notes) for n in ("1", "2")]
    assert said == [False, True]
