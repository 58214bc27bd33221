"""Whatever a file holds: rows are read, or counted with the reason, or the file is refused in one line; never a traceback.

`FUZZ_FILES=5000` takes so many files, all made from one seed.
"""

import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.data_config import Data
from lowmem_spin.data.formats import Conversation, conversations
from lowmem_spin.data.prepare import count_rows, prepare
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.rows import Rows
from lowmem_spin.data.sources import Source

FILES = int(os.environ.get("FUZZ_FILES", "400"))
WORDS = [
    *("sort: cab", "grüße 你好 😀", "007", "a,b", 'say "hi"', "two\nlines", " padded ", "1e5", "NA", "'", "tab\there", "null"),
]
HUGE, DEEP = "@huge@", "@deep@"  # what json does not write
WEIRD: list[Any] = [
    *(None, "", " ", 0, -1.5, True, [], {}, [[]], [None], {"a": 1}, [1, "x"], "\ud83d", "a\udc00b", "\x00\x1b[2J"),
    *(float("nan"), "[]", [["q", "a"]], [{"role": "user"}], [{"from": "gpt", "value": None}], HUGE, DEEP, "x" * 3000),
    *([{"type": "text", "text": "part"}], [{"type": "image", "image": "x"}], [{"type": "text", "text": None}]),
    {"role": "assistant", "content": "x"},
]
NAMES = [
    *("prompt", "completion", "messages", "chosen", "rejected", "system", "tools", "content", "role", "from", "value", "input"),
    *("tool_calls", "history", "category", "images", "conversations", "text", "real", "response", "context"),
    "reasoning_content",
]
ROLES = ["user", "assistant", "system", "human", "gpt", "tool", "observation", "developer", "narrator", "User", ""]


def text(r: random.Random) -> str:
    return f"{r.choice(WORDS)} {r.randrange(50)}"


def turn(r: random.Random, role: str, form: str = "") -> dict[str, Any]:
    if (form or r.choice(["hf", "sharegpt"])) == "hf":
        return {"role": {"human": "user", "gpt": "assistant"}.get(role, role), "content": text(r)}
    return {"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text(r)}


def talk(r: random.Random, form: str = "") -> list[dict[str, Any]]:
    begin = [turn(r, "system", form)] if r.random() < 0.2 else []
    return begin + [turn(r, role, form) for _ in range(r.choice([1, 1, 2])) for role in ("user", "assistant")]


def both(r: random.Random) -> dict[str, Any]:
    context, first = talk(r, "hf")[:-1], turn(r, "assistant", "hf")
    return {"chosen": [*context, first], "rejected": [*context, turn(r, "assistant", "hf")]}


def transcript(r: random.Random) -> str:
    return "".join(f"\n\n{said}: {text(r)}" for said in ["Human", "Assistant"] * r.choice([1, 2]))


def spoken(r: random.Random) -> dict[str, Any]:
    start = transcript(r) + "\n\nHuman: more?"
    return {side: f"{start}\n\nAssistant: {text(r)}" for side in ("chosen", "rejected")}


Layout = Callable[[random.Random], dict[str, Any]]
LAYOUTS: list[Layout] = [
    lambda r: {"messages": talk(r, "hf"), "category": text(r)},
    lambda r: {"conversations": talk(r, "sharegpt"), **({"system": text(r)} if r.random() < 0.3 else {})},
    lambda r: {"instruction": text(r), "input": r.choice(["", text(r)]), "output": text(r)},
    lambda r: {"instruction": text(r), "output": text(r), "history": [[text(r), text(r)]]},
    lambda r: {"prompt": text(r), "completion": text(r)},
    lambda r: {"prompt": [turn(r, "user", "hf")], "completion": [turn(r, "assistant", "hf")]},
    lambda r: {"question": text(r), "answer": text(r), "id": r.randrange(9)},
    lambda r: {"query": text(r), "response": text(r)},
    lambda r: {"real": talk(r, "hf"), "generated": talk(r, "hf")},
    both,
    spoken,
    lambda r: {"system": text(r), "question": text(r), "chosen": text(r), "rejected": text(r)},
    lambda r: {"prompt": text(r), **both(r), "score_chosen": r.random()},
    lambda r: {"prompt": text(r)},
    lambda r: {"messages": [turn(r, "user", "hf")]},
    lambda r: {"text": text(r)},
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def mutate(r: random.Random, row: dict[str, Any]) -> Any:
    found = list(places(row))
    holder, key = r.choice(found)
    match r.randrange(8):
        case 0 | 1:
            holder[key] = r.choice(WEIRD)
        case 2:
            del holder[key]
        case 3:
            holder[key] = [holder[key]]
        case 4 if isinstance(holder, dict):
            holder[r.choice(NAMES)] = holder.pop(key)
        case 5 if isinstance(holder, dict):
            holder[r.choice(NAMES)] = r.choice([*WEIRD, text(r)])
        case 6 if key in ("role", "from"):
            holder[key] = r.choice(ROLES)
        case 7 if r.random() < 0.2:
            return r.choice([*WEIRD, [row]])
        case _:
            holder[key] = text(r)
    return row


def spelled(r: random.Random, row: Any) -> str:
    line = json.dumps(row, ensure_ascii=r.random() < 0.5 or not whole(row))
    line = line.replace(f'"{HUGE}"', "9" * 5000).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000)
    if r.random() < 0.03 and line.startswith('{"'):
        line = '{"prompt": "twice", ' + line[1:]
    return line


def whole(value: Any) -> bool:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace").decode() == json.dumps(value, ensure_ascii=False)


def damage(r: random.Random, content: bytes) -> bytes:
    at = r.randrange(len(content) + 1)
    match r.randrange(8):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + r.choice([b"\xff", b"\x00", b'"', b"\n", b"{", b"]", b",", b"\r", b"\\"]) + content[at:]
        case 2:
            return content.replace(b"\n", b"", 1)
        case 3:
            return content[:at] + content[at + 1 :]
        case 4:
            return b"\n\n " + content
        case 5:
            return content + r.choice([b"\n", b"[1]", b"}", b"\x00", b'{"prompt":'])
        case 6:
            return content.decode(errors="replace").encode(r.choice(["utf-16", "latin-1"]), errors="replace")
        case _:
            return content


def written(r: random.Random, folder: Path, rows: list[Any]) -> tuple[Path, bool]:
    """(a file with these rows, whether its bytes are as a program would have written them)."""
    kind = r.choice(["jsonl", "jsonl", "ndjson", "json", "json", "csv", "tsv", "parquet", "jsonl.gz"])
    path, tidy = folder / f"d.{kind}", True
    if kind == "parquet":
        try:
            pq.write_table(pa.Table.from_pylist(rows), path)
        except (pa.ArrowException, ValueError, TypeError, OverflowError, AttributeError):
            kind, path = "jsonl", folder / "d.jsonl"
    if kind in ("csv", "tsv"):
        names = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter="," if kind == "csv" else "\t", lineterminator=r.choice(["\n", "\r\n"]))
        cells = [[row.get(name, "") if isinstance(row, dict) else row for name in names] for row in rows]
        writer.writerows([names, *cells])
        path.write_bytes(out.getvalue().encode(errors="surrogatepass"))
    elif kind == "json" and r.random() < 0.7:
        spaces = r.choice([",", ",\n", " ,\r\n "])
        path.write_bytes(("[" + spaces.join(spelled(r, row) for row in rows) + "]").encode())
    elif kind != "parquet":
        end = r.choice(["\n", "\n", "\r\n"])
        path.write_bytes("".join(spelled(r, row) + end for row in rows).encode())
    content = path.read_bytes()
    if r.random() < 0.2:
        content = b"\xef\xbb\xbf" * (kind != "parquet") + content
    if r.random() < 0.3:
        content, tidy = damage(r, content), False
    path.write_bytes(gzip.compress(content, mtime=0) if kind == "jsonl.gz" else content)
    return path, tidy


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for holder, key in places(value):
        if isinstance(holder[key], str):
            yield holder[key]


def sources(path: Path) -> Callable[[str], str]:
    """All text of the row at a place, read again by other means; for a faulty CSV the text of the file."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return lambda place: "".join(leaves(table.slice(int(place.split()[1]) - 1, 1).to_pylist()[0]))
    content = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).removeprefix(b"\xef\xbb\xbf")
    if path.suffix in (".csv", ".tsv"):
        return lambda place: content.decode(errors="surrogateescape").replace('""', '"')
    lines = content.split(b"\n")

    def row(place: str) -> str:
        kind, number = place.split()
        found = json.loads(lines[int(number) - 1].decode()) if kind == "line" else json.loads(content.decode())[int(number) - 1]
        return "".join(leaves(found))

    return row


@pytest.fixture(scope="module")
def renderer(quickstart: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(quickstart / "base"), None)


def options(r: random.Random) -> tuple[Data, dict[str, Any]]:
    renamed = {name: r.choice(NAMES) for name in r.sample(["prompt", "completion", "messages", "system"], 2)}
    data = Data(
        path="x",
        turns=r.choice(["first", "first", "all"]),
        columns=renamed if r.random() < 0.05 else {},  # type: ignore[arg-type]
        system_prompt="Be brief." if r.random() < 0.1 else None,
    )
    return data, {"with_rejected": r.random() < 0.25, "needs_answers": r.choice(["a game", None])}


def check(seed: int, folder: Path, renderer: Renderer) -> bool:
    """Whether rows of one file are used; asserts what is to hold of it."""
    r = random.Random(seed)
    made, harm = r.choice(LAYOUTS), r.choice([0.0, 0.1, 0.4, 1.0])
    rows = [made(r) for _ in range(r.randrange(0, 12))]
    rows = [mutate(r, row) if r.random() < harm else row for row in rows]
    path, tidy = written(r, folder, rows)
    source, (data, asked) = Source(str(path), None, "test"), options(r)

    def read() -> Iterator[Any]:
        return conversations(source, data, "data.path", "train", "category", **asked)

    try:
        counts = count_rows(read(), f"data.path: {str(path)!r}", data)
    except InputError as error:
        assert str(error).startswith("data.path: ") and "\n" not in str(error)
        with pytest.raises(InputError, match=r"^data\.path: "):  # with other reasons, where there are over-long prompts too
            prepare(source, data, "data.path", "train", "category", renderer, **asked)
        return False
    try:
        table = Rows(prepare(source, data, "data.path", "train", "category", renderer, **asked))
    except InputError as error:  # what only the tokenizer shows
        assert "is over data.max_prompt_length" in str(error) or ", left out" in str(error)
        return False
    left_out = sum(count for kind, count in table.counts.items() if kind.endswith("left out"))
    assert len(table) + left_out == table.counts["rows read"]
    assert len(table) <= counts.used == sum(isinstance(row, Conversation) for row in read())
    assert not any("\n" in line for line in table.counts_lines(data))
    if tidy:
        assert table.counts.get("conversations read", table.counts["rows read"]) == len(rows)
    text_of, used = sources(path), [row for row in read() if isinstance(row, Conversation)]
    for row in used:
        there = text_of(row.place).replace("\r", "")
        for said in (*(said["content"] for said in row.context), row.answer or "", row.rejected or ""):
            parts = [said] if said in there else said.split("\n\n")  # of Alpaca's instruction and input
            assert said == data.system_prompt or all(part.replace("\r", "") in there for part in parts), (said, there)
    for completion in table.completions:
        assert any(completion.strip() == (row.answer or "").strip() for row in used), completion
    return True


@pytest.mark.parametrize("part", range(4))
def test_every_file_is_read_or_refused_and_every_row_is_counted(part: int, tmp_path: Path, renderer: Renderer) -> None:
    used = 0
    for seed in range(part, FILES, 4):
        try:
            used += check(seed, tmp_path, renderer)
        except Exception as error:
            raise AssertionError(f"file {seed}") from error
    assert used > FILES / 4 / 5  # else nothing is tested
