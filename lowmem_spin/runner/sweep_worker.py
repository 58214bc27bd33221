"""A worker's own process: it computes the steps of a sweep's games that it is given, and says how each ended."""

import os
import pickle
import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from lowmem_spin.algorithm.stages import Evaluate, Stage
from lowmem_spin.common.display import Display, StageMeter, TimeIsUpError
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.grid import SweepPoint
from lowmem_spin.runner.crew import Done
from lowmem_spin.runner.evaluate_policy import evaluate_policy, sample_policy
from lowmem_spin.runner.open import OpenGame, SharedResources, open_game
from lowmem_spin.runner.planning.calibration import device_name
from lowmem_spin.runner.run import make, measured_by
from lowmem_spin.store.claims import Share


class _WorkerDisplay(Display):
    """Writes to the worker's log, and keeps what is to be said of a step. How far it is, the sweep asks."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.said: list[tuple[str, str]] = []

    def log(self, line: str, style: str = "") -> None:
        self.said.append((line, style))
        super().log(line, style)
        self.console.file.flush()

    @contextmanager
    def _lines(self, meter: StageMeter) -> Iterator[None]:
        yield
        self.log(meter.last_line())


class SweepWorker:
    """Computes steps of a sweep's games in a process of its own. Engines, tables and games stay open from step to step.

    Args:
        points: of the sweep.
        recipe_dir: the recipe's folder.
        here: the working directory, from which paths are looked for.
        log: file, to which it is appended.
        trust: in code that comes with recipes and models, as the sweep was given it.
    """

    def __init__(self, points: Sequence[SweepPoint], recipe_dir: Path, here: str, log: Path, trust: Trust) -> None:
        self.points, self.recipe_dir, self.here, self.log = points, recipe_dir, here, log
        self.shared = SharedResources(trust=trust)
        self.games: dict[int, OpenGame | Exception] = {}
        self.display: _WorkerDisplay | None = None
        self.device = ""  # its name, once a game has been asked for

    def sees(self, probe: Path) -> bool:
        """Whether a file of the sweep's is there for this process, too."""
        return probe.exists()

    def progress(self) -> str | None:
        """How far the stage under way is."""
        return None if self.display is None else self.display.now()

    def play(self, point: int, stage: Stage, samples_only: bool, seconds_left: float | None, helps: bool) -> Done:
        """Make sure that the store has what a stage of a point's game makes, or help another worker with that."""
        began = time.perf_counter()
        display = self.display = self.display or self._begin()
        before = [dict(display.seconds), dict(display.rows), dict(display.tokens)]
        display.said.clear()
        display.deadline = None if seconds_left is None else began + seconds_left
        error, late = None, False
        try:
            display.name = display.title = f"{self.points[point].name} "
            self._compute(self._game(point, display), stage, samples_only, Share.HELP if helps else Share.FIRST)
        except TimeIsUpError:
            late = True
        except Exception as failed:  # noqa: BLE001 - whatever it is, the sweep decides what becomes of the game
            error = _that_travels(failed)
        now = (display.seconds, display.rows, display.tokens)
        seconds, rows, tokens = (_more(then, counts) for then, counts in zip(before, now, strict=True))
        took, here = time.perf_counter() - began, socket.gethostname()
        return Done(seconds, rows, tokens, list(display.said), took, error, late, machine=here, device=self.device)

    def _begin(self) -> _WorkerDisplay:
        os.chdir(self.here)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        return _WorkerDisplay(Console(file=self.log.open("a", encoding="utf-8"), width=160, force_terminal=False))

    def _game(self, point: int, display: _WorkerDisplay) -> OpenGame:
        """All are opened before the first engine, which leaves less memory for others to be planned with; lines on data and
        models were said when the sweep opened them."""
        if not self.games:
            for number, one in enumerate(self.points):
                try:
                    self.games[number] = open_game(one.recipe, self.recipe_dir, display, self.shared)
                except Exception as error:  # noqa: BLE001 - it is that game's
                    self.games[number] = error
            display.said.clear()
        game = self.games[point]
        if isinstance(game, Exception):
            raise game
        return game

    def _compute(self, game: OpenGame, stage: Stage, samples_only: bool, share: Share) -> None:
        self.device = self.device or device_name(game.resolved.choices.machine.device)
        own = next((one for one in game.stages if one == stage), None)
        if own is None or getattr(own, "policy", "") != getattr(stage, "policy", ""):  # whose key has the sources here
            raise InputError(
                "a worker finds another game in this recipe than the sweep does: its GPU, versions or files differ, or a "
                "function of your own does not always return the same"
            )
        for tables in filter(None, (game.tables, game.unquantized)):
            tables.share = share
        if not isinstance(own, Evaluate):
            make(game, own)
        else:
            measure = sample_policy if samples_only else evaluate_policy
            measure(measured_by(game, own))


def _more(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: value - before.get(kind, 0) for kind, value in now.items() if value != before.get(kind, 0)}


def _that_travels(error: Exception) -> Exception:
    """An exception as another process can have it, with its traceback as a note."""
    told = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - of this process itself
    except Exception:  # noqa: BLE001 - an exception of whatever library may not pickle
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.__cause__ = None
    error.add_note(told)
    return error
