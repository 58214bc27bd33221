"""Which worker of a sweep did what, and how busy each was: workers.json in the sweep's folder, over all runs of the sweep."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lowmem_spin.algorithm.stages import Stage, Train
from lowmem_spin.common.checked import read_checked, set_aside, write_checked
from lowmem_spin.common.files import DamagedError
from lowmem_spin.common.keys import digest
from lowmem_spin.runner.claim import WORKERS
from lowmem_spin.runner.crew import Computed
from lowmem_spin.runner.planning.counting import kind_of
from lowmem_spin.store.store import Store


class WorkerShare(BaseModel):
    """One worker's part. One that died and came up on another machine has two."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    worker: int = Field(ge=1)
    machine: str
    device: str  # its GPU or processor
    steps: dict[str, int]  # by kind, as far as they came to their end, those of which all was stored among them
    seconds: float = Field(ge=0)  # in which it computed, steps that were cut off among them


class WorkersFile(BaseModel):
    """workers.json."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    games: str  # digest of the sweep's trainings
    seconds: float = Field(ge=0)  # for which there were workers
    workers: list[WorkerShare]


def read_workers(folder: Path) -> WorkersFile | None:
    """Of a sweep's folder; None if it never had workers.

    Raises:
        DamagedError: the file does not read back.
    """
    path = folder / WORKERS
    try:
        return WorkersFile.model_validate(read_checked(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise DamagedError("is no account of workers", path) from error


def _games(stages: Sequence[Stage]) -> str:
    """What a sweep is known by: all that it trains."""
    return digest(sorted({stage.policy for stage in stages if isinstance(stage, Train)}))


def forget_other_games(folder: Path, stages: Sequence[Stage], store: Store) -> None:
    """Remove the account of an earlier sweep of other games in this folder; one that does not read back is set aside."""
    try:
        found = read_workers(folder)
    except DamagedError as error:
        set_aside(folder / WORKERS, store.root, str(error), "begun anew", store.notice, home=folder)
        return
    if found is not None and found.games != _games(stages):
        (folder / WORKERS).unlink()


def add_workers(folder: Path, stages: Sequence[Stage], computed: Sequence[Computed], seconds: float) -> None:
    """Add what workers did to the sweep's account, which is of these games if there is one.

    Args:
        folder: the sweep's.
        stages: of all steps.
        computed: what each worker did, step by step.
        seconds: for which the workers were there.
    """
    before = read_workers(folder)
    shares = {(one.worker, one.machine, one.device): one for one in (before.workers if before else [])}
    for one in computed:
        name = (one.worker + 1, one.machine, one.device)
        share = shares.get(name) or WorkerShare(worker=name[0], machine=name[1], device=name[2], steps={}, seconds=0)
        steps = Counter(share.steps) + Counter([kind_of(stages[one.step])] if one.whole else [])
        shares[name] = share.model_copy(update={"steps": dict(steps), "seconds": share.seconds + one.seconds})
    rounded = [share.model_copy(update={"seconds": round(share.seconds, 3)}) for _, share in sorted(shares.items())]
    whole = WorkersFile(games=_games(stages), seconds=round(seconds + (before.seconds if before else 0), 3), workers=rounded)
    write_checked(folder / WORKERS, whole.model_dump())
