"""Experiment trackers: one experiment per game, which is told of every training while it goes on.

What a resumed game, or one that shares another's iterates, has not told yet is read from the store, so its curves are whole.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.roles import Role
from lowmem_spin.common.checked import read_checked, warn, write_checked
from lowmem_spin.common.errors import InputError, install_extra
from lowmem_spin.common.files import DamagedError, Notice, read_text
from lowmem_spin.runner.health import Health
from lowmem_spin.runner.tracker_backends import TRACKERS, Experiment, Opened

SPENT = ("step", "epoch")


class Tracker:
    """Logs every policy of a game once: the curves of its training, then its health, on one axis of optimiser steps.

    A tracker that fails is left alone for the rest of this run; the next one logs what is missing. After a resume the steps
    between the checkpoint and the interruption keep the numbers that they were logged with the first time.

    Args:
        name: of the tracker, or "none".
        key: of the game; a game that goes on is the same experiment.
        notice: called with one line when what was logged is not known any more, or the tracker fails.
    """

    def __init__(self, name: str, folder: Path, key: str, config: dict[str, Any], notice: Notice = warn) -> None:
        if name != "none" and importlib.util.find_spec(name) is None:
            raise InputError(f"output.report_to: {name!r} is not installed; {install_extra(name)}, or use none")
        self.name, self.key, self.notice = name, key, notice
        self.experiment = Experiment(folder, key, config)
        self.step = 0  # that the next policy's training begins after
        self._opened: Opened | None = None
        self._failed = False
        self._memory = folder / f"logged_to_{name}.json"
        self._logged, self._last = self._remember()

    def _remember(self) -> tuple[list[str], int]:
        """The policies that were logged whole, and this game's last step that was."""
        try:
            return _logged(self._memory, self.key)
        except FileNotFoundError:
            return [], 0
        except DamagedError as error:
            self.notice(f"{self._memory} {error}; written again, and what it named is logged again")
            return [], 0

    def training(self, name: str, role: Role) -> Callable[[Mapping[str, float]], None]:
        """What takes the records of a policy's training, one by one as they come."""
        group, first = _group(name, role), self.step
        return lambda record: self._record(group, first, record)

    def policy(self, health: Health, metrics: list[dict[str, float]]) -> None:
        """Log what was not yet of one policy's training metrics, and its health, unless an earlier run of this game did."""
        entry, group = f"{self.key}/{health.name}", _group(health.name, health.role)
        first, self.step = self.step, self.step + int(metrics[-1]["step"] if metrics else 0)
        if entry in self._logged:
            return
        for record in metrics:
            self._record(group, first, record)
        if self._log({f"{group}health/{name}": value for name, value in health.numbers().items()}, self.step):
            self._logged.append(entry)
            self._write()

    def _record(self, group: str, first: int, record: Mapping[str, float]) -> None:
        at = first + int(record["step"])
        values = {f"{group}train/{name}": value for name, value in record.items() if name not in SPENT and value is not None}
        if at > self._last and self._log(values, at):
            self._last = at
            self._write()

    def _log(self, values: dict[str, float], step: int) -> bool:
        """Whether the tracker has taken them."""
        if self.name == "none" or self._failed:
            return False
        try:
            if self._opened is None:
                self._opened = TRACKERS[self.name](self.experiment, self.notice)
            self._opened[0](values, step)
        except Exception as error:  # noqa: BLE001 - whatever a tracker or its server does, the game is not lost to it
            self._fail(error)
        return not self._failed

    def _fail(self, error: Exception) -> None:
        self._failed = True
        said = " ".join(str(error).split())[:200] or type(error).__name__
        self.notice(f"{self.name} failed: {said}; the game continues without it; run again to log the rest")

    def _write(self) -> None:
        write_checked(self._memory, {"logged": self._logged, "last": {self.key: self._last}})

    def close(self) -> None:
        """Finish the experiment, if one was opened."""
        if self._opened is not None:
            try:
                self._opened[1]()
            except Exception as error:  # noqa: BLE001 - as above
                self._fail(error)


def _group(name: str, role: Role) -> str:
    """Before the names of its numbers: the base and the iterates are the game itself, the others stand apart."""
    return "" if role in (Role.BASE, Role.ITERATE) else f"{name}/"


def _logged(memory: Path, key: str) -> tuple[list[str], int]:
    """The names in a tracker's memory and the game's last step; earlier versions wrote names alone, first as a bare list.

    Raises:
        DamagedError: it is something else.
        FileNotFoundError, UnreadableError: as files.reading does.
    """
    text = read_text(memory)
    try:
        found = json.loads(text) if text.startswith("[") else read_checked(memory)
    except json.JSONDecodeError as error:
        raise DamagedError("is not valid JSON", memory) from error
    names, last = (found, {}) if isinstance(found, list) else (found.get("logged"), found.get("last", {}))
    if not isinstance(names, list) or not all(isinstance(entry, str) for entry in names):
        raise DamagedError("is no list of names", memory)
    if not isinstance(last, dict) or not all(type(step) is int for step in last.values()):
        raise DamagedError("has a last step that is no number", memory)
    return names, last.get(key, 0)
