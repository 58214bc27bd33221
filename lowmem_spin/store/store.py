"""The shared store: completions, log-probs and adapters, each computed once and known by what was asked.

    store/completions/<key>/*.parquet   one table per (policy, sampling); opens with datasets, DuckDB, pandas
    store/mixtures/<key>/*.parquet      the same of a policy's mixture with the base
    store/judgements/<key>/*.parquet    one table per (answers compared, oracle)
    store/logps/<key>/*.parquet         one table per (policy, learner)
    store/adapters/<key>/               a PEFT adapter folder and manifest.json
    store/results/<policy>/<key>.json   one policy on one benchmark
    store/data/<key>.parquet            prepared rows
    store/code/<sha256>.py              sources of people's own losses, to read
    store/work/<key>/                   checkpoints of a training in progress
    store/aside/                        what did not read back, moved out of the way
    store/users/                        which run folders need what of it; see users.py

Writes go to a temporary name and are renamed, so a file is whole or absent. A table has one writer at a time, a table of
log-probs one for each kind of answers.
"""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lowmem_spin.common.checked import check_within, read_checked, set_aside, write_checked
from lowmem_spin.common.errors import InputError, shortened
from lowmem_spin.common.files import (
    DamagedError,
    Notice,
    check_folder_place,
    make_folder,
    read_text,
    sha256,
    write_atomically,
)
from lowmem_spin.common.keys import is_key
from lowmem_spin.common.parquet import ParquetTable
from lowmem_spin.store.committed import adapter_fault, seal_adapter
from lowmem_spin.store.table import Table
from lowmem_spin.store.users import Users

FREED = "freed-"  # begins the name, in aside/, of what is being deleted
MERGING = 2.0  # seconds that it may take
FORMAT = "1"  # of the store's layout; another number is another store


class Store:
    """Everything expensive that any run has computed.

    Args:
        root: folder, made if missing.
        notice: called with one line when something is set aside or waited for.
    """

    def __init__(self, root: Path, notice: Notice) -> None:
        self.root, self.notice = root, notice
        self.users = Users(root, notice)
        self._verified: set[str] = set()
        check_folder_place(root, "output.store")
        make_folder(root)
        stamp = root / "FORMAT"
        if not stamp.exists():
            write_atomically(stamp, lambda temporary: temporary.write_text(FORMAT))
        try:
            stamped = read_text(stamp).strip()
        except DamagedError:
            stamped = ""
        if not stamped.isdecimal():
            raise InputError(f"output.store: {str(stamp)!r} says no format; delete it, if this version wrote the store")
        if stamped != FORMAT:
            raise InputError(
                f"output.store: {str(root)!r} has format {stamped!r}, this version writes {FORMAT!r}; use another folder"
            )

    def table(self, kind: str, key: str, spec: dict[str, Any], adapter_sha256: str) -> Table:
        return Table(self, kind, key, spec, adapter_sha256)

    def read(self, path: Path) -> ParquetTable | None:
        """A Parquet file that may be missing; a damaged one is set aside and counts as missing.

        Raises:
            UnreadableError: the system does not give its bytes; it stays where it is.
        """
        try:
            return ParquetTable(path)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self.set_aside(path, f"does not read back ({error})")
            return None

    def path(self, kind: str, key: str, ending: str = "") -> Path:
        """Where what has this key is, or will be.

        Raises:
            InputError: a key that would lead elsewhere, or a link in its place that does.
        """
        if not (key.isascii() and key.isalnum()):
            raise InputError(f"output.store: {shortened(repr(key))} is no key of {str(self.root)!r}; leave alone what names it")
        path = self.root / kind / f"{key}{ending}"
        if path.is_symlink() and path.is_dir() and not path.resolve().is_relative_to(self.root.resolve()):
            raise InputError(f"output.store: {str(path)!r} is a link that leads out of the store; remove it")
        return path

    def set_aside(self, path: Path, why: str, then: str = "computed again as far as it is needed") -> None:
        """Move something that cannot be trusted to aside/, saying so and what becomes of it."""
        set_aside(path, self.root, why, then, self.notice)

    @contextlib.contextmanager
    def writing(self, key: str, part: str | None = None, patience: float = 0.0) -> Iterator[None]:
        """Hold the one right to write under `key`, or to a part of it; released by the system if the process dies.

        That another process has it is said after `patience` seconds.
        """
        lock = self._lock(key, part)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            self.notice(f"another process is computing {key}; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _lock(self, key: str, part: str | None = None) -> FileLock:
        path = self.path("locks", key, ".lock" if part is None else f"-{part}.lock")
        path.parent.mkdir(exist_ok=True)
        if path.is_dir():
            self.set_aside(path, "is a folder", "made again")
        return FileLock(path)

    def free(self, path: Path) -> bool:
        """Delete what is stored at `path`, unless a process is computing under its key: then False.

        It moves out of the way first: a half-deleted adapter would not read.
        """
        check_within(path, self.root)
        try:
            with contextlib.ExitStack() as locks:
                for key in filter(is_key, (path.stem.partition("-")[0], path.parent.name)):
                    whole = self._lock(key)
                    locks.enter_context(whole.acquire(timeout=0))  # from here on nobody begins a part
                    parts = [file.stem.partition("-")[2] for file in (self.root / "locks").glob(f"{key}-*.lock")]
                    for lock in (whole, *(self._lock(key, part) for part in parts)):
                        locks.enter_context(lock.acquire(timeout=0))
                        locks.callback(Path(lock.lock_file).unlink, missing_ok=True)  # nothing is left that it is of
                freed = self.root / "aside" / f"{FREED}{path.name}-{uuid.uuid4().hex[:8]}"
                freed.parent.mkdir(exist_ok=True)
                path.rename(freed)
        except Timeout:
            return False
        except FileNotFoundError:  # another process has freed it
            return True
        shutil.rmtree(freed) if freed.is_dir() and not freed.is_symlink() else freed.unlink()
        return True

    def data(self, key: str) -> Path:
        """Where the prepared rows of this key are, or will be."""
        return self.path("data", key, ".parquet")

    def work(self, key: str) -> Path:
        """Folder for a training in progress."""
        return self.path("work", key)

    def adapter(self, key: str) -> Path | None:
        """Folder of a committed adapter whose bytes are still the ones committed, else None."""
        folder = self.path("adapters", key)
        if not folder.exists():
            return None
        if key not in self._verified:
            why = adapter_fault(folder)
            if why is not None:
                self.set_aside(folder, f"does not have the bytes that were committed: it {why}")
                return None
            self._verified.add(key)
        return folder

    def manifest(self, key: str) -> dict[str, Any]:
        """What a committed adapter was made from and how training went."""
        return read_checked(self.path("adapters", key) / "manifest.json")

    def adapter_sha256(self, key: str) -> str:
        """Hash of a committed adapter's weights."""
        return self.manifest(key)["sha256"]

    def result(self, policy: str, key: str, adapter_sha256: str) -> dict[str, Any] | None:
        """What a policy scored on a benchmark; a record that is damaged, or of other weights, is set aside and is None."""
        path = self._result(policy, key)
        try:
            record = read_checked(path)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self.set_aside(path, str(error))
            return None
        if record.get("maker") != adapter_sha256:
            self.set_aside(path, "was measured on other weights than this key has now")
            return None
        return record

    def commit_result(self, policy: str, key: str, record: dict[str, Any]) -> None:
        """Keep a result, whole or not at all; hold `writing(key)` meanwhile."""
        write_checked(self._result(policy, key), record)

    def _result(self, policy: str, key: str) -> Path:
        self.path("results", key)  # refuses what is none
        return self.path("results", policy) / f"{key}.json"

    def keep_code(self, content: str, source: bytes) -> None:
        """Keep a source by its SHA-256, so that it can be looked up what a loss was; another file of this name is set aside."""
        path = self.path("code", content, ".py")
        check_within(path, self.root)
        if path.exists() and (path.is_dir() or sha256(path) != content):
            self.set_aside(path, "does not have the source that its name says", "written again")
        if not path.exists():
            write_atomically(path, lambda temporary: temporary.write_bytes(source))

    def commit_adapter(self, key: str, folder: Path, manifest: dict[str, Any]) -> Path:
        """Move a finished adapter folder into the store; if another process was first, adopt its result."""
        seal_adapter(folder, manifest)
        committed = self.path("adapters", key)
        committed.parent.mkdir(exist_ok=True)
        if not committed.exists():
            folder.rename(committed)
        shutil.rmtree(self.work(key), ignore_errors=True)
        return committed
