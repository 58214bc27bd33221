"""Kill Ray's workers at random moments of a sweep of two games, and compare what it ends in with one process's.

PYTHONPATH=tests python -m helpers.worker_kills --kills 50           # about 8 s a kill
"""

import argparse
import io
import json
import os
import random
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console

from helpers.games import TINY
from lowmem_spin.cli.play import WorkersAsked, planned_sweep, sweep
from lowmem_spin.common.display import Display
from lowmem_spin.config.grid import sweep_axes
from lowmem_spin.config.load import find_recipe
from lowmem_spin.runner import steps


class Listening(Display):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.lines: list[str] = []

    def log(self, line: str, style: str = "") -> None:
        self.lines.append(line)


def play(folder: Path, workers: str | None) -> list[str]:
    """Two games that share their first iterate, gone on with where too many workers died over one step; what was said."""
    path, display = find_recipe("quickstart"), Listening()
    chosen = [*TINY, f"output.dir={folder / 'game'}", f"output.store={folder / 'store'}", "evaluation.compare_sft=true"]
    states: list[str] = []
    while states != ["finished", "finished"]:
        points = planned_sweep(path, chosen, sweep_axes(path, "0.5,1", None, []), 1)
        sweep(points, path.parent, display, asked=WorkersAsked(workers))
        states = [entry.status for entry in points.entries]
        errors = [entry.error for entry in points.entries if entry.error is not None]
        if any("workers died computing the same step" not in error for error in errors):
            raise AssertionError(f"{states}: {errors}")
    return display.lines


def made(folder: Path) -> dict[str, str]:
    """Adapters and every file of numbers, by name."""
    adapters = {
        path.parent.name: json.loads(path.read_text())["sha256"] for path in folder.glob("store/adapters/*/manifest.json")
    }
    return adapters | {path.parent.name: path.read_text() for path in folder.glob("game-sweep/points/*/metrics.jsonl")}


@contextmanager
def killer(rng: random.Random, killed: Counter[str], most: int) -> Iterator[None]:
    """Every few seconds a worker dies, so many in all."""
    over = threading.Event()

    def kill() -> None:
        for _ in range(most):
            if over.wait(rng.uniform(3, 9)):
                return
            workers = [child for child in psutil.Process().children(recursive=True) if "SweepWorker" in child.name()]
            if workers:
                victim = rng.choice(workers)
                killed[victim.name().partition(".")[2] or "between steps"] += 1
                os.kill(victim.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def campaign(folder: Path, kills: int, seed: int) -> Counter[str]:
    """Sweep after sweep, until so many workers were killed.

    Raises:
        AssertionError: a sweep did not finish, or ended in something else than one process does.
    """
    steps.TOGETHER, rng, killed, games = 1, random.Random(seed), Counter[str](), 0
    play(folder / "alone", None)
    expected = made(folder / "alone")
    while killed.total() < kills:
        games += 1
        with killer(rng, killed, most=6):
            lines = play(folder / str(games), "2")
        if made(folder / str(games)) != expected:
            raise AssertionError(f"sweep {games} in {folder} differs from one process's")
        died = sum("died; " in line for line in lines)
        print(
            f"{games} sweeps, {killed.total()} kills {dict(killed)}, {died} noticed in the last, adapters and numbers equal",
            flush=True,
        )
    return killed


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="worker-kills-") as place:
        campaign(Path(place), asked.kills, asked.seed)
