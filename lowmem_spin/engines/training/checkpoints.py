"""Checkpoints of a training: whole, or not gone on from.

One is whole if its manifest, which is written last, names every file in it and each has the bytes that were hashed then. A
training that went on without its optimiser's state, or with a wrong bit in it, would end in another adapter and not say so.
What torch loads of it are pickles, so only bytes that were hashed are given to it, and it takes weights alone; a hash says
nothing of who wrote them.
"""

import shutil
from pathlib import Path

from lowmem_spin.common.checked import MANIFEST, folder_fault, seal_folder
from lowmem_spin.common.files import share

KEPT = 2  # the newest, and one to go back to


def checkpoints(work: Path) -> list[Path]:
    """What is called a checkpoint, newest first."""
    found = [path for path in work.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def finish_checkpoint(folder: Path) -> None:
    """Make a checkpoint whole: all of it is written. Only then older ones go, so that there is always a whole one."""
    share(folder)
    seal_folder(folder)
    for old in checkpoints(folder.parent)[KEPT:]:
        shutil.rmtree(old)


def damaged_checkpoints(work: Path) -> list[tuple[Path, str]]:
    """Those that are newer than the newest whole one, each with what is wrong with it. All their bytes are read."""
    found = []
    for folder in checkpoints(work):
        why = folder_fault(folder) if folder.is_dir() else "is no folder"
        if why is None:
            break
        found.append((folder, why))
    return found


def last_checkpoint(work: Path) -> Path | None:
    """The newest one that was finished; its bytes are right if the damaged ones have been moved away before."""
    return next((folder for folder in checkpoints(work) if (folder / MANIFEST).is_file()), None)
