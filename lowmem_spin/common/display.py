"""What a person watches: how far each stage is, and the game; and where the time went."""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from lowmem_spin.common.errors import InputError, printable
from lowmem_spin.common.rows_ahead import RowsAhead

EVERY = 30.0  # seconds between two lines on a stage where no bar can be drawn
BAR, TIMES = 10, len("59 min, 10.5 h in all")  # columns


class TimeIsUpError(KeyboardInterrupt):
    """The hours that were given are over. Raised where all that was computed is stored."""


def clock(seconds: float | None) -> str:
    """A duration to two figures or so, and none but 0 itself as 0; None is one that is not known."""
    if seconds is None or math.isnan(seconds):
        return "?"
    if 0 < seconds < 1:
        return "< 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"


def about(seconds: float) -> str:
    """A duration that was estimated, in a sentence."""
    return "less than a second" if 0 < seconds < 1 else f"about {clock(seconds)}"


def readable(number: float) -> str:
    """A number to three decimals; from a thousand on with k or M, for a loss may have any size."""
    for letter, size in (("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.2f}{letter}"
    return f"{number:.3f}"


def _no_bar() -> None:
    """Nothing is drawn where there is no terminal."""


@dataclass
class StageMeter:
    """One stage's progress."""

    display: "Display"
    kind: str
    label: str
    rows: int
    done: int = 0
    computed: int = 0  # of those that are done: the others were stored
    tokens: int = 0
    loss: float | None = None
    bar: Callable[[], None] = _no_bar  # draws how many rows are done

    def __post_init__(self) -> None:
        self.began = time.perf_counter()

    def advance(self, rows: int, tokens: int = 0, loss: float | None = None) -> None:
        """So many rows were computed."""
        self.display.stop_if_interrupted()
        self.done, self.computed, self.tokens = self.done + rows, self.computed + rows, self.tokens + tokens
        self.loss = self.loss if loss is None else loss
        self.display.count(self.kind, rows, tokens)
        self.bar()

    def skip(self, rows: int) -> None:
        """So many rows were stored already."""
        self.done += rows
        self.display.skip(self.kind, rows)
        self.bar()

    def saved(self) -> None:
        """All that was computed so far is stored: a good moment to stop."""
        self.display.stop_if_late()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.began

    @property
    def left(self) -> float | None:
        """Seconds until the stage is over, by what it has computed so far; None: nothing yet."""
        return self.elapsed / self.computed * (self.rows - self.done) if self.computed else None

    def speed(self) -> list[str]:
        """Loss, tokens per second and the device's memory, as far as they are known."""
        parts = [] if self.loss is None else [f"loss {readable(self.loss)}"]
        if self.tokens:
            parts.append(f"{self.tokens / self.elapsed:,.0f} tok/s")
        return [*parts, *self.display.gauge()]

    def line(self) -> str:
        """How far the stage is, and how long it and the game will take."""
        parts = [f"{self.done:,} of {self.rows:,} rows", *self.speed()]
        if self.left is not None:
            parts.append(f"{clock(self.left)} left")
        return f"{self.label}: {', '.join([*parts, *self.display.game_left()])}"

    def last_line(self) -> str:
        """What the stage took."""
        stored = f", {self.done - self.computed:,} of them stored already" if self.done > self.computed else ""
        return f"{self.label}: {', '.join([f'{self.done:,} rows{stored}', clock(self.elapsed), *self.speed()])}"


class _Pace(ProgressColumn):
    """What a bar says beside itself: the time left, and of the rest what has room."""

    def __init__(self, meter: StageMeter, room: int) -> None:
        super().__init__(Column(no_wrap=True, overflow="ellipsis"))
        self.meter, self.room = meter, room

    def render(self, task: Task) -> Text:
        """See ProgressColumn."""
        left, game = self.meter.left, self.meter.display.left()
        said = ", ".join([*([] if left is None else [clock(left)]), *([] if game is None else [f"{clock(game)} in all"])])
        for part in self.meter.speed():
            more = f"{said}, {part}" if said else part
            said = more if len(more) <= self.room else said
        return Text(said, style="cyan")


class Display:
    """Prints lines, shows stages and adds up their seconds, tokens and rows by kind; stored rows count for nothing.

    Args:
        console: where to.
        gauge: what else to say of a stage under way, in parts.
    """

    def __init__(self, console: Console, gauge: Callable[[], Sequence[str]] = tuple) -> None:
        self.console, self.gauge = console, gauge
        self.seconds: dict[str, float] = defaultdict(float)
        self.tokens: dict[str, int] = defaultdict(int)
        self.rows: dict[str, int] = defaultdict(int)
        self.began = time.perf_counter()
        self.title = ""  # before the name of every stage
        self.name = ""  # before a line on one game of several
        self.deadline: float | None = None  # on time.perf_counter's clock, which no change of the date moves
        self.interrupted = False
        self.workers = self.most_workers = 1  # that compute at once, now and at any time
        self._ahead = RowsAhead()
        self._meter: StageMeter | None = None  # of the stage under way

    def interrupt(self, *_: object) -> None:
        """Ctrl-C, as a signal handler. Python drops an exception that is raised inside a destructor or a foreign
        library's callback, and the interrupt with it; so it is remembered, and raised again at the next batch."""
        self.interrupted = True
        raise KeyboardInterrupt

    def stop_if_interrupted(self) -> None:
        """Raise the interrupt that was dropped, if one was."""
        if self.interrupted:
            raise KeyboardInterrupt

    def stop_after(self, hours: float | None) -> None:
        """Set the deadline, from now; None: there is none.

        Raises:
            InputError: these are no hours.
        """
        if hours is None:
            return
        if not (math.isfinite(hours) and hours > 0):
            raise InputError(f"--max-hours {hours}: cannot be used; give the hours to play, for instance 11.5")
        self.deadline = time.perf_counter() + 3600 * hours

    def stop_if_late(self) -> None:
        """Raise that the time is up, if it is; called where nothing would be lost."""
        if self.deadline is not None and time.perf_counter() > self.deadline:
            raise TimeIsUpError

    def log(self, line: str, style: str = "") -> None:
        """Print one line of plain text: markup and control characters in it show as they are."""
        self.console.print(escape(printable(line)), style=style, highlight=False, soft_wrap=True)

    def expect(self, steps: Sequence[Mapping[str, int]]) -> None:
        """Say what lies ahead: the rows of each step by kind, at most."""
        self._ahead = RowsAhead(steps)

    def begin_step(self, place: int) -> None:
        """The step of this place, of those that are expected, begins."""
        self._ahead.begin(place)

    def count(self, kind: str, rows: int, tokens: int) -> None:
        """Rows that were computed."""
        self.tokens[kind] += tokens
        self.rows[kind] += rows
        self._ahead.count(kind, rows)

    def skip(self, kind: str, rows: int) -> None:
        """Rows that need not be computed."""
        self._ahead.count(kind, rows)

    def left(self) -> float | None:
        """Seconds until all steps are over, at most: the stage under way at its own pace, the rest at that of each kind of work
        so far; None: one has none yet, or nothing is said to lie ahead."""
        if not self._ahead.steps:
            return None
        ahead, spent, now = self._ahead.left(), dict(self.seconds), 0.0
        if (meter := self._meter) is not None:
            spent[meter.kind] = spent.get(meter.kind, 0.0) + meter.elapsed
            if meter.left is not None:  # a stage may be far slower than others of its kind, and is a part of all that is left
                ahead[meter.kind] = max(0, ahead.get(meter.kind, 0) - (meter.rows - meter.done))
                now = meter.left
        known = [spent[kind] / self.rows[kind] * rows for kind, rows in ahead.items() if rows and self.rows[kind]]
        return now + sum(known) / self.workers if len(known) == sum(map(bool, ahead.values())) else None

    def game_left(self) -> list[str]:
        """How long the game will take, in words, once that is known."""
        left = self.left()
        return [] if left is None else [f"at most {clock(max(left, 1))} in all"]

    @contextmanager
    def start_up(self, label: str) -> Iterator[None]:
        """Imports and model loading, reported apart from the stages."""
        with self.timed("start-up"), self.console.status(escape(printable(label))):
            yield

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count these seconds under `kind`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - began

    @contextmanager
    def stage(self, kind: str, label: str, rows: int) -> Iterator[StageMeter]:
        """One stage: under a bar in a terminal, elsewhere with a line every half a minute and one at its end."""
        self.stop_if_interrupted()
        with self.timed(kind):
            self._meter = meter = StageMeter(self, kind, f"{self.title}{kind} {label}", rows)
            try:
                with self._bar(meter) if self.console.is_terminal else self._lines(meter):
                    yield meter
            finally:
                self._meter = None

    def now(self) -> str | None:
        """How far the stage under way is, if there is one."""
        return None if self._meter is None else self._meter.line()

    @contextmanager
    def _bar(self, meter: StageMeter) -> Iterator[None]:
        label, room = Text(printable(meter.label)), self.console.width - len(f" {meter.rows}/{meter.rows} ")
        has_bar = label.cell_len + BAR + TIMES < room  # without one the label, the count and the times say the same
        label.truncate(max(room - TIMES, 1), overflow="ellipsis")
        room -= label.cell_len + (BAR + 1) * has_bar
        bar = [BarColumn(BAR)] if has_bar else []
        columns = [TextColumn("{task.description}"), *bar, MofNCompleteColumn(), _Pace(meter, room)]
        with Progress(*columns, console=self.console, transient=True) as progress:
            meter.bar = lambda: progress.update(task, completed=meter.done)
            task = progress.add_task(escape(label.plain), total=meter.rows)
            yield
        meter.bar = _no_bar

    @contextmanager
    def _lines(self, meter: StageMeter) -> Iterator[None]:
        over = threading.Event()

        def tell() -> None:
            while not over.wait(EVERY):
                self.log(meter.line())

        teller = threading.Thread(target=tell, name="progress", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()
        self.log(meter.last_line())

    def time_line(self) -> str:
        """Where the wall time of this run went, in seconds."""
        total = time.perf_counter() - self.began
        parts = [f"{kind} {seconds:.1f}" for kind, seconds in self.seconds.items()]
        if self.most_workers > 1:
            return f"{total:.1f} s, in which {self.most_workers} workers computed: " + ", ".join(parts)
        outside = total - sum(self.seconds.values())
        return f"{total:.1f} s: " + ", ".join([*parts, f"other {outside:.1f} ({outside / total:.1%})"])
