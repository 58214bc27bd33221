"""Experiment trackers: one experiment per game, offline unless the user's own settings say otherwise.

What is logged is read from the store, so a resumed game, or one that shares another's iterates, has whole curves.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.roles import Role
from lowmem_spin.common.checked import read_checked, warn, write_checked
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError, Notice, read_text
from lowmem_spin.runner.health import Health

PROJECT, SPENT = "lowmem-spin", ("step", "epoch")
Log = Callable[[dict[str, float], int], Any]
Opened = tuple[Log, Callable[[], Any]]  # log(values, step), close()


def _tensorboard(folder: Path, name: str, key: str, config: dict[str, Any]) -> Opened:
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))
    writer.add_text("recipe", f"```json\n{json.dumps(config, indent=2)}\n```")

    def log(values: dict[str, float], step: int) -> None:
        for metric, value in values.items():
            writer.add_scalar(metric, value, step)

    return log, writer.close


def _wandb(folder: Path, name: str, key: str, config: dict[str, Any]) -> Opened:
    os.environ.setdefault("WANDB_MODE", "offline")
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(project=PROJECT, name=name, id=key, dir=str(folder), config=config, resume="allow")
    return (lambda values, step: run.log(values, step=step)), run.finish


def _trackio(folder: Path, name: str, key: str, config: dict[str, Any]) -> Opened:
    os.environ.setdefault("TRACKIO_DIR", str(folder.resolve() / "trackio"))
    import trackio  # pyright: ignore[reportMissingImports]

    trackio.init(project=PROJECT, name=f"{name}-{key[:6]}", config=config, resume="allow")
    return (lambda values, step: trackio.log(values, step=step)), trackio.finish


def _mlflow(folder: Path, name: str, key: str, config: dict[str, Any]) -> Opened:
    import mlflow  # pyright: ignore[reportMissingImports]

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    mlflow.set_experiment(PROJECT)
    earlier = mlflow.search_runs(filter_string=f"tags.game = '{key}'", output_format="list")
    mlflow.start_run(earlier[0].info.run_id if earlier else None, run_name=name, tags={"game": key})
    if not earlier:
        mlflow.log_dict(config, "recipe.json")
    return (lambda values, step: mlflow.log_metrics(values, step=step)), mlflow.end_run


TRACKERS: dict[str, Callable[[Path, str, str, dict[str, Any]], Opened]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


class Tracker:
    """Logs every policy of a game once: the curves of its training, then its health, on one axis of optimiser steps.

    Args:
        name: of the tracker, or "none".
        key: of the game; a game that goes on is the same experiment.
        notice: called with one line when what was logged is not known any more.
    """

    def __init__(self, name: str, folder: Path, key: str, config: dict[str, Any], notice: Notice = warn) -> None:
        if name != "none" and importlib.util.find_spec(name) is None:
            raise InputError(f"output.report_to: {name!r} is not installed; `pip install 'lowmem-spin[{name}]'`, or use none")
        self.name, self.folder, self.key, self.config = name, folder, key, config
        self.step = 0
        self._opened: Opened | None = None
        self._memory = folder / f"logged_to_{name}.json"
        self._logged = self._remember(notice)

    def _remember(self, notice: Notice) -> list[str]:
        try:
            return _logged(self._memory)
        except FileNotFoundError:
            return []
        except DamagedError as error:
            notice(f"{self._memory} {error}; written again, and what it named is logged again")
            return []

    def policy(self, health: Health, metrics: list[dict[str, float]]) -> None:
        """Log one policy's training metrics and health, unless an earlier run of this game did."""
        if self.name == "none":
            return
        entry = f"{self.key}/{health.name}"
        group = "" if health.role in (Role.BASE, Role.ITERATE) else f"{health.name}/"
        first, self.step = self.step, self.step + int(metrics[-1]["step"] if metrics else 0)
        if entry in self._logged:
            return
        if self._opened is None:
            self._opened = TRACKERS[self.name](self.folder, self.folder.name, self.key, self.config)
        log, _ = self._opened
        for record in metrics:
            values = {
                f"{group}train/{name}": value for name, value in record.items() if name not in SPENT and value is not None
            }
            log(values, first + int(record["step"]))
        log({f"{group}health/{name}": value for name, value in health.numbers().items()}, self.step)
        self._logged.append(entry)
        write_checked(self._memory, {"logged": self._logged})

    def close(self) -> None:
        """Finish the experiment, if one was opened."""
        if self._opened is not None:
            self._opened[1]()


def _logged(memory: Path) -> list[str]:
    """The names in a tracker's memory; earlier versions wrote them as a bare list.

    Raises:
        DamagedError: it is something else.
        FileNotFoundError, UnreadableError: as files.reading does.
    """
    text = read_text(memory)
    try:
        found = json.loads(text) if text.startswith("[") else read_checked(memory).get("logged")
    except json.JSONDecodeError as error:
        raise DamagedError("is not valid JSON", memory) from error
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise DamagedError("is no list of names", memory)
    return found
