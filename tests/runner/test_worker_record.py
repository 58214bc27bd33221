"""What a sweep writes down of its workers, over several runs of it, and what becomes of that when its games are others."""

from pathlib import Path

import pytest
from rich.console import Console

from lowmem_spin.algorithm.pair_sources import DatasetPairs, Draw
from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Score, Stage, Train
from lowmem_spin.common.display import Display, TimeIsUpError
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError
from lowmem_spin.runner.claim import check_sweep_folder
from lowmem_spin.runner.crew import Computed, Crew, Done
from lowmem_spin.runner.schedule import Node, Schedule
from lowmem_spin.runner.worker_record import WorkerShare, add_workers, forget_other_games, read_workers
from lowmem_spin.store.store import Store

PAIRS = DatasetPairs(Draw("data", 0, None, 8))


def train(seed: int) -> Train:
    return Train(
        name="iterate 0",
        role=Role.ITERATE,
        iteration=0,
        pairs=PAIRS,
        reference={},
        init="base",
        loss={"name": "sft"},
        settings={"seed": seed, "learner": {}},
    )


GAMES: list[Stage] = [Score(PAIRS, "base"), train(0), train(1)]


class Ending:
    """Two workers whose steps end as a test says."""

    count = 2

    def __init__(self, *ends: Done | type[BaseException]) -> None:
        self.ends, self.has = list(ends), dict[int, int]()

    def start(self, worker: int, step: int) -> None:
        self.has[worker] = step

    def assist(self, worker: int, step: int) -> None:
        raise AssertionError("no step is shared here")

    def wait(self, seconds: float) -> list[tuple[int, Done]]:
        end = self.ends.pop(0)
        if not isinstance(end, Done):
            raise end
        worker = min(self.has)
        del self.has[worker]
        return [(worker, end)]

    def progress(self, worker: int) -> str | None: ...

    def replace(self, worker: int) -> None: ...

    def ready(self, worker: int) -> bool:
        return True

    def close(self) -> None: ...


def crew(*ends: Done | type[BaseException]) -> Crew:
    return Crew(Ending(*ends), Schedule([Node(frozenset())] * 3), Display(Console(quiet=True)))


def here(took: float, late: bool = False) -> Done:
    return Done(took=took, late=late, machine="one", device="a T4")


def test_what_was_cut_off_counts_as_time_and_not_as_a_step() -> None:
    """Worker 1 computes a step and dies over another; an interrupt cuts worker 2 off."""
    working = crew(here(2.0), Done(died=True), KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        for step in range(3):
            working.wait_for(step)
            working.settle(step)
    working.close()
    assert [(one.worker, one.step, one.whole, one.machine) for one in working.computed if one.worker == 0] == [
        *[(0, 0, True, "one"), (0, 2, False, "one"), (0, 2, False, "")],
    ]
    assert [(one.step, one.whole, one.machine) for one in working.computed if one.worker == 1] == [(1, False, "")]
    assert all(one.seconds == 2.0 if one.whole else 0 <= one.seconds < 2 for one in working.computed)


def test_when_the_hours_are_over_the_time_counts() -> None:
    working = crew(here(1.0, late=True), here(3.0))
    with pytest.raises(TimeIsUpError):
        working.wait_for(2)
    assert [(one.seconds, one.whole) for one in working.computed] == [(1.0, False), (3.0, True)]


def test_the_runs_of_a_sweep_add_up(tmp_path: Path) -> None:
    assert read_workers(tmp_path) is None
    add_workers(tmp_path, GAMES, [Computed(0, 0, 1.5, "one", "a T4"), Computed(1, 1, 4.0, "two", "a T4", whole=False)], 5.0)
    add_workers(tmp_path, GAMES, [Computed(1, 1, 2.0, "two", "a T4"), Computed(1, 2, 1.0, "one", "a T4")], 3.0)
    found = read_workers(tmp_path)
    assert found is not None and found.seconds == 8.0
    assert found.workers == [
        WorkerShare(worker=1, machine="one", device="a T4", steps={"score": 1}, seconds=1.5),
        WorkerShare(worker=2, machine="one", device="a T4", steps={"train": 1}, seconds=1.0),
        WorkerShare(worker=2, machine="two", device="a T4", steps={"train": 1}, seconds=6.0),
    ]


def test_an_account_of_other_games_goes_and_so_does_a_damaged_one(tmp_path: Path) -> None:
    said: list[str] = []
    store = Store(tmp_path / "store", said.append)
    forget_other_games(tmp_path, GAMES, store)
    add_workers(tmp_path, GAMES, [], 1.0)
    forget_other_games(tmp_path, GAMES[::-1], store)
    assert read_workers(tmp_path) is not None and not said
    forget_other_games(tmp_path, GAMES[:2], store)
    assert read_workers(tmp_path) is None and not said
    (tmp_path / "workers.json").write_text('{"workers": 1')
    with pytest.raises(DamagedError):
        read_workers(tmp_path)
    forget_other_games(tmp_path, GAMES, store)
    assert read_workers(tmp_path) is None
    assert len(said) == 1 and said[0].startswith(f"{tmp_path / 'workers.json'} is not valid JSON; moved to ")
    assert said[0].endswith(" and begun anew")


def test_somebodys_own_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "workers.json").write_text("mine")
    with pytest.raises(InputError, match=r"has workers\.json already, but no game was played there"):
        check_sweep_folder(tmp_path)
    (tmp_path / "workers.json").unlink()
    (tmp_path / "workers.json").mkdir()
    with pytest.raises(InputError, match=r"workers\.json' is a folder, where a file is to be written; move it away"):
        check_sweep_folder(tmp_path)
