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
from lowmem_spin.data.formats import Conversation, Unusable, conversations
from lowmem_spin.data.render import Rendered, Renderer
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
OVER_LONG = "prompts over the limit, left out"
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
    both |= {"template arguments": data.chat_template_kwargs} if data.chat_template_kwargs else {}
    return digest({"kind": "data", "version": VERSIONS["data"], **asked, **rendered, **limits, **both})


class Counts:
    """How many rows there were of each kind, and where the first of them was."""

    def __init__(self) -> None:
        self.number: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, kind: str, place: str) -> None:
        self.number[kind] += 1
        self.first.setdefault(kind, place)

    def metadata(self) -> dict[str, str]:
        return {"counts": json.dumps(self.number), "first": json.dumps(self.first)}


def prepare(
    source: Source, data: Data, field: str, split: str, category: str, renderer: Renderer, with_rejected: bool = False
) -> pa.Table:
    """Read, render and filter a data set; `with_rejected`, one whose rows have a rejected answer too.

    Rows that cannot be used are counted and left out; over-long answers are counted and lose their end of turn, for they do
    not end there. The counts are in the table's metadata.

    Raises:
        InputError: no row can be used.
    """
    counts, seen = Counts(), Counter[str]()
    schema = PREFERENCES if with_rejected else SCHEMA
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for batch in _batches(conversations(source, data, field, split, category, with_rejected), 1000):
        for row, rendered in _rendered(batch, renderer):
            if (kept := _limited(row, rendered, data, counts)) is None:
                continue
            content = np.asarray([*kept["prompt"], -1, *kept["chosen"], *([-1, *kept["rejected"]] if with_rejected else [])])
            content = hashlib.sha256(content.astype(np.int32).tobytes()).hexdigest()[:20]
            seen[content] += 1  # a row that occurs twice is two rows, as in the user's data
            kept["id"] = f"{content}-{seen[content]}" if seen[content] > 1 else content
            for name, column in columns.items():
                value = kept[name]
                column.append(np.asarray(value, np.int32) if isinstance(value, list) else value)  # a ninth of lists
    if not columns["id"]:
        raise InputError(f"{field}: {source.location!r} has no usable row{_why_none(counts, data)}")
    return pa.table(columns, schema=schema.with_metadata(counts.metadata()))


def _rendered(
    batch: list[Conversation | Unusable], renderer: Renderer
) -> Iterator[tuple[Conversation | Unusable, list[Rendered | str]]]:
    """Every row with its answers as token ids: the chosen one and, where there is one, the rejected one."""
    usable = [row for row in batch if isinstance(row, Conversation)]
    chosen = renderer([(row.context, row.answer) for row in usable])
    rejected = renderer([(row.context, row.rejected) for row in usable if row.rejected is not None])
    for row in batch:
        if isinstance(row, Unusable):
            yield row, []
        else:
            yield row, [next(chosen), *([next(rejected)] if row.rejected is not None else [])]


def _limited(row: Conversation | Unusable, rendered: list[Rendered | str], data: Data, counts: Counts) -> dict[str, Any] | None:
    """The columns of a row that can be used and is within the limits, else None; counted either way."""
    counts.add("rows read", row.place)
    if isinstance(row, Unusable):
        counts.add(f"{row.reason}, left out", row.place)
        return None
    answers: list[Rendered] = []
    for answer in rendered:
        if isinstance(answer, str) or len(answer.prompt) > data.max_prompt_length:
            counts.add(f"{answer}, left out" if isinstance(answer, str) else OVER_LONG, row.place)
            return None
        answers.append(answer)
    limit = data.max_completion_length
    for answer in answers:
        for note in (*answer.notes, *(["answers over the limit, ended early"] if len(answer.completion) > limit else [])):
            counts.add(note, row.place)
    chosen, rejected = answers[0], [answer.completion[:limit] for answer in answers[1:]]
    kept = {"prompt": chosen.prompt, "chosen": chosen.completion[:limit], "truncated": len(chosen.completion) > limit}
    kept |= {"completion": chosen.text, "category": row.category, "messages": json.dumps(row.context)}
    return kept | ({"rejected": rejected[0]} if rejected else {})


def _why_none(counts: Counts, data: Data) -> str:
    """What is the matter with all the rows, if there are any."""
    number = counts.number
    if number["rows read"] and number[OVER_LONG] == number["rows read"]:
        return f": every prompt is over data.max_prompt_length {data.max_prompt_length}"
    left_out = [f"{count:,} {kind}" for kind, count in number.items() if kind.endswith("left out")]
    return f": {', '.join(left_out)}" if left_out else ""


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
