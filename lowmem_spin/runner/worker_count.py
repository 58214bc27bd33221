"""How many workers a person asks for, and may have."""

from collections.abc import Sequence

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.grid import SweepPoint
from lowmem_spin.engines.machine import find_machine

MOST = 1000


def asked_count(asked: str | None) -> int | None:
    """How many; None is one for each GPU.

    Raises:
        InputError: this is no number of workers.
    """
    if asked in (None, "auto"):
        return None
    count = int(asked) if asked.isdecimal() and len(asked) < 9 else 0
    if not 1 <= count <= MOST:
        raise InputError(f"--workers {asked}: give a number from 1 to {MOST}, or auto, which is one for each GPU")
    return count


def check_gpus(count: int | None, gpus: int, remedy: str = "") -> None:
    """Refuse more workers than there are GPUs for them.

    Raises:
        InputError: one line.
    """
    if count is not None and count > gpus:
        one_each = f"a worker has a GPU of its own, and there are {gpus}"
        raise InputError(f"--workers {count}: {one_each}; give {gpus}, or auto{remedy}")


def on_gpu(points: Sequence[SweepPoint]) -> bool:
    """Whether any of these games is played on a GPU here."""
    return any(map(_on_gpu, points))


def _on_gpu(point: SweepPoint) -> bool:
    try:
        return find_machine(point.recipe).device == "cuda"
    except InputError:  # of this point alone, when it is opened
        return False
