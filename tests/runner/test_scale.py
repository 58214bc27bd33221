"""What it costs to schedule a thousand games whose steps take no time; `pytest -m slow -s` prints seconds and memory."""

import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lowmem_spin.common.display import Display
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.grid import planned_points, sweep_axes
from lowmem_spin.config.load import find_recipe
from lowmem_spin.data import sources
from lowmem_spin.engines import model_files
from lowmem_spin.runner.crew import Crew, Done
from lowmem_spin.runner.planning import calibration
from lowmem_spin.runner.planning.draft import Draft
from lowmem_spin.runner.planning.parallel import timed_steps
from lowmem_spin.runner.planning.plan import plan


class AtOnce:
    """Workers whose steps are over as soon as they have begun; the last that began is the first to end."""

    def __init__(self, count: int) -> None:
        self.count, self.has, self.started = count, list[tuple[int, int]](), Counter[int]()

    def start(self, worker: int, step: int) -> None:
        self.has.append((worker, step))
        self.started[step] += 1

    def assist(self, worker: int, step: int) -> None:
        raise AssertionError("no step is shared here")

    def wait(self, seconds: float) -> list[tuple[int, Done]]:
        worker, _ = self.has.pop()
        return [(worker, Done())]

    def progress(self, worker: int) -> str | None:
        return None

    def replace(self, worker: int) -> None: ...

    def ready(self, worker: int) -> bool:
        return True

    def close(self) -> None: ...


def test_a_plan_of_many_games_reads_what_they_share_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = find_recipe("quickstart"), Counter[str]()
    for module, name in ((model_files, "headers"), (calibration, "read_text"), (sources, "sha256")):
        original = getattr(module, name)

        def counted(*arguments: Any, name: str = name, original: Any = original) -> Any:
            opened[name] += 1
            return original(*arguments)

        monkeypatch.setattr(module, name, counted)
    places = [f"output.store={tmp_path / 'store'}", f"output.dir={tmp_path / 'run'}"]
    counts = []
    for alphas in ("0.5", "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8"):
        opened.clear()
        made = plan(planned_points(path, places, sweep_axes(path, alphas, None, []), 1), path.parent)
        assert len(made.points) == alphas.count(",") + 1
        counts.append(dict(opened))
    assert counts[1] == {name: count for name, count in counts[0].items() if name != "sha256"}, "hashes are kept in the store"
    assert {"headers", "read_text", "sha256"} == counts[0].keys()


@pytest.mark.slow
def test_a_thousand_games(tmp_path: Path) -> None:
    """Looked up, ordered, scheduled for four workers, and ended: every step once, but those of which others make all."""
    path, took = find_recipe("quickstart"), dict[str, float]()
    alphas, betas = ",".join(f"{number / 100:.2f}" for number in range(1, 101)), "game.loss.beta=0.05,0.1,0.2,0.3,0.5"
    places = [f"output.store={tmp_path / 'store'}", f"output.dir={tmp_path / 'run'}"]

    def lap(name: str) -> None:
        now = time.process_time()
        took[name], lap.began = now - lap.began, now  # type: ignore[attr-defined]

    lap.began = time.process_time()  # type: ignore[attr-defined]
    points = planned_points(path, places, sweep_axes(path, alphas, "1,2", [betas]), 1)
    lap("recipes")
    draft = Draft(path.parent, None, Trust())
    for point in points:
        draft.add(point)
    lines = draft.lines()
    lap("look-up and rows")
    schedule, seconds, _ = timed_steps(list(zip(draft.founds, draft.played, strict=True)), lines)
    lap("order and needs")
    workers, made = AtOnce(4), set(schedule.made)
    crew = Crew(workers, schedule, Display(Console(quiet=True)))
    for step in range(len(seconds)):
        crew.wait_for(step)
        crew.settle(step)
    lap("hand out")
    assert len(points) == 1000 and set(workers.started) | made == set(range(len(seconds)))
    assert set(workers.started.values()) == {1} and not set(workers.started) & made
    each = ", ".join(f"{name} {1e3 * part / len(seconds):.2f}" for name, part in took.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\n{len(seconds):,} steps, {len(workers.started):,} of them computed; ms a step: {each}; {peak:.2f} GB")
