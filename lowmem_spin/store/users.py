"""Who needs what of a store: each run folder that was played with it, noted in the store itself, wherever the folder is.

    store/users/<digest of the folder's path>.json   folder, device, when, lease, and the keys it uses by kind
    store/users/<lease>.lock                         locked as long as the process that plays there lives

A run's own record says the same; this is for runs that nobody names, on a drive that is not here, or that are being played.
"""

import contextlib
import errno
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from filelock import FileLock, Timeout

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import Notice, write_json
from lowmem_spin.common.keys import digest, is_key

KINDS = ("adapters", "completions", "mixtures", "judgements", "logps", "data", "weights", "work", "results")
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


class UserState(StrEnum):
    """What has become of a run folder."""

    HERE = "here"
    PLAYED = "played"  # a process is playing there now
    AWAY = "away"  # with the drive that it was on, it seems
    GONE = "gone"


@dataclass(frozen=True)
class User:
    """A run folder as the store knows it."""

    record: Path
    folder: Path
    keys: dict[str, set[str]]
    when: str  # it was last played or measured
    device: int  # of the drive that it was on
    state: UserState


class Users:
    """The users of one store.

    Args:
        root: the store's folder.
        notice: called with one line when a use cannot be noted.
    """

    def __init__(self, root: Path, notice: Notice) -> None:
        self.folder, self.notice = root / "users", notice
        self._lease: FileLock | None = None

    def begin(self) -> None:
        """From now on this process plays: what it notes counts whole until `end`, or until it dies."""
        if self._lease is None:
            with self._closed_is_said():
                self.folder.mkdir(exist_ok=True)
                lease = FileLock(self.folder / f"{uuid.uuid4().hex}.lock")
                lease.acquire()
                self._lease = lease

    def end(self) -> None:
        """This process plays no more."""
        if self._lease is not None:
            with contextlib.suppress(OSError):  # whatever is left of it is one of gc's leftovers
                Path(self._lease.lock_file).unlink()
            self._lease.release()
            self._lease = None

    @contextlib.contextmanager
    def playing(self) -> Iterator[None]:
        """From `begin` to `end`."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def note(self, folder: Path, keys: Mapping[str, Iterable[str]], more: bool = False) -> None:
        """A run folder uses this; with `more`, beside what it was noted to use before."""
        place = folder.resolve()
        path = self.folder / f"{digest(str(place))}.json"
        known: dict[str, set[str]] = {}
        if more and path.exists():
            with contextlib.suppress(InputError):  # damaged: what the run is made of is given again when it is played
                known = _read(path).keys
        every = {kind: sorted({*keys.get(kind, ()), *known.get(kind, ())}) for kind in {**known, **keys}}
        lease = None if self._lease is None else Path(self._lease.lock_file).stem
        with self._closed_is_said():
            when, device = datetime.now(UTC).isoformat(timespec="seconds"), place.parent.stat().st_dev
            about = {"folder": str(place), "device": device, "when": when, "lease": lease}
            write_json(path, {**about, "keys": every})

    def known(self) -> list[User]:
        """All users.

        Raises:
            InputError: a record does not read, so that its run might use anything.
        """
        paths = [path for path in sorted(self.folder.glob("*.json")) if is_key(path.stem)]
        return [_read(path) for path in paths]

    def plays(self, folder: Path) -> bool:
        """Whether a process plays in this folder now."""
        path = self.folder / f"{digest(str(folder.resolve()))}.json"
        return path.is_file() and _read(path).state is UserState.PLAYED

    def leases(self) -> Iterable[Path]:
        """The leases of processes that have died."""
        return [path for path in self.folder.glob("*.lock") if not _is_held(path)]

    def anyone(self) -> bool:
        """Whether a process plays with this store now."""
        return any(_is_held(path) for path in self.folder.glob("*.lock"))

    @contextlib.contextmanager
    def _closed_is_said(self) -> Iterator[None]:
        """A store that can only be read is read: nothing in it can be freed either."""
        try:
            yield
        except OSError as error:
            if error.errno not in CLOSED:
                raise
            self.notice(f"{self.folder} cannot be written ({error.strerror}): gc is not told that this run uses the store")


def _read(path: Path) -> User:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        folder, when, lease, device = Path(record["folder"]), str(record["when"]), record["lease"], record["device"]
        keys = {kind: set(record["keys"].get(kind, ())) for kind in KINDS}
        if digest(str(folder)) != path.stem or not all(map(is_key, set().union(*keys.values()))):
            raise ValueError("keys")
        held = isinstance(lease, str) and lease.isalnum() and _is_held(path.with_name(f"{lease}.lock"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path}: does not read, and the run that it is of may use anything; play that run again, or delete the file"
        ) from None
    return User(path, folder, keys, when, device, UserState.PLAYED if held else _state(folder, device))


def _state(folder: Path, device: int) -> UserState:
    """Where its parent is missing, or is on another drive than it was, the drive itself may only not be mounted."""
    try:
        if (folder / "run.json").is_file():
            return UserState.HERE
        mounted = folder.parent.is_dir() and folder.parent.stat().st_dev == device
    except OSError as error:
        raise InputError(f"{str(folder)!r} cannot be read ({error.strerror}): the run in it may use anything") from None
    return UserState.GONE if mounted else UserState.AWAY


def _is_held(path: Path) -> bool:
    """Whether a living process holds a lock; asking leaves no file."""
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
