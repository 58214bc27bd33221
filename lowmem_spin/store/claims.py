"""One stage computed by several processes at once: each takes a part of it that no other has, until none is left."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

PARTS = 32  # at most, of a stage: so near do the processes come to ending together


class Share(Enum):
    """What a process computes of a stage."""

    ALL = "all"
    FIRST = "first"  # others may come to help
    HELP = "help"  # another process has begun it, and holds its tables


class Claims:
    """Which parts of a stage's batches this process computes.

    All processes cut the same batches into the same parts, so that a row is computed in the same company whoever does it. A
    part is claimed with a lock, which the system releases if the process dies; what it has left is then computed by another.

    Args:
        place: of the locks, without their number and ending.
        batches: of the whole stage.
        backwards: whether to begin with the last part, as those do that come to help.
    """

    def __init__(self, place: Path, batches: Sequence[Any], backwards: bool) -> None:
        size = -(-len(batches) // PARTS)
        self.parts = [batches[start : start + size] for start in range(0, len(batches), max(1, size))]
        self.locks = [FileLock(place.with_name(f"{place.name}-{number}.lock")) for number in range(len(self.parts))]
        self.order = list(range(len(self.parts)))[:: -1 if backwards else 1]

    def taken(self, refresh: Callable[[], None]) -> Generator[Any]:
        """The batches to look through, one after the other.

        First those of parts that nobody else has, which stay claimed until there is no other; then, when they are let go,
        those that others had: rows are missing there only if their process has died.

        Args:
            refresh: is called before each part: what others have stored meanwhile is to be known.
        """
        others: list[int] = []
        with contextlib.ExitStack() as mine:
            for number in self.order:
                try:
                    self.locks[number].acquire(timeout=0)
                except Timeout:
                    others.append(number)
                    continue
                mine.callback(self.locks[number].release)
                refresh()
                yield from self.parts[number]
        for number in others:
            with self.locks[number]:
                refresh()
                yield from self.parts[number]

    def remove(self) -> None:
        """Delete the locks, when this process is done: then no other is still in a part of its own. The last leaves none."""
        for lock in self.locks:
            Path(lock.lock_file).unlink(missing_ok=True)
