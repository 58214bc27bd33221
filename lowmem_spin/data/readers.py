"""Files and hub splits, row by row as they are: JSON by lines or as an array, CSV, TSV and Parquet.

Nothing is guessed: what is text in the file stays text, and what cannot be read is a value that says so.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError, reading
from lowmem_spin.common.parquet import reading_parquet
from lowmem_spin.data.sources import Source

BATCH, BUFFER = 1000, 1 << 20  # rows of a Parquet file that are in memory at once, and bytes of each of its columns


class Unusable(NamedTuple):
    """A row that is left out and counted."""

    place: str
    reason: str  # what is the matter with such rows, as in "3 with an empty answer"
    broken: bool = False  # it is not what a row of such a file looks like: many of those are a file of another format
    detail: str = ""  # what it is in this row


def is_text(value: str) -> bool:
    """Whether all its characters are whole: half of a surrogate pair, which JSON can spell, is none."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_rows(source: Source, field: str, split: str, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """(where, row) of a local file or a hub split; a row that is not there to read is Unusable.

    Args:
        source: a file, or a data set on the hub.
        field: the recipe's, for refusals.
        split: of a data set on the hub.
        name: which configuration of a data set on the hub.

    Raises:
        InputError: it is no file of its kind at all.
    """
    if not source.local:
        yield from _read_hub(source, field, split, name)
        return
    path = Path(source.location)
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        yield from ((f"row {index + 1}", row) for index, row in enumerate(_read_parquet(path, field)))
        return
    try:
        with reading(path), gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield from _read_text(file, f"{field}: {source.location!r}", kind)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{field}: {source.location!r} is not a whole gzip file: {error}") from None


def _read_text(file: IO[bytes] | gzip.GzipFile, named: str, kind: str) -> Iterator[tuple[str, Any]]:
    first = file.readline()
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{named} is UTF-16; save it as UTF-8")
    first = first.removeprefix(b"\xef\xbb\xbf")
    if kind in ("csv", "tsv"):
        yield from _read_csv(chain([first], file), named, "," if kind == "csv" else "\t")
        return
    lines = enumerate(chain([first], file), 1)
    start = next(((number, line) for number, line in lines if line.strip()), None)
    if start is None:
        return
    number, first = start
    more = next(((number, line) for number, line in lines if line.strip()), None)
    if first.lstrip().startswith(b"[") and (more is None or not first.rstrip().endswith(b"]")):  # else lists, one a line
        rest = (line for _, line in chain([more] if more else [], lines))
        yield from _read_array(b"".join(chain([b"\n" * (number - 1), first], rest)), named)
        return
    decode = _Json()
    for number, line in chain([start], [more] if more else [], lines):
        if line.strip():
            yield f"line {number}", decode.line(line, f"line {number}")


class _Json:
    """Decodes one value after another, and notices what Python would overlook: a key that an object has twice."""

    def __init__(self) -> None:
        self.twice = False
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        self.twice |= len(found) < len(pairs)
        return found

    def line(self, line: bytes, place: str) -> Any:
        """The value of a whole line, or why there is none."""
        self.twice = False
        try:
            row = self.decoder.decode(line.decode())
        except UnicodeDecodeError:
            return Unusable(place, "that are not UTF-8", broken=True)
        except (ValueError, RecursionError):
            return Unusable(place, "that are not JSON", broken=True)
        return Unusable(place, "with a name twice in one object") if self.twice else row

    def element(self, text: str, start: int, place: str) -> tuple[Any, int]:
        """(the value that begins at `start`, or why it cannot be used; where it ends)."""
        self.twice = False
        row, end = self.decoder.raw_decode(text, start)
        return (Unusable(place, "with a name twice in one object") if self.twice else row), end


def _read_array(content: bytes, named: str) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON array one after another: only the text is in memory as a whole."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{named} is a JSON array and not UTF-8 in line {line}; save it as UTF-8") from None
    del content
    decode, spaces = _Json(), re.compile(r"[ \t\n\r]*")
    at, number = spaces.match(text, text.index("[") + 1).end(), 0  # type: ignore[union-attr]
    ended = text.startswith("]", at)
    try:
        while not ended:
            number += 1
            row, at = decode.element(text, at, f"row {number}")
            yield f"row {number}", row
            at = spaces.match(text, at).end()  # type: ignore[union-attr]
            ended = text.startswith("]", at)
            if not ended:
                if not text.startswith(",", at):
                    raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
                at = spaces.match(text, at + 1).end()  # type: ignore[union-attr]
        if text[at + 1 :].strip():
            raise json.JSONDecodeError("Extra data", text, at + 1)
    except json.JSONDecodeError as error:
        said = f"{error.msg} in line {error.lineno}, column {error.colno}"
        raise InputError(f"{named} is a JSON array that breaks off in row {number} ({said}); is it whole?") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{named}: row {number} of its JSON array cannot be read: {error}") from None


def _read_csv(lines: Iterable[bytes], named: str, delimiter: str) -> Iterator[tuple[str, Any]]:
    """Rows under a header, every cell as text. A fault in the quotes costs each line that it reaches over."""
    reader = csv.reader((line.decode(errors="surrogateescape") for line in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        before = reader.line_num
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault, cells = str(error), None
        else:
            fault = ""
        if cells == []:
            continue
        if header is None:
            header = _header(cells, named)
            continue
        places = [f"line {number}" for number in range(before + 1, reader.line_num + 1)]
        if cells is not None and len(cells) == len(header):
            whole = is_text("".join(cells))
            bad = Unusable(places[0], "that are not UTF-8", broken=True)
            yield places[0], dict(zip(header, cells, strict=True)) if whole else bad
            continue
        reason = "with more or fewer cells than the header"
        if cells is None:
            reason = "with cells that are too long, or a quote that is not closed" if "limit" in fault else "with faulty quotes"
        yield from ((place, Unusable(place, reason, True, fault)) for place in places)


def _header(cells: list[str] | None, named: str) -> list[str]:
    if cells is None:
        raise InputError(f"{named}: its first line is no header of columns: its quotes or line ends are faulty")
    if cells[0].lstrip().startswith(("{", "[")):
        raise InputError(f"{named} has JSON where names of columns should be; name it .jsonl")
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if twice:
        raise InputError(f"{named} has more than one column {twice[0]!r}; rename one")
    return cells


def _read_parquet(path: Path, field: str) -> Iterator[Any]:
    """The rows of a Parquet file, some at a time: as Python objects they are many times as large as on the disk."""
    try:
        with reading_parquet(path), pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f"{field}: {str(path)!r} has more than one column {twice!r}; rename one")
            seen = 0
            for batch in file.iter_batches(BATCH):
                yield from _python(batch, seen)
                seen += len(batch)
    except DamagedError as error:
        raise InputError(f"{field}: {str(path)!r} is not a Parquet file: {error}") from None


def _python(batch: pa.RecordBatch, seen: int) -> Iterator[Any]:
    """The rows as Python objects; if one of them has none, for bytes that are not UTF-8 for instance, one by one."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError, KeyError):  # the last: of a time zone that is not known here
        for index in range(len(batch)):
            try:
                (row,) = batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError:
                row = Unusable(f"row {seen + index + 1}", "that are not UTF-8", broken=True)
            except (ValueError, OverflowError, KeyError):
                row = Unusable(f"row {seen + index + 1}", "with a value that Python does not have", broken=True)
            yield row


def _read_hub(source: Source, field: str, split: str, name: str | None) -> Iterator[tuple[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        rows = datasets.load_dataset(source.location, name, revision=source.revision, split=split)
    except (ValueError, OSError, DatasetsError) as error:
        section = field.rpartition(".")[0]
        remedy = f"; set {section}.name" if "onfig" in str(error) and name is None else ""
        raise InputError(f"{field}: {source.location!r} split {split!r}: {' '.join(str(error).split())}{remedy}") from error
    for index, row in enumerate(rows):
        yield f"row {index + 1}", row
