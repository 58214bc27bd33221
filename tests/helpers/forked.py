"""Commands in processes that are forked from one which has imported torch: each costs no imports."""

import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest.mock import patch


def forks() -> ForkServerContext:
    """Where processes are forked from, with all that takes seconds to import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.imported"])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])):
        multiprocessing.forkserver.ensure_running()
    return context


class Command:
    """A command in a process of its own, with the part of subprocess.Popen that tests use; it leads a process group.

    Args:
        words: of the command, after its name.
        module: whose main() the command is.
        given: what it reads.
        before: called in the process, first of all.
        together: whether what it says of errors is among all that it says.
        package: folder of the copy of lowmem_spin that is to run; None is the one that is tested.
    """

    def __init__(
        self,
        *words: object,
        module: str = "lowmem_spin.cli.main",
        given: str = "",
        before: Callable[[], None] | None = None,
        together: bool = False,
        package: Path | None = None,
    ) -> None:
        self.args = [str(word) for word in words]
        self._folder = tempfile.TemporaryDirectory()
        files = [Path(self._folder.name) / name for name in ("in", "out", "out" if together else "err")]
        files[0].write_text(given)
        arguments = (self.args, module, dict(os.environ), Path.cwd(), files, before, package)
        self._process = forks().Process(target=_command, args=arguments)
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
    words: list[str],
    module: str,
    environment: dict[str, str],
    folder: Path,
    files: Sequence[Path],
    before: Callable[[], None] | None,
    package: Path | None,
) -> None:
    os.setsid()
    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_CREAT | os.O_APPEND | (os.O_WRONLY if number else os.O_RDONLY)), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv, sys.stdin = ["lowmem-spin", *words], os.fdopen(0)
    if before is not None:
        before()
    if package is not None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lowmem_spin"]:
            del sys.modules[name]
        sys.path.insert(0, str(package))
    importlib.import_module(module).main()
