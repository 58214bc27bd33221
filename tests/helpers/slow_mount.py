"""A folder as on a slow mount: every call of this process on a path in it waits first.

What Python asks the system for is slowed: opening (which also comes before a file is locked), looking up, listing, making,
renaming and removing. What Arrow and safetensors write by themselves is slowed where the file is then renamed or opened.
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink"}
LOOKED_UP = ("stat", "lstat", "access", "readlink")  # which have no audit event
SITE = "from helpers.slow_mount import SlowMount\n\nSlowMount({folder!r}, {seconds}, {marks!r}).mount()\n"


class SlowMount:
    """Whether it is slow is in `on`, as an audit hook stays for as long as its process lives.

    Args:
        folder: what is mounted.
        seconds: that a call waits.
        marks: folder elsewhere, in which a file with the number of its calls is made for every process that has called.
    """

    def __init__(self, folder: str, seconds: float, marks: str) -> None:
        self.folder, self.seconds, self.marks = folder, seconds, marks
        self.on, self.calls = True, 0

    def mount(self) -> "SlowMount":
        sys.addaudithook(self._audit)
        for name in LOOKED_UP:
            setattr(os, name, self._slowed(getattr(os, name)))
        return self

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in EVENTS and arguments:
            self._wait(arguments[0])

    def _slowed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def slowed(path: Any, *arguments: Any, **named: Any) -> Any:
            if self.on:
                self._wait(path)
            return call(path, *arguments, **named)

        return slowed

    def _wait(self, path: Any) -> None:
        if isinstance(path, str | os.PathLike) and str(path).startswith(self.folder):
            self.calls += 1
            time.sleep(self.seconds)
            (Path(self.marks) / str(os.getpid())).write_text(str(self.calls))
