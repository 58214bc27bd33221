"""The command line as a user starts it, on games of seconds: in a process of its own, or in this one without its imports."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from helpers.faults import SHORT
from lowmem_spin.cli.main import main

SMALL = dict(change.split("=", 1) for change in SHORT if not change.startswith("runtime.device"))


def arguments(folder: Path, *overrides: str) -> list[str]:
    """`run` of a short game whose store and results are in `folder`."""
    changes = [*SHORT, f"output.store={folder / 'store'}", f"output.dir={folder / 'run'}", *overrides]
    return ["run", "quickstart", *(f"--set={change}" for change in changes)]


def _forks() -> multiprocessing.context.ForkServerContext:
    """Where processes are forked from, with all that takes seconds to import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.imported"])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])):
        multiprocessing.forkserver.ensure_running()
    return context


class Command:
    """A command in a process of its own, with the part of subprocess.Popen that tests use; it leads a process group."""

    def __init__(self, *words: object, before: Callable[[], None] | None = None, together: bool = False) -> None:
        self.args = [str(word) for word in words]
        self._folder = tempfile.TemporaryDirectory()
        files = tuple(Path(self._folder.name) / name for name in ("out", "out" if together else "err"))
        arguments = (self.args, dict(os.environ), Path.cwd(), files, before)
        self._process = _forks().Process(target=_command, args=arguments)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, which: int) -> None:
        os.kill(self.pid, which)

    def communicate(self) -> tuple[str, str]:
        """What it said, when it has ended; what it said of errors comes second."""
        self._process.join()
        out, err = (Path(self._folder.name) / name for name in ("out", "err"))
        return out.read_text(), err.read_text() if err.exists() else ""


def _command(
    words: list[str], environment: dict[str, str], folder: Path, files: Sequence[Path], before: Callable[[], None] | None
) -> None:
    os.setsid()
    for number, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["lowmem-spin", *words]
    if before is not None:
        before()
    from lowmem_spin.cli.main import main

    main()


def start(folder: Path, *overrides: str) -> Command:
    return Command(*arguments(folder, *overrides), together=True)


def finish(command: Command) -> str:
    output, _ = command.communicate()
    assert command.returncode == 0, output
    return output


def ended(command: Command) -> subprocess.CompletedProcess[str]:
    output, errors = command.communicate()
    return subprocess.CompletedProcess(command.args, command.returncode or 0, output, errors)


def cli(*words: object, given: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "lowmem_spin.cli", *map(str, words)]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


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
