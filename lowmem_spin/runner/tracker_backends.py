"""How each experiment tracker is opened, and how it takes numbers: what is the trackers' own stays in this file."""

import json
import netrc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lowmem_spin.common.files import Notice

PROJECT = "lowmem-spin"
Opened = tuple[Callable[[dict[str, float], int], Any], Callable[[], Any]]  # log(values, step), close()


@dataclass(frozen=True)
class Experiment:
    """What one game is called in a tracker, and the folder that is its own."""

    folder: Path
    key: str  # of the game: one that goes on is the same experiment
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """The recipe's, which its folder has; a sweep's point has the sweep's too."""
        folder = self.folder.resolve()
        return f"{folder.parents[1].name} {folder.name}" if folder.parent.name == "points" else folder.name

    @property
    def unique(self) -> str:
        """Another game of this name has another."""
        return f"{self.name}-{self.key[:6]}"


def tensorboard(game: Experiment, notice: Notice) -> Opened:
    """Every number is written through at once, and none that the event files have already."""
    from torch.utils.tensorboard.writer import SummaryWriter

    place = game.folder / "tensorboard" / game.unique
    there = _written(place)
    writer = SummaryWriter(str(place))
    if not there:
        writer.add_text("recipe", f"```json\n{json.dumps(game.config, indent=2)}\n```")

    def log(values: dict[str, float], step: int) -> None:
        for metric, value in values.items():
            if (metric, step) not in there:
                writer.add_scalar(metric, value, step)
        writer.flush()

    return log, writer.close


def _written(place: Path) -> set[tuple[str, int]]:
    """(metric, step) of all numbers in a folder's event files; one that a kill has torn is read as far as it goes."""
    if not place.is_dir():
        return set()
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    events = EventAccumulator(str(place), size_guidance={SCALARS: 0})
    events.Reload()
    return {(metric, event.step) for metric in events.Tags()[SCALARS] for event in events.Scalars(metric)}


def wandb(game: Experiment, notice: Notice) -> Opened:
    """Online for who is logged in; steps are an axis of their own, so that a game that goes on may repeat one."""
    offline = "WANDB_MODE" not in os.environ and not logged_in_to_wandb()
    if offline:
        notice(
            f"wandb: nobody is logged in, so it logs offline, into {game.folder / 'wandb'}; `wandb login` before a run has it "
            "log online, `wandb sync` sends what is there"
        )
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb.init(
        project=PROJECT,
        name=game.name,
        id=game.key,
        dir=str(game.folder),
        config=game.config,
        mode="offline" if offline else None,  # of this game alone: a later one may find a login
        resume="allow",
        reinit="create_new",  # the games of a sweep are all open at once
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return (lambda values, step: run.log({**values, "step": step})), run.finish


def logged_in_to_wandb() -> bool:
    """Whether there is a key in the environment, or one that `wandb login` has left."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def trackio(game: Experiment, notice: Notice) -> Opened:
    """Local; on a Space if TRACKIO_SPACE_ID names one."""
    own = str(game.folder.resolve() / "trackio")
    if (place := os.environ.setdefault("TRACKIO_DIR", own)) != own:  # it is read once in a process
        notice(f"trackio: logs into {place}, as TRACKIO_DIR or an earlier game of this process has it")
    import trackio  # pyright: ignore[reportMissingImports]

    space = os.environ.get("TRACKIO_SPACE_ID")
    run = trackio.init(project=PROJECT, name=game.unique, config=game.config, resume="allow", space_id=space)
    return (lambda values, step: run.log(values, step=step)), run.finish


def mlflow(game: Experiment, notice: Notice) -> Opened:
    """Into a database in the game's folder, or to the server that MLFLOW_TRACKING_URI names."""
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{game.folder.resolve() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(PROJECT)
    number = client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
    earlier = client.search_runs([number], f"tags.game = '{game.key}'")
    run = earlier[0] if earlier else client.create_run(number, tags={"game": game.key}, run_name=game.name)
    run_id = run.info.run_id
    if not earlier:
        client.log_dict(run_id, game.config, "recipe.json")

    def log(values: dict[str, float], step: int) -> None:
        for metric, value in values.items():
            client.log_metric(run_id, metric, value, step=step)

    return log, lambda: client.set_terminated(run_id)


TRACKERS: dict[str, Callable[[Experiment, Notice], Opened]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "trackio": trackio,
    "mlflow": mlflow,
}
