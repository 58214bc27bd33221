"""Data sets as conversations, read row by row. A new layout of columns is one line in `LAYOUTS`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError, reading_parquet
from lowmem_spin.config.recipe import Data
from lowmem_spin.data.sources import Source

Message = dict[str, str]
BATCH, BUFFER = 1000, 1 << 20  # rows of a Parquet file that are in memory at once, and bytes of each of its columns


def conversations(
    source: Source, data: Data, field: str, split: str, category: str, with_rejected: bool
) -> Iterator[tuple[list[Message], str, str | None, str]]:
    """(messages before the answer, the answer, category, the worse answer if asked) for what `data.turns` asks for."""
    for place, row in _read(source, field, split):
        label = row.get(category) if isinstance(row, dict) else None
        label = None if label is None else str(label)
        if with_rejected:
            context, better, lesser = _preference(row, f"{field}: {place}")
            yield context, better, label, lesser
            continue
        messages = _messages(row, f"{field}: {place}")
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers or answers[0] == 0:
            raise InputError(f"{field}: {place} has no question followed by an answer")
        for index in answers[:1] if data.turns == "first" else answers:
            answer = messages[index]["content"]
            if not answer.strip():
                raise InputError(f"{field}: {place} has an empty answer; remove the row")
            yield messages[:index], answer, label, ""


def _preference(row: Any, place: str) -> tuple[list[Message], str, str]:
    """(messages before the answers, the better answer, the worse one) of a row of preference data."""
    if not isinstance(row, dict):
        raise InputError(f"{place} is {type(row).__name__}, not a row with columns")
    sides = []
    for name in ("chosen", "rejected"):
        if name not in row:
            raise InputError(f"{place} has no {name!r} answer, which game.algorithm offline learns from; it has {sorted(row)}")
        *context, answer = _messages({"messages": _whole(row, name)}, place) or [{"role": "", "content": ""}]
        if answer["role"] != "assistant" or not answer["content"].strip() or not context:
            raise InputError(f"{place}: its {name!r} is no answer to a question")
        sides.append((context, answer["content"]))
    (context, better), (other, lesser) = sides
    if context != other:
        raise InputError(f"{place}: chosen and rejected answer different conversations")
    return context, better, lesser


def _whole(row: dict[str, Any], name: str) -> list[Any]:
    """The conversation that ends in one of the answers, which may be in the answer's own column already."""
    answer = _turn("assistant", row[name])
    return answer if len(answer) > 1 or "prompt" not in row else [*_turn("user", row["prompt"]), *answer]


def _messages(row: Any, place: str) -> list[Message]:
    """One row's conversation, from the first of the known layouts whose columns it has."""
    if not isinstance(row, dict):
        raise InputError(f"{place} is {type(row).__name__}, not a row with columns")
    layout = next((columns for columns in LAYOUTS if row.keys() >= set(columns)), None)
    if layout is None:
        needed = ", or ".join(" and ".join(columns) for columns in LAYOUTS)
        raise InputError(f"{place} has columns {sorted(row)}; needed: {needed}")
    messages = LAYOUTS[layout](row)
    fine = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not fine:
        raise InputError(f"{place}: its messages must be a list of {{role, content}} texts")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _turn(role: str, content: Any) -> list[Any]:
    """A text as one message; a list is messages already."""
    return content if isinstance(content, list) else [{"role": role, "content": content}]


LAYOUTS: dict[tuple[str, ...], Callable[[dict[str, Any]], Any]] = {
    ("messages",): lambda row: row["messages"],
    ("real",): lambda row: row["real"],  # SPIN's
    ("chosen",): lambda row: _whole(row, "chosen"),
    ("prompt", "completion"): lambda row: [*_turn("user", row["prompt"]), *_turn("assistant", row["completion"])],
}
"""{columns: the list of {role, content} messages that a row with these columns has}, the first that fits."""


def _read(source: Source, field: str, split: str) -> Iterator[tuple[str, Any]]:
    """(where, row) of a local file or a hub split."""
    if not source.local:
        yield from _read_hub(source, field, split)
    elif source.location.endswith(".parquet"):
        yield from ((f"row {index + 1}", row) for index, row in enumerate(_read_parquet(source, field)))
    else:
        with Path(source.location).open("rb") as lines:
            for index, line in enumerate(lines):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except UnicodeDecodeError:
                    raise InputError(f"{field}: line {index + 1} is not UTF-8; save the file as UTF-8") from None
                except json.JSONDecodeError as error:
                    raise InputError(
                        f"{field}: line {index + 1} is not JSON ({error.msg}); one object per line is needed"
                    ) from None
                yield f"line {index + 1}", row


def _read_parquet(source: Source, field: str) -> Iterator[Any]:
    """The rows of a Parquet file, some at a time: as Python objects they are many times as large as on the disk."""
    path = Path(source.location)
    try:
        with reading_parquet(path), pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
            for batch in file.iter_batches(BATCH):
                yield from batch.to_pylist()
    except DamagedError as error:
        raise InputError(f"{field}: {source.location!r} is not a Parquet file: {error}") from None


def _read_hub(source: Source, field: str, split: str) -> Iterator[tuple[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(source.location, revision=source.revision, split=split)
    except (ValueError, OSError, DatasetsError) as error:
        raise InputError(f"{field}: {source.location!r} split {split!r}: {' '.join(str(error).split())}") from error
    for index, row in enumerate(rows):
        yield f"row {index + 1}", row
