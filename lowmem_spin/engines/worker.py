"""A long-lived worker process: one object whose methods are called by name, and that dies with its parent."""

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.streams import spell_out
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.base import Advance

PR_SET_PDEATHSIG = 1


def _serve(pipe: Connection, target: str, arguments: tuple[Any, ...], environment: dict[str, str], log: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also when the parent is killed -9
    os.environ.update(environment)
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)  # what the last one died of stays
    os.dup2(output, 1)
    os.dup2(output, 2)
    for stream in (sys.stdout, sys.stderr):
        spell_out(stream)
    try:
        module, _, name = target.partition(":")
        served = getattr(importlib.import_module(module), name)(*arguments)
        pipe.send(("result", None))
        while True:
            _answer(pipe, served, *pipe.recv())
    except EOFError:  # the parent closed the pipe
        return
    except BaseException as error:
        traceback.print_exc()
        refused = isinstance(error, InputError) and not isinstance(error, MemoryError)
        pipe.send(("refused" if refused else "failed", " ".join(str(error).split())[:300] or type(error).__name__))
        raise


def _answer(pipe: Connection, served: Any, method: str, values: tuple[Any, ...], reports: bool) -> None:
    """Call a method; one that reports gets, as its last argument, a function that sends numbers to the parent."""
    report = [lambda *numbers: pipe.send(("report", numbers))] if reports else []
    try:
        pipe.send(("result", getattr(served, method)(*values, *report)))
    except MemoryError:
        raise  # its batch does not fit: a new process and a smaller one may
    except InputError as error:
        pipe.send(("refused", str(error)))


@contextmanager
def _without_main() -> Iterator[None]:
    """A process that is started imports the main module of this one: a script that plays a game would play it there again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class WorkerDiedError(InputError):
    """The process of an engine is gone; what was committed is kept."""


class Worker:
    """Starts `target` ("module:Class") with `arguments` in a fresh process.

    Args:
        name: of the engine, for messages.
        remedy: what to change if the process dies.
        log: file that its output goes to.
    """

    def __init__(
        self, name: str, target: str, arguments: tuple[Any, ...], environment: dict[str, str], log: Path, remedy: str
    ) -> None:
        self.name, self.log, self.remedy = name, log, remedy
        log.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, target, arguments, environment, str(log)), daemon=True)
        with _without_main():
            self.process.start()
        theirs.close()
        self._receive(None)

    def call(self, method: str, *values: Any, report: Advance | None = None) -> Any:
        """The method's result. With `report`, the method gets a function as its last argument, which calls it here.

        Raises:
            WorkerDiedError: the process failed or was killed; one line with the remedy. What was committed is kept.
            InputError: the method refused its input; the process goes on.
        """
        try:
            self._pipe.send((method, values, report is not None))
        except BrokenPipeError:
            self._died()
        return self._receive(report)

    def _receive(self, report: Advance | None) -> Any:
        while True:
            try:
                kind, value = self._pipe.recv()
            except (EOFError, OSError):  # OSError: it died in the middle of a message
                self._died()
            if kind == "result":
                return value
            if kind == "refused":
                raise InputError(value)
            if kind == "failed":
                self.process.join(10)
                raise WorkerDiedError(f"the {self.name} worker failed: {value}; {self.remedy}; its log is {self.log}")
            if report is not None:
                report(*value)

    def _died(self) -> NoReturn:
        self.process.join(10)
        code = self.process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"
        raise WorkerDiedError(f"the {self.name} worker {how}; {self.remedy}, and run again to continue; its log is {self.log}")

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self.process.join(10)
        self.process.kill()
        self.process.join()  # its memory is free when this returns


class Resident:
    """A worker that is started once more, with half the batch, if it dies at work.

    Args:
        start: starts it for a recipe, whose batch sizes it is bound by.
        notify: told, in one line, that it was started again.
    """

    def __init__(self, start: Callable[[Recipe], Worker], recipe: Recipe, notify: Callable[[str], None]) -> None:
        self.start, self.recipe, self.notify = start, recipe, notify
        self.worker = start(recipe)
        self.restarted = False

    def call(self, method: str, *values: Any, report: Advance | None = None) -> Any:
        """As Worker.call; after a death, of a smaller worker."""
        reported = Once(report) if report else None
        try:
            return self.worker.call(method, *values, report=reported)
        except WorkerDiedError as death:
            smaller = self.recipe.with_half_batches()
            if self.restarted or smaller == self.recipe:
                raise
            self.notify(f"{death}; starting it again, with half the batch")
            self.restarted, self.recipe = True, smaller
            self.worker.close()
            self.worker = self.start(smaller)
            if reported:
                reported.again()
            return self.worker.call(method, *values, report=reported)

    def release(self, method: str) -> None:
        """As call, of a method that only gives way; one that has died already takes no memory."""
        try:
            self.worker.call(method)
        except WorkerDiedError as death:
            self.notify(str(death))

    def close(self) -> None:
        self.worker.close()


class Once:
    """Passes reports of progress on; rows that a second try reports again are held back, records are not: who keeps them knows
    their steps."""

    def __init__(self, report: Advance) -> None:
        self.report, self.done, self.passed = report, 0, 0

    def __call__(
        self, rows: int, loss: float | None = None, resumed: bool = False, record: Mapping[str, float] | None = None, /
    ) -> None:
        self.done += rows
        if rows == 0:
            self.report(0, loss, resumed, record)
        elif self.done > self.passed:
            self.report(self.done - self.passed, loss, resumed)
            self.passed = self.done

    def again(self) -> None:
        self.done = 0
