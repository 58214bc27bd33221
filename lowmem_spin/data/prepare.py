"""Reads, renders and filters a data set: instruction data to rows of token ids."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from lowmem_spin.algorithm.stages import VERSIONS
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.recipe import Data
from lowmem_spin.data.chat_templates import TEMPLATES
from lowmem_spin.data.formats import conversations
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.sources import Source

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "prompt": pa.list_(pa.int32()),
        "chosen": pa.list_(pa.int32()),
        "truncated": pa.bool_(),
        "completion": pa.string(),
        "category": pa.string(),
        "messages": pa.string(),  # JSON: the conversation before the answer
    }
)
PREFERENCES = SCHEMA.append(pa.field("rejected", pa.list_(pa.int32())))  # of data that has a worse answer too


def prepared_key(
    source: Source, model: Source, data: Data, template: str | None, split: str, with_rejected: bool = False
) -> str:
    """Key of the prepared rows: what they are read from and everything that shapes their token ids.

    The category labels are not in it: they change no row. `worse` is whether the data's worse answers are rows' too.
    """
    limits = data.model_dump(include={"turns", "max_prompt_length", "max_completion_length"})
    asked = {"source": source.identity, "split": None if source.local else split}
    rendered = {"model": model.identity, "template": TEMPLATES.get(template or "", template)}
    both = {"worse": with_rejected} if with_rejected else {}
    return digest({"kind": "data", "version": VERSIONS["data"], **asked, **rendered, **limits, **both})


def prepare(
    source: Source, data: Data, field: str, split: str, category: str, renderer: Renderer, with_rejected: bool = False
) -> pa.Table:
    """Read, render and filter a data set; with `worse`, one whose rows have a rejected answer too.

    Rows with over-long prompts are counted and left out; over-long answers are counted and lose their end of
    turn, for they do not end there. The counts are in the table's metadata.
    """
    counts: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    schema = PREFERENCES if with_rejected else SCHEMA
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for batch in _batches(conversations(source, data, field, split, category, with_rejected), 1000):
        rendered = renderer([(context, answer) for context, answer, _, _ in batch])
        others = (
            renderer([(context, other) for context, _, _, other in batch]) if with_rejected else [([], [], "")] * len(batch)
        )
        for (prompt, chosen, text), (_, other, _), (context, _, label, _) in zip(rendered, others, batch, strict=True):
            counts["rows read"] += 1
            if len(prompt) > data.max_prompt_length:
                counts["prompts over the limit, left out"] += 1
                continue
            kept, lost = chosen[: data.max_completion_length], other[: data.max_completion_length]
            truncated = len(kept) < len(chosen)
            counts["answers over the limit, ended early"] += truncated + (len(lost) < len(other))
            content = [*prompt, -1, *kept, *([-1, *lost] if with_rejected else [])]
            content = hashlib.sha256(np.asarray(content, np.int32).tobytes()).hexdigest()[:20]
            seen[content] += 1  # a row that occurs twice is two rows, as in the user's data
            row = (f"{content}-{seen[content]}" if seen[content] > 1 else content, prompt, kept, truncated, text, label)
            row = (*row, json.dumps(context), *([lost] if with_rejected else []))
            row = tuple(np.asarray(value, np.int32) if isinstance(value, list) else value for value in row)  # a ninth of lists
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    if not columns["id"]:
        longest = f": every prompt is over data.max_prompt_length {data.max_prompt_length}" if counts else ""
        raise InputError(f"{field}: {source.location!r} has no usable row{longest}")
    metadata = {"counts": json.dumps({name: count for name, count in counts.items() if count})}
    return pa.table(columns, schema=schema.with_metadata(metadata))


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
