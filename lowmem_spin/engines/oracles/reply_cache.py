"""What endpoints replied, on disk: what was paid for once is never asked again."""

import json
import os
import threading
from pathlib import Path

from lowmem_spin.common.files import reading


class Replies:
    """The replies in one JSONL file: read once, then appended to, a line for each. Several processes may append."""

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.Lock()
        self._texts: dict[str, str] | None = None
        self._torn = False

    def get(self, key: str) -> str | None:
        """The reply to this request, if there was one."""
        with self._lock:
            return self._known().get(key)

    def _known(self) -> dict[str, str]:
        if self._texts is None:
            self._texts = self._read()
        return self._texts

    def _read(self) -> dict[str, str]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with reading(self.path):
            content = self.path.read_bytes() if self.path.exists() else b""
        self._torn = bool(content) and not content.endswith(b"\n")
        found = {}
        for line in content.splitlines():
            try:
                reply = json.loads(line)
            except ValueError:  # a line that a kill cut short: that reply is asked for again
                continue
            found[reply["request"]] = reply["text"]
        return found

    def keep(self, key: str, text: str) -> None:
        """Write a reply down before it is used."""
        line = json.dumps({"request": key, "text": text}) + "\n"
        with self._lock, self.path.open("ab", buffering=0) as file:
            whole = (("\n" if self._torn else "") + line).encode()
            self._torn = True  # until all of it is there: a disk may be full
            self._torn = file.write(whole) < len(whole)
            os.fsync(file.fileno())
            self._known()[key] = text
