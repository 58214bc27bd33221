"""A long-lived worker process: one object whose methods are called by name, and that dies with its parent."""

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from lowmem_spin.recipe import InputError

PR_SET_PDEATHSIG = 1


def _serve(pipe: Connection, target: str, arguments: tuple[Any, ...], environment: dict[str, str], log: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also when the parent is killed -9
    os.environ.update(environment)
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        module, _, name = target.partition(":")
        served = getattr(importlib.import_module(module), name)(*arguments)
        pipe.send(("ready", None))
        while True:
            method, values = pipe.recv()
            pipe.send(("result", getattr(served, method)(*values)))
    except EOFError:  # the parent closed the pipe
        return
    except BaseException as error:
        traceback.print_exc()
        pipe.send(("error", " ".join(str(error).split())[:300] or type(error).__name__))
        raise


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
        self.process.start()
        theirs.close()
        self._receive()

    def call(self, method: str, *values: Any) -> Any:
        """The method's result.

        Raises:
            InputError: the worker failed or died; one line with the remedy. What was committed is kept.
        """
        try:
            self._pipe.send((method, values))
        except BrokenPipeError:
            self._died()
        return self._receive()

    def _receive(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._died()
        if kind == "error":
            raise InputError(f"the {self.name} worker failed: {value}; {self.remedy}; its log is {self.log}")
        return value

    def _died(self) -> NoReturn:
        self.process.join(10)
        code = self.process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"
        raise InputError(f"the {self.name} worker {how}; {self.remedy}, and run again to go on; its log is {self.log}")

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self.process.join(10)
        self.process.kill()
