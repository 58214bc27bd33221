"""The command line as a user starts it, on games of seconds: in a process of its own, or in this one without its imports."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from helpers.faults import SHORT
from helpers.forked import Command
from lowmem_spin.cli.main import main

SMALL = dict(change.split("=", 1) for change in SHORT if not change.startswith("runtime.device"))


def arguments(folder: Path, *overrides: str) -> list[str]:
    """`run` of a short game whose store and results are in `folder`."""
    changes = [*SHORT, f"output.store={folder / 'store'}", f"output.dir={folder / 'run'}", *overrides]
    return ["run", "quickstart", *(f"--set={change}" for change in changes)]


def start(folder: Path, *overrides: str) -> Command:
    return Command(*arguments(folder, *overrides), together=True)


def finish(command: Command) -> str:
    output, _ = command.communicate()
    assert command.returncode == 0, output
    return output


def ended(command: Command) -> subprocess.CompletedProcess[str]:
    output, errors = command.communicate()
    return subprocess.CompletedProcess(command.args, command.returncode or 0, output, errors)


def cli(*words: object, given: str = "") -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, and what it reads."""
    return ended(Command(*words, given=given))


def call(*words: object) -> subprocess.CompletedProcess[str]:
    """A command in this process, which has imported torch already."""
    command, before = ["lowmem-spin", *map(str, words)], signal.getsignal(signal.SIGINT)
    code = 0
    with (
        redirect_stdout(StringIO()) as out,
        redirect_stderr(StringIO()) as err,
        patch.object(sys, "argv", command),
        patch.dict(os.environ, COLUMNS="80"),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            signal.signal(signal.SIGINT, before)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def play(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A short game in this process."""
    return call(*arguments(folder, *overrides))


def play_apart(folder: Path, *overrides: str, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    """A short game in a process of its own."""
    return ended(Command(*arguments(folder, *overrides), before=before))


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
