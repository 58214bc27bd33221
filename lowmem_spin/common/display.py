"""What a person watches: one progress bar per stage, and where the time went."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from lowmem_spin.common.errors import printable


class TokensPerSecond(ProgressColumn):
    """Tokens per second since the stage began, rows that were already stored left out."""

    def render(self, task: Task) -> Text:
        tokens, elapsed = task.fields["tokens"], task.elapsed or 0
        return Text(f"{tokens / elapsed:,.0f} tok/s" if tokens and elapsed else "", style="cyan")


class TimeIsUpError(KeyboardInterrupt):
    """The hours that were given are over. Raised where all that was computed is stored."""


class _Meter:
    def __init__(self, display: "Display", progress: Progress, task: int, kind: str) -> None:
        self.display, self.progress, self.task, self.kind, self.tokens = display, progress, task, kind, 0

    def advance(self, rows: int, tokens: int = 0) -> None:
        self.display.stop_if_interrupted()
        self.tokens += tokens
        self.display.tokens[self.kind] += tokens
        self.display.rows[self.kind] += rows if tokens else 0
        self.progress.update(self.task, advance=rows, tokens=self.tokens)  # type: ignore[arg-type]

    def saved(self) -> None:
        self.display.stop_if_late()


class Display:
    """Prints lines, shows stages and adds up their seconds, tokens and rows by kind; stored rows count for nothing."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = defaultdict(float)
        self.tokens: dict[str, int] = defaultdict(int)
        self.rows: dict[str, int] = defaultdict(int)
        self.began = time.perf_counter()
        self.title = ""  # before the name of every stage
        self.name = ""  # before a line on one game of several
        self.deadline: float | None = None  # on time.perf_counter's clock, which no change of the date moves
        self.interrupted = False

    def interrupt(self, *_: object) -> None:
        """Ctrl-C, as a signal handler. Python drops an exception that is raised inside a destructor or a foreign
        library's callback, and the interrupt with it; so it is remembered, and raised again at the next batch."""
        self.interrupted = True
        raise KeyboardInterrupt

    def stop_if_interrupted(self) -> None:
        """Raise the interrupt that was dropped, if one was."""
        if self.interrupted:
            raise KeyboardInterrupt

    def stop_if_late(self) -> None:
        """Raise that the time is up, if it is; called where nothing would be lost."""
        if self.deadline is not None and time.perf_counter() > self.deadline:
            raise TimeIsUpError

    def log(self, line: str, style: str = "") -> None:
        """Print one line of plain text: markup and control characters in it show as they are."""
        self.console.print(escape(printable(line)), style=style, highlight=False, soft_wrap=True)

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
    def stage(self, kind: str, label: str, rows: int) -> Iterator[_Meter]:
        """One stage under a progress bar with rows, tokens per second and time left."""
        columns = [TextColumn("{task.description}"), BarColumn(10), MofNCompleteColumn(), TokensPerSecond(Column(no_wrap=True))]
        left = [TimeRemainingColumn(compact=True, elapsed_when_finished=True)]
        self.stop_if_interrupted()
        description = printable(f"{self.title}{kind} {label}")
        with (
            self.timed(kind),
            Progress(*columns, *left, console=self.console, transient=self.console.is_terminal) as progress,
        ):
            yield _Meter(self, progress, progress.add_task(escape(description), total=rows, tokens=0), kind)

    def time_line(self) -> str:
        """Where the wall time of this run went, in seconds."""
        total = time.perf_counter() - self.began
        parts = [f"{kind} {seconds:.1f}" for kind, seconds in self.seconds.items()]
        outside = total - sum(self.seconds.values())
        return f"{total:.1f} s: " + ", ".join([*parts, f"other {outside:.1f} ({outside / total:.1%})"])
