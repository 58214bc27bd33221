"""Python that does not come with this package runs only after a person has said so, who is then asked again when it changes.

What was trusted is kept by its content in a file of that person's, never in a run's folder or a store: a stranger can bring
those along.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import Notice


@dataclass(frozen=True)
class Code:
    """Somebody's Python that a command would run, or what else needs a person's word."""

    field: str  # the recipe's that names it
    what: str  # the file or files, for people
    content: str  # SHA-256 of all of it, or name@commit on the hub
    instead: str = ""  # what would be done, if it is not to run code

    @property
    def line(self) -> str:
        if self.instead:
            return f"{self.field}: {self.what} {self.instead}"
        return f"{self.field}: the code in {self.what} ({self.content.rpartition('@')[2][:12]}) would be run here"


class UntrustedError(InputError):
    """Code would be run that nobody here has said may run."""


@dataclass
class Trust:
    """What may run: what was trusted before, and with --trust all that is asked about."""

    given: bool = False  # --trust
    held: set[str] = field(default_factory=set)  # trusted by this command
    option: str = "--trust"  # how a person says so

    def check(self, code: Sequence[Code], notify: Notice) -> None:
        """Pass if all of this may run; with --trust it is remembered.

        Raises:
            UntrustedError: one line on what would be run.
        """
        new = [one for one in code if one.content not in self.held]
        known = _known() if new else set()
        new = [one for one in new if one.content not in known]
        if new and not self.given:
            asked = "; ".join(one.line for one in new)
            raise UntrustedError(f"{asked}; read it, then add {self.option}, which is asked for again only when it changes")
        self.held |= {one.content for one in code}
        if not new:
            return
        try:
            _remember(new)
        except OSError as error:
            where = error.filename or _file()
            notify(f"{self.option} holds for this command only: {where} cannot be written ({error.strerror})")


def _file() -> Path:
    """The person's own record, where programs keep what they are to remember (XDG base directories)."""
    given = os.environ.get("XDG_STATE_HOME", "")
    state = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.local/state"))
    return state / "lowmem-spin" / "trusted.jsonl"


def _known() -> set[str]:
    """What was trusted; a record or a line that does not read trusts nothing, so that a person is asked again."""
    try:
        lines = _file().read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:
        try:
            found.add(str(json.loads(line)["hash"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


def _remember(code: Sequence[Code]) -> None:
    path, date = _file(), datetime.now(UTC).isoformat(timespec="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for one in code:
            file.write(json.dumps({"hash": one.content, "what": one.field, "path": one.what, "date": date}) + "\n")
