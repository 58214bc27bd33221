"""What endpoints replied, on disk: what was paid for once is never asked again."""

import hashlib
import json
import os
import threading
from pathlib import Path

from filelock import FileLock

from lowmem_spin.common.checked import set_aside, warn
from lowmem_spin.common.files import DamagedError, Notice, reading, write_atomically


class Replies:
    """The replies in one JSONL file: read once, then appended to, a line for each. Several processes may append.

    Each line has a checksum. Lines that do not verify are moved to a file beside it, which is said in one line, and those
    replies are asked for again; lines of earlier versions have none and are taken as they are.

    Args:
        path: of the file, in a folder of the store.
        notice: called with that line.
    """

    def __init__(self, path: Path, notice: Notice = warn) -> None:
        self.path, self.notice, self._lock = path, notice, threading.Lock()
        self._texts: dict[str, str] | None = None

    def get(self, key: str) -> str | None:
        """The reply to this request, if there was one."""
        with self._lock:
            return self._known().get(key)

    def _known(self) -> dict[str, str]:
        if self._texts is None:
            self._texts = self._read()
        return self._texts

    def _alone(self) -> FileLock:
        """Held while the file is written to."""
        path = self.path.with_suffix(".lock")
        if path.is_dir():
            set_aside(path, self.path.parents[1], "is a folder", "made again", self.notice)
        return FileLock(path)

    def _read(self) -> dict[str, str]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replies, damaged = self._lines()
        if damaged:
            with self._alone():
                replies, damaged = self._lines()
                if damaged:
                    self._mend(replies, damaged)
        return replies

    def _lines(self) -> tuple[dict[str, str], list[bytes]]:
        """The replies by request, and the lines that are none."""
        try:
            with reading(self.path):
                content = self.path.read_bytes()
        except FileNotFoundError:
            return {}, []
        except DamagedError as error:
            set_aside(self.path, self.path.parents[1], str(error), "replies are asked for again", self.notice)
            return {}, []
        replies, damaged = {}, []
        for line in filter(None, content.split(b"\n")):
            try:
                request, text = _reply(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged.append(line)
            else:
                replies[request] = text
        return replies, damaged

    def _mend(self, replies: dict[str, str], damaged: list[bytes]) -> None:
        """Move damaged lines away, and write the others again."""
        moved_to = self.path.with_suffix(".damaged")
        with moved_to.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in damaged))
        whole = b"".join(_line(request, text) for request, text in replies.items())
        write_atomically(self.path, lambda temporary: temporary.write_bytes(whole))
        count, total = len(damaged), len(damaged) + len(replies)
        self.notice(f"{self.path}: {count:,} of {total:,} replies do not read back; moved to {moved_to} and asked for again")

    def keep(self, key: str, text: str) -> None:
        """Write a reply down before it is used."""
        line = _line(key, text)
        with self._lock:
            self._known()
            with self._alone(), self.path.open("ab+", buffering=0) as file:
                if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                    line = b"\n" + line  # after one that a kill or a full disk cut short
                while line:  # a disk that fills up takes a part, and refuses the rest
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            self._known()[key] = text


def _line(request: str, text: str) -> bytes:
    return (json.dumps({"request": request, "text": text, "check": _check(request, text)}) + "\n").encode()


def _check(request: str, text: str) -> str:
    return hashlib.sha256(json.dumps([request, text]).encode()).hexdigest()[:16]


def _reply(line: bytes) -> tuple[str, str]:
    """(request, text) of a line; raises ValueError, KeyError, TypeError or RecursionError if it is not whole."""
    reply = json.loads(line)
    request, text = reply["request"], reply["text"]
    check = _check(request, text)
    if not isinstance(request, str) or not isinstance(text, str) or reply.get("check", check) != check:
        raise ValueError("check")
    return request, text
