"""What the store needs of the rest of a game: engines that compute what is missing, and somebody to tell of it; and what its
tables need of the store."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from lowmem_spin.common.files import Notice
from lowmem_spin.common.parquet import ParquetTable
from lowmem_spin.engines.base import Generator, Learner
from lowmem_spin.engines.oracles.base import Oracle


class TableFiles(Protocol):
    """The store, as one of its tables knows it."""

    notice: Notice

    def path(self, kind: str, key: str) -> Path: ...

    def read(self, path: Path) -> ParquetTable | None: ...

    def set_aside(self, path: Path, why: str, then: str = ...) -> None: ...


class Meter(Protocol):
    """How far one stage is."""

    def advance(self, rows: int, tokens: int = 0, loss: float | None = None) -> None:
        """So many rows were computed."""
        ...

    def skip(self, rows: int) -> None:
        """So many rows were stored already."""
        ...

    def saved(self) -> None:
        """All that was computed so far is stored: a good moment to stop."""
        ...


class Engines(Protocol):
    """The game's engines, opened when first asked for."""

    def generator(self) -> Generator: ...

    def learner(self) -> Learner: ...

    def oracle(self) -> Oracle: ...


class Progress(Protocol):
    """What a long stage tells whoever watches; see display.py."""

    def stage(self, kind: str, label: str, rows: int) -> AbstractContextManager[Meter]: ...
