"""Tables of the store: append-only, a Parquet file per batch, merged when a stage is done."""

import contextlib
import json
import uuid
from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lowmem_spin.common.checked import read_checked, write_checked
from lowmem_spin.common.files import DamagedError, reading
from lowmem_spin.common.parquet import write_parquet
from lowmem_spin.store.contracts import TableFiles

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

    def __init__(self, store: TableFiles, kind: str, key: str, asked: dict[str, Any], adapter_sha256: str) -> None:
        self.store, self.kind, self.key, self.adapter_sha256 = store, kind, key, adapter_sha256
        self.folder = store.path(kind, key)
        self.manifest = {"kind": kind, "asked": asked, "maker": adapter_sha256}
        self.schema = SCHEMAS[kind].with_metadata({"maker": adapter_sha256})
        self._shards: dict[str, pa.Table] = {}
        self._prompts: Set[str] | None = frozenset()  # whose rows were read of each shard; None: all
        self._has_manifest = False

    def read(self, prompts: Set[str] | None = None) -> pa.Table:
        """The committed rows for prompts of these ids, or all. A damaged shard is set aside and its rows count as missing."""
        if self._prompts is not None and (prompts is None or not prompts <= self._prompts):
            self._prompts, self._shards = prompts, {}
        with reading(self.folder):
            names = sorted(path.name for path in self.folder.glob("[!.]*.parquet"))
        self._shards = {name: shard for name, shard in self._shards.items() if name in names}
        for name in names:
            if name not in self._shards and (shard := self._read_shard(self.folder / name)) is not None:
                self._shards[name] = shard
        self._drop_merged()
        if self._shards:
            self._keep_manifest()
        rows = pa.concat_tables([self.schema.empty_table(), *self._shards.values()], promote_options="default")
        return rows if prompts is None else rows.filter(_among(rows["prompt_id"], prompts))

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
        return shard.read() if self._prompts is None else shard.filter(_among(shard.column("prompt_id"), self._prompts))

    def append(self, columns: dict[str, list[Any]]) -> None:
        """Commit rows as one shard."""
        rows = pa.table(columns, schema=self.schema)
        self._keep_manifest()
        name = f"shard-{uuid.uuid4().hex}.parquet"
        write_parquet(self.folder / name, rows)
        self._shards[name] = rows

    def _keep_manifest(self) -> None:
        """Have manifest.json say what was asked; one that is lost or damaged is written again."""
        path, shards = self.folder / "manifest.json", list(self._shards)
        if self._has_manifest:
            return
        try:
            read_checked(path)
        except (FileNotFoundError, DamagedError) as error:
            if isinstance(error, DamagedError):
                self.store.set_aside(path, str(error), "written again")
            elif shards:
                self.store.notice(f"{path} is missing; written again")
            merged = {"rows": pq.read_metadata(self.folder / shards[0]).num_rows} if len(shards) == 1 else {}
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


def _among(prompt_ids: pa.ChunkedArray, asked: Set[str]) -> np.ndarray:
    """Which of them are asked for."""
    return pc.call_function("is_in", [prompt_ids], pc.SetLookupOptions(pa.array(list(asked), pa.string()))).to_numpy()
