"""How to be rid of a run's or a sweep's folder: what games and commands wrote there goes, what is somebody's own stays."""

import shutil
from pathlib import Path

from lowmem_spin.common.errors import InputError
from lowmem_spin.runner.claim import ITERATES, LOGS, WORKERS, WRITTEN
from lowmem_spin.runner.run_folder import USED, is_played

RECORDS = ("run.json", "sweep.json")
OWN = (*WRITTEN, *RECORDS, USED, WORKERS, f"{LOGS}/worker-*.log", "error.txt")
OWN += ("logged_to_*.json", "tensorboard", "wandb", "trackio", "mlflow.db")


def check_removable(folder: Path) -> None:
    """Refuse what is no folder of a run or a sweep, and one that is being played.

    Raises:
        InputError: one line.
    """
    if folder.is_symlink() or not any((folder / name).is_file() for name in RECORDS):
        what = "is a link" if folder.is_symlink() else "has no run.json and no sweep.json"
        raise InputError(f"{str(folder)!r} {what}: it is no folder of a run or a sweep, and nothing is removed")
    if is_played(folder):
        raise InputError(f"{str(folder)!r} is being played; stop that first (Ctrl-C keeps what is finished), then remove it")


def remove_results(folder: Path) -> list[Path]:
    """Delete what games and commands wrote into a run's or a sweep's folder, and the folder if nothing else is in it.

    Links to iterates go, never what they lead to: the store keeps adapters and answers until `lowmem-spin gc` frees them.

    Returns:
        What stays, because no game wrote it.

    Raises:
        InputError: the folder is neither a run's nor a sweep's.
    """
    check_removable(folder)
    left: list[Path] = []
    for part in (folder / ITERATES, folder / "points", folder / LOGS):
        if part.is_symlink():  # what is behind it is somebody's
            part.unlink()
    for record in sorted((folder / "points").glob("*/run.json")):
        if record.parent.is_symlink():
            left.append(record.parent)
        else:
            left += remove_results(record.parent)
    iterates = [path for path in (folder / ITERATES).glob("*") if path.name.isdecimal()]
    for path in [*iterates, *(path for name in OWN if name != ITERATES for path in folder.glob(name))]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for part in (folder / ITERATES, folder / "points", folder / LOGS, folder):
        if part.is_dir() and not any(part.iterdir()):
            part.rmdir()
    return left + (sorted(path for path in folder.iterdir() if path.name != "points") if folder.is_dir() else [])
