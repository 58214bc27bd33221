"""What a stage cost: rows, tokens, seconds and peak memory by kind, next to what engines/memory.py predicts."""

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from lowmem_spin.common.display import Display
from lowmem_spin.engines.machine import driver

EVERY = 0.25  # seconds between two looks at the card; the allocators hold their peak much longer than that


@dataclass(frozen=True)
class Peak:
    """Most memory seen during some work, in bytes; None where it cannot be seen."""

    device: int | None  # of the whole card, less what was taken before the benchmark
    torch: int | None  # of this process's torch allocator


@dataclass(frozen=True)
class Cost:
    """Some work as measured, whoever did it."""

    work: str  # generate, score or train
    by: str  # an engine, or a rival
    rows: int
    tokens: int
    seconds: float
    peak: Peak

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


class Card:
    """Watches the memory of the first visible GPU, by asking the driver: it sees all processes."""

    def __init__(self) -> None:
        self.before = _used()
        self.peaks: dict[str, Peak] = {}

    def total(self) -> int | None:
        """Bytes that the card has."""
        return _bytes("memory.total")

    @contextmanager
    def watch(self, work: str) -> Iterator[None]:
        """Note the peak of what happens inside under `work`; the largest counts."""
        allocator = _allocator()
        if allocator is not None:
            gc.collect()
            allocator.empty_cache()  # what the stage before left cached is not this one's
            allocator.reset_peak_memory_stats()
        seen, done = [_used()], threading.Event()

        def look() -> None:
            while not done.wait(EVERY):
                seen.append(_used())

        watcher = threading.Thread(target=look, daemon=True)
        if self.before is not None:
            watcher.start()
        try:
            yield
        finally:
            done.set()
            if self.before is not None:
                watcher.join()
            seen.append(_used())
            allocator = _allocator()
            torch = None if allocator is None else allocator.max_memory_allocated()
            known = [used - self.before for used in seen if used is not None and self.before is not None]
            self._note(work, Peak(max(known) if known else None, torch))

    def _note(self, work: str, peak: Peak) -> None:
        before = self.peaks.get(work, Peak(None, None))

        def most(one: int | None, other: int | None) -> int | None:
            return max((value for value in (one, other) if value is not None), default=None)

        self.peaks[work] = Peak(most(before.device, peak.device), most(before.torch, peak.torch))


def _used() -> int | None:
    return _bytes("memory.used")


def _bytes(field: str) -> int | None:
    answer = driver(field)  # "1234 MiB"
    return int(answer[0].split()[0]) * 2**20 if answer and answer[0].split()[0].isdigit() else None


def _allocator() -> Any:
    """torch.cuda, if this process computes on a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


class Stopwatch(Display):
    """A display whose stages are watched by `card`."""

    def __init__(self, console: Console, card: Card) -> None:
        super().__init__(console)
        self.card = card

    @contextmanager
    def stage(self, kind: str, label: str, rows: int) -> Iterator[Any]:
        with self.card.watch(kind), super().stage(kind, label, rows) as meter:
            yield meter

    def costs(self, engines: dict[str, str]) -> list[Cost]:
        """What each kind of stage cost in all; `engines` says who does it."""
        return [
            Cost(kind, engine, self.rows[kind], self.tokens[kind], self.seconds[kind], self.card.peaks[kind])
            for kind, engine in engines.items()
        ]
