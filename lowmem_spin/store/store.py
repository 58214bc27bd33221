"""The shared store: completions, log-probs and adapters, each computed once and known by what was asked.

    store/completions/<key>/*.parquet   one table per (policy, sampling); opens with datasets, DuckDB, pandas
    store/mixtures/<key>/*.parquet      the same of a policy's mixture with the base
    store/judgements/<key>/*.parquet    one table per (answers compared, oracle)
    store/logps/<key>/*.parquet         one table per (policy, learner)
    store/adapters/<key>/               a PEFT adapter folder and manifest.json
    store/results/<policy>/<key>.json   one policy on one benchmark
    store/data/<key>.parquet            prepared rows
    store/work/<key>/                   checkpoints of a training in progress
    store/aside/                        what did not read back, moved out of the way
    store/users/                        which run folders need what of it; see users.py

Writes go to a temporary name and are renamed, so a file is whole or absent. A table has one writer at a time.
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

from lowmem_spin.common.checked import read_checked, set_aside, write_checked
from lowmem_spin.common.errors import InputError, shortened
from lowmem_spin.common.files import (
    DamagedError,
    Notice,
    check_folder_place,
    make_folder,
    read_parquet,
    read_text,
    reading,
    write_atomically,
    write_parquet,
)
from lowmem_spin.common.keys import is_key
from lowmem_spin.store.committed import adapter_fault, seal_adapter
from lowmem_spin.store.users import Users

FREED = "freed-"  # begins the name, in aside/, of what is being deleted
FORMAT = "1"  # of the store's layout; another number is another store
COMPLETIONS = pa.schema(
    {
        "prompt_id": pa.string(),
        "sample": pa.int32(),
        "tokens": pa.list_(pa.int32()),  # with the end of turn, if the policy produced one
        "text": pa.string(),
        "finish_reason": pa.string(),  # "stop" or "length"
        "logp": pa.float64(),  # of the tokens as the generator saw them: a drift alarm, never a training input
    }
)
LOGPS = pa.schema(
    {
        "prompt_id": pa.string(),
        "completion": pa.string(),  # "chosen", or completions-table key / sample number
        "content": pa.string(),  # hash of the tokens scored: a check, not a key
        "logp": pa.float64(),  # summed over the completion's tokens
        "tokens": pa.int32(),
    }
)
MIXTURES = pa.schema(
    [
        *COMPLETIONS,  # finish_reason may be "rejected": no proposal was accepted
        pa.field("proposals", pa.int32()),  # how many the sampler made for this prompt
        pa.field("ess", pa.float64()),  # their effective sample size
        pa.field("log_z", pa.float64()),  # an estimate of the log of the mixture's sum; null where there is none
    ]
)
JUDGEMENTS = pa.schema(
    {
        "prompt_id": pa.string(),
        "content": pa.string(),  # hash of all answers' tokens: a check, not a key
        "preferences": pa.list_(pa.float64()),  # P[i, j], row by row
    }
)
IDENTITY = {
    "completions": ["prompt_id", "sample"],
    "mixtures": ["prompt_id", "sample"],
    "judgements": ["prompt_id"],
    "logps": ["prompt_id", "completion"],
}
SCHEMAS = {"completions": COMPLETIONS, "mixtures": MIXTURES, "judgements": JUDGEMENTS, "logps": LOGPS}


class Table:
    """An append-only table in one folder, a shard per batch.

    Args:
        adapter_sha256: hash of the adapter that makes the rows. Shards of another adapter are set aside, not mixed in.
    """

    def __init__(self, store: "Store", kind: str, key: str, asked: dict[str, Any], adapter_sha256: str) -> None:
        self.store, self.kind, self.key, self.adapter_sha256 = store, kind, key, adapter_sha256
        self.folder = store.place(kind, key)
        self.manifest = {"kind": kind, "asked": asked, "maker": adapter_sha256}
        self.schema = SCHEMAS[kind].with_metadata({"maker": adapter_sha256})
        self._shards: dict[str, pa.Table] = {}
        self._has_manifest = False

    def read(self) -> pa.Table:
        """All committed rows. A damaged shard is set aside and its rows count as missing."""
        with reading(self.folder):
            names = sorted(path.name for path in self.folder.glob("[!.]*.parquet"))
        self._shards = {name: shard for name, shard in self._shards.items() if name in names}
        for name in names:
            if name not in self._shards and (shard := self._read_shard(self.folder / name)) is not None:
                self._shards[name] = shard
        self._drop_merged()
        if self._shards:
            self._keep_manifest()
        return pa.concat_tables([self.schema.empty_table(), *self._shards.values()], promote_options="default")

    def _drop_merged(self) -> None:
        """Forget shards whose rows are in a merged file too: its writer was stopped before it could delete them."""
        for shard in list(self._shards.values()):
            for name in json.loads((shard.schema.metadata or {}).get(b"merged", b"[]")):
                if self._shards.pop(name, None) is not None:
                    with contextlib.suppress(OSError):  # a read-only store: forgetting them is enough
                        (self.folder / name).unlink()

    def _read_shard(self, path: Path) -> pa.Table | None:
        shard = self.store.read(path)
        if shard is None:  # damaged, or merged by its writer since the folder was listed: the next read finds its rows
            return None
        if (shard.schema.metadata or {}).get(b"maker") != self.adapter_sha256.encode():
            self.store.set_aside(path, "was made by another adapter than the one this key has now")
            return None
        if not shard.schema.equals(self.schema, check_metadata=False):
            self.store.set_aside(path, "has other columns than this version writes")
            return None
        return shard

    def append(self, columns: dict[str, list[Any]]) -> None:
        """Commit rows as one shard."""
        rows = pa.table(columns, schema=self.schema)
        self._keep_manifest()
        name = f"shard-{uuid.uuid4().hex}.parquet"
        write_parquet(self.folder / name, rows)
        self._shards[name] = rows

    def _keep_manifest(self) -> None:
        """Have manifest.json say what was asked; one that is lost or damaged is written again."""
        path, shards = self.folder / "manifest.json", self._shards.values()
        if self._has_manifest:
            return
        try:
            read_checked(path)
        except (FileNotFoundError, DamagedError) as error:
            if isinstance(error, DamagedError):
                self.store.set_aside(path, str(error), "written again")
            elif shards:
                self.store.notice(f"{path} is missing; written again")
            merged = {"rows": sum(shard.num_rows for shard in shards)} if len(shards) == 1 else {}
            write_checked(path, {**self.manifest, **merged})
        self._has_manifest = True

    def merge(self) -> None:
        """Put all shards into one file, rows in a canonical order, and their number in the manifest."""
        rows = self.read().sort_by([(name, "ascending") for name in IDENTITY[self.kind]])
        old = list(self._shards)
        if len(old) < 2:
            return
        name = f"table-{uuid.uuid4().hex}.parquet"
        self._shards[name] = rows.replace_schema_metadata({"maker": self.adapter_sha256, "merged": json.dumps(old)})
        write_parquet(self.folder / name, self._shards[name])
        write_checked(self.folder / "manifest.json", {**self.manifest, "rows": rows.num_rows})
        self._drop_merged()


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
            found = read_text(stamp).strip()
        except DamagedError:
            found = ""
        if not found.isdecimal():
            raise InputError(f"output.store: {str(stamp)!r} says no format; delete it, if this version wrote the store")
        if found != FORMAT:
            raise InputError(
                f"output.store: {str(root)!r} has format {found!r}, this version writes {FORMAT!r}; use another folder"
            )

    def table(self, kind: str, key: str, asked: dict[str, Any], adapter_sha256: str) -> Table:
        return Table(self, kind, key, asked, adapter_sha256)

    def read(self, path: Path) -> pa.Table | None:
        """A Parquet file that may be missing; a damaged one is set aside and counts as missing.

        Raises:
            UnreadableError: the system does not give its bytes; it stays where it is.
        """
        try:
            return read_parquet(path)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self.set_aside(path, f"does not read back ({error})")
            return None

    def place(self, kind: str, key: str, ending: str = "") -> Path:
        """Where what has this key is, or will be.

        Raises:
            InputError: a key that would lead elsewhere, or a link in its place that does.
        """
        if not (key.isascii() and key.isalnum()):
            raise InputError(f"output.store: {shortened(repr(key))} is no key of {str(self.root)!r}; leave alone what names it")
        place = self.root / kind / f"{key}{ending}"
        if place.is_symlink() and place.is_dir() and not place.resolve().is_relative_to(self.root.resolve()):
            raise InputError(f"output.store: {str(place)!r} is a link that leads out of the store; remove it")
        return place

    def check_inside(self, path: Path) -> None:
        """Refuse to move what is not in the store, whatever names it or links to it.

        Raises:
            InputError: one line.
        """
        if path.name in ("", "..") or not path.parent.resolve().is_relative_to(self.root.resolve()):
            raise InputError(
                f"output.store: {str(path)!r} is not in {str(self.root)!r}, or only by a link, so nothing there is moved; "
                "remove the link"
            )

    def set_aside(self, path: Path, why: str, then: str = "computed again") -> None:
        """Move something that cannot be trusted to aside/, saying so and what becomes of it."""
        self.check_inside(path)
        set_aside(path, self.root, why, then, self.notice)

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[None]:
        """Hold the one right to write under `key`; released by the system if the process dies."""
        lock = self._lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.notice(f"another process is computing {key}; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _lock(self, key: str) -> FileLock:
        place = self.place("locks", key, ".lock")
        place.parent.mkdir(exist_ok=True)
        if place.is_dir():
            self.set_aside(place, "is a folder", "made again")
        return FileLock(place)

    def free(self, path: Path) -> bool:
        """Delete what is stored at `path`, unless a process is computing under its key: then False.

        It moves out of the way first: a half-deleted adapter would not read.
        """
        self.check_inside(path)
        try:
            with contextlib.ExitStack() as held:
                for key in filter(is_key, (path.stem, path.parent.name)):
                    lock = self._lock(key)
                    held.enter_context(lock.acquire(timeout=0))
                    held.callback(Path(lock.lock_file).unlink, missing_ok=True)  # nothing is left that it is of
                place = self.root / "aside" / f"{FREED}{path.name}-{uuid.uuid4().hex[:8]}"
                place.parent.mkdir(exist_ok=True)
                path.rename(place)
        except Timeout:
            return False
        except FileNotFoundError:  # another process has freed it
            return True
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
        return True

    def data(self, key: str) -> Path:
        """Where the prepared rows of this key are, or will be."""
        return self.place("data", key, ".parquet")

    def work(self, key: str) -> Path:
        """Folder for a training in progress."""
        return self.place("work", key)

    def adapter(self, key: str) -> Path | None:
        """Folder of a committed adapter whose bytes are still the ones committed, else None."""
        folder = self.place("adapters", key)
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
        return read_checked(self.place("adapters", key) / "manifest.json")

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
        self.place("results", key)  # refuses what is none
        return self.place("results", policy) / f"{key}.json"

    def commit_adapter(self, key: str, folder: Path, manifest: dict[str, Any]) -> Path:
        """Move a finished adapter folder into the store; if another process was first, adopt its result."""
        seal_adapter(folder, manifest)
        place = self.place("adapters", key)
        place.parent.mkdir(exist_ok=True)
        if not place.exists():
            folder.rename(place)
        shutil.rmtree(self.work(key), ignore_errors=True)
        return place
