"""Files as people have them: every layout of columns and kind of file gives the same row; what is no row is counted."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from lowmem_spin.algorithm.source_hashes import VERSIONS
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.data_config import Data
from lowmem_spin.data.formats import conversations
from lowmem_spin.data.prepare import prepare, prepared_key
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.rows import Rows, counted, overlap
from lowmem_spin.data.sources import Source, Sources


@pytest.fixture(scope="module")
def renderer(quickstart: Path) -> Renderer:
    return Renderer(AutoTokenizer.from_pretrained(quickstart / "base"), None)


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(
    folder: Path, renderer: Renderer, content: bytes, name: str = "d.jsonl", asked: dict[str, Any] | None = None, **options: Any
) -> Rows:
    (folder / name).write_bytes(content)
    source, data = Source(str(folder / name), None, "test"), Data(path="x", **options)
    return Rows(prepare(source, data, "data.path", "train", "category", renderer, **(asked or {})))


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


ASKED, RIGHT, WRONG = user("sort: cab"), answer("abc"), answer("cab")
SHAREGPT = [{"from": "human", "value": "sort: cab"}, {"from": "gpt", "value": "abc"}]
SPOKEN = "\n\nHuman: sort: cab\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "read_as"),
    [
        ({"messages": [ASKED, RIGHT, user("and zyx?"), answer("xyz")]}, "messages"),
        ({"messages": [{"role": "User", "content": [{"type": "text", "text": "sort: "}, {"text": "cab"}]}, RIGHT]}, "messages"),
        ({"prompt": "sort: cab", "completion": "abc"}, "prompt and completion"),
        ({"prompt": [ASKED], "completion": [RIGHT]}, "prompt and completion"),
        ({"prompt": "sort: cab", "completion": "abc", "messages": None}, "prompt and completion"),
        ({"real": [ASKED, RIGHT]}, "real, as in SPIN's data"),
        ({"conversations": SHAREGPT}, "ShareGPT"),
        ({"conversation": SHAREGPT}, "ShareGPT"),
        ({"conversations": [ASKED, {"from": "chatgpt", "value": "abc"}]}, "ShareGPT"),
        ({"instruction": "sort: cab", "output": "abc"}, "Alpaca"),
        ({"instruction": "sort: cab", "input": "", "output": "abc"}, "Alpaca"),
        ({"instruction": "sort: cab", "context": "", "response": "abc"}, "instruction and response"),
        *(
            ({question: "sort: cab", completion: "abc"}, f"{question} and {completion}")
            for question, completion in [
                *(("question", "answer"), ("question", "response"), ("prompt", "response"), ("query", "response")),
                ("input", "output"),
            ]
        ),
        ({"chosen": f"{SPOKEN}abc"}, "chosen"),
        ({"question": "sort: cab", "chosen": "abc"}, "question and chosen"),
        (
            {"prompt": "sort: cab", "chosen": "abc", "rejected": "cab"},
            "prompt and chosen ('rejected' is not used: for DPO on these pairs set game.algorithm=offline)",
        ),
        (
            {"real": [ASKED, RIGHT], "generated": [ASKED, WRONG], "n": 1},
            "real, as in SPIN's data ('generated' is not used: for DPO on these pairs set game.algorithm=offline)"
            " (its other columns are not read: n)",
        ),
        (
            {"messages": [ASKED, RIGHT], "prompt": "x", "completion": "y"},
            "messages (its other columns are not read: prompt, completion)",
        ),
    ],
)
def test_every_layout_gives_the_same_row(tmp_path: Path, renderer: Renderer, row: dict[str, Any], read_as: str) -> None:
    rows = read(tmp_path, renderer, lines(row))
    assert renderer.tokenizer.decode(rows.prompt(0)) == "<bos><user>sort: cab<end_of_turn><model>"
    assert renderer.tokenizer.decode(rows.chosen(0)) == "abc<end_of_turn>"
    assert (rows.completions, rows.messages(0)) == (["abc"], [ASKED])
    assert rows.counts_lines(Data(path="x")) == [f"read as {read_as}: 1 row read"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "sort: cab", "chosen": "abc", "rejected": "cab"},
        {"chosen": [ASKED, RIGHT], "rejected": [ASKED, WRONG]},
        {"prompt": "sort: cab", "chosen": [ASKED, RIGHT], "rejected": [ASKED, WRONG], "score_chosen": 8.0},  # UltraFeedback
        {"prompt": [ASKED], "chosen": [RIGHT], "rejected": [WRONG]},
        {"prompt": [ASKED], "chosen": "abc", "rejected": "cab"},
        {"question": "sort: cab", "chosen": "abc", "rejected": "cab"},
        {"chosen": f"{SPOKEN}abc", "rejected": f"{SPOKEN}cab"},  # hh-rlhf
        {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": "cab"}},
        {"real": [ASKED, RIGHT], "generated": [ASKED, WRONG]},  # SPIN's, as offline pairs
    ],
)
def test_every_layout_of_preferences_gives_the_same_row(tmp_path: Path, renderer: Renderer, row: dict[str, Any]) -> None:
    rows = read(tmp_path, renderer, lines(row), asked={"with_rejected": True})
    assert renderer.tokenizer.decode(rows.prompt(0)) == "<bos><user>sort: cab<end_of_turn><model>"
    assert renderer.tokenizer.decode(rows.chosen(0)) == "abc<end_of_turn>"
    assert renderer.tokenizer.decode(rows.rejected(0)) == "cab<end_of_turn>"
    assert rows.messages(0) == [ASKED]
    better = read(tmp_path, renderer, lines(row))  # what a game of another kind reads of it
    assert list(better.chosen(0)) == list(rows.chosen(0)) and better.ids != rows.ids


SYSTEM = {"role": "system", "content": "be brief"}


@pytest.mark.parametrize(
    ("row", "context"),
    [
        ({"system": "be brief", "question": "q", "response": "a"}, [SYSTEM, user("q")]),  # Orca
        ({"system": "be brief", "conversations": SHAREGPT}, [SYSTEM, ASKED]),
        ({"system": "be brief", "messages": [SYSTEM, ASKED, RIGHT]}, [SYSTEM, ASKED]),
        ({"instruction": "i", "input": "in", "output": "a"}, [user("i\n\nin")]),
        ({"instruction": "i", "output": "a", "history": [["q0", "a0"]]}, [user("q0"), answer("a0"), user("i")]),
        ({"prompt": [user("q0"), answer("a0"), user("q")], "completion": "a"}, [user("q0"), answer("a0"), user("q")]),
        ({"messages": [answer("hello"), user("q"), answer("a")]}, [answer("hello"), user("q")]),
    ],
)
def test_what_comes_before_the_answer_is_kept(tmp_path: Path, renderer: Renderer, row: Any, context: list[Any]) -> None:
    assert read(tmp_path, renderer, lines(row)).messages(0) == context


def test_the_recipes_system_message_and_columns(tmp_path: Path, renderer: Renderer) -> None:
    content = lines({"Frage": "q", "Antwort": "a", "messages": 3}, {"Frage": [SYSTEM, user("q")], "Antwort": "a"})
    columns = {"prompt": "Frage", "completion": "Antwort"}
    rows = read(tmp_path, renderer, content, columns=columns, system_prompt="be kind")
    assert [rows.messages(place) for place in range(2)] == [[{**SYSTEM, "content": "be kind"}, user("q")], [SYSTEM, user("q")]]
    assert rows.counts["with a system message of their own in place of data.system_prompt"] == 1
    assert rows.layouts == ["prompt and completion (its other columns are not read: messages)"]


def chat(*messages: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat(ASKED, answer(" ")), "with an empty answer"),
        (chat(user("  "), RIGHT), "with an empty question"),
        (chat(ASKED), "without an answer"),
        (chat(SYSTEM, RIGHT), "without a question"),
        (chat(ASKED, answer(None)), "with a message without content"),
        (chat(ASKED, answer(3)), "with content that is no text"),
        (chat(user([{"type": "image", "image": "x"}]), RIGHT), "with parts other than text"),
        (chat(user("sort: \ud83d"), RIGHT), "with half a character (a lone surrogate)"),
        (chat(ASKED, answer("\udc00")), "with half a character (a lone surrogate)"),
        (chat(ASKED, RIGHT, category="\udc00"), "with half a character (a lone surrogate)"),
        (chat(ASKED, {**answer(None), "tool_calls": [{"function": {}}]}), "with tool calls"),
        (chat(ASKED, {"role": "tool", "content": "42"}, RIGHT), "with turns of tools or functions"),
        (chat(ASKED, RIGHT, tools=[{"name": "x"}]), "with a column 'tools', which is not read"),
        (chat({"role": "narrator", "content": "x"}, ASKED, RIGHT), "with a role other than system, user and assistant"),
        (chat("hello", RIGHT), "with messages that are not {role, content}"),
        ({"messages": "hello"}, "with messages that are not a list"),
        ({"prompt": "p"}, "without 'messages'"),
        ({"messages": None}, "without 'messages'"),
        ([1], "that are no objects with columns"),
        (b"nothing", "that are not JSON"),
        (b'{"messages": [' + b"[" * 5000, "that are not JSON"),
        (b'{"messages": ' + b"9" * 5000 + b"}", "that are not JSON"),
        (b'{"messages": "\xff"}', "that are not UTF-8"),
        (b'{"messages": [], "messages": []}', "with a name twice in one object"),
    ],
)
def test_a_row_that_cannot_be_used_is_counted_with_its_line(tmp_path: Path, renderer: Renderer, row: Any, reason: str) -> None:
    good = lines(chat(ASKED, RIGHT))
    rows = read(tmp_path, renderer, good + b"\n" + (row + b"\n" if isinstance(row, bytes) else lines(row)) + good)
    assert rows.counts == {"rows read": 3, f"{reason}, left out": 1, "rows that occurred before": 1}
    assert rows.first[f"{reason}, left out"].startswith("line 3") and len(rows) == 2
    many = read(tmp_path, renderer, good + lines(chat(ASKED, RIGHT, user("2"), answer("b"), user(None))), turns="all")
    assert many.counts["conversations read"] == 2  # of the second, two answers are used before what cannot be
    assert (many.counts["rows read"], len(many)) == (4, 3)


@pytest.mark.parametrize(
    ("kind", "one", "two"),
    [
        ("that are not JSON, left out", "1 row that is not JSON, left out", "2 rows that are not JSON, left out"),
        ("that are no objects with columns", "1 row that is no object with columns", "2 rows that are no objects with columns"),
        (
            "with messages that are not a list",
            "1 row with messages that are not a list",
            "2 rows with messages that are not a list",
        ),
    ],
)
def test_one_row_is_counted_in_the_singular(kind: str, one: str, two: str) -> None:
    assert [counted(kind, count, Data(path="x")) for count in (1, 2)] == [one, two]


def preference(**changed: Any) -> dict[str, Any]:
    return {"prompt": "p", "chosen": "c", "rejected": "r", **changed}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (preference(rejected="c"), "whose two answers are the same"),
        (preference(rejected=" "), "whose 'rejected' is empty"),
        (preference(rejected=None), "without 'rejected'"),
        (
            preference(chosen=[ASKED, RIGHT], rejected=[user("other"), WRONG]),
            "whose two answers are to different conversations",
        ),
        (
            preference(chosen=[ASKED, user("more")], rejected=[ASKED, user("more")]),
            "whose 'chosen' is not an assistant message",
        ),
        ({"chosen": "c", "rejected": "r"}, "without a question"),
        (preference(prompt=""), "with an empty question"),
        (preference(prompt=3), "with content that is no text"),
        (preference(rejected="\ud83d"), "with half a character (a lone surrogate)"),
    ],
)
def test_a_preference_that_cannot_be_used_is_counted(tmp_path: Path, renderer: Renderer, row: Any, reason: str) -> None:
    rows = read(tmp_path, renderer, lines(preference(), row), asked={"with_rejected": True})
    assert (rows.counts, len(rows)) == ({"rows read": 2, f"{reason}, left out": 1}, 1)


TWO = [{"prompt": "007", "completion": '1e5, "x"\nNA'}, {"prompt": "null", "completion": "abc"}]
CSV = b'prompt,completion\n007,"1e5, ""x""\nNA"\n\nnull,abc\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", lines(*TWO)),
        ("d.NDJSON", lines(*TWO)),
        ("d.json", lines(*TWO)),
        ("d.jsonl", b"\xef\xbb\xbf" + lines(*TWO).replace(b"\n", b"\r\n\r\n")),
        ("d.json", json.dumps(TWO, indent=2).encode()),
        ("d.json", b"\xef\xbb\xbf\r\n " + json.dumps(TWO).encode() + b"\n"),
        ("d.jsonl", json.dumps(TWO[:1]).encode()[:-1] + b",\n" + json.dumps(TWO[1]).encode() + b"\n]"),
        ("d.jsonl.gz", gzip.compress(lines(*TWO), mtime=0)),
        ("d.csv", CSV),
        ("d.csv", b"\xef\xbb\xbf" + CSV),
        ("d.csv", CSV.replace(b"\n\nnull,abc\n", b"\r\nnull,abc")),
        ("d.tsv", b'prompt\tcompletion\n007\t"1e5, ""x""\nNA"\nnull\tabc'),
        ("d.csv.gz", gzip.compress(CSV, mtime=0)),
    ],
)
def test_every_kind_of_file_gives_the_same_rows_as_text(tmp_path: Path, renderer: Renderer, name: str, content: bytes) -> None:
    rows = read(tmp_path, renderer, content, name)
    assert [(rows.messages(n), rows.completions[n]) for n in range(2)] == [([user(r["prompt"])], r["completion"]) for r in TWO]
    assert rows.counts == {"rows read": 2}
    found = Sources(tmp_path, tmp_path / "memory.json").data(name, None, "data.path")
    assert found.location == str(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("d.jsonl", b"", "has no usable row: it is empty"),
        ("d.jsonl", b"[]", "has no usable row: it is empty"),
        ("d.json", b"[1, 2]", "has rows that are no objects with columns and no other (first: row 1); needed: one object with"),
        ("d.json", json.dumps({"data": TWO}, indent=1).encode(), "has rows that are not JSON and no other (first: line 1)"),
        (
            "d.json",
            json.dumps(TWO).encode()[:-5],
            "is a JSON array that breaks off in row 2 (Unterminated string starting at in line",
        ),
        (
            "d.json",
            b'[{"prompt": "p"} {}]',
            "is a JSON array that breaks off in row 1 (Expecting ',' or ']' in line 1, column 18)",
        ),
        ("d.json", b'[{"prompt": "\xff"},\n{}]', "is a JSON array and not UTF-8 in line 1"),
        ("d.jsonl", lines(*TWO).decode().encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (
            "d.jsonl",
            b"no\nno\n" + lines(TWO[0]),
            "2 of 3 rows are no rows of such a file, so it may be another kind of file than",
        ),
        (
            "d.jsonl",
            lines({"prompt": "p", "completion": " "}),
            "no usable row: 1 row with an empty answer, left out (first: line 1)",
        ),
        ("d.jsonl", lines({"prompt": "p" * 600, "completion": "c"}), "every prompt is over data.max_prompt_length 512"),
        (
            "d.jsonl",
            lines({"text": "t"}),
            "['text'], in which nothing says what is asked and what is answered: rename the columns, or",
        ),
        (
            "d.jsonl",
            lines({"Prompt": "p", "Reply": "c"}),
            "the nearest layout is prompt and completion: rename the columns, or name",
        ),
        ("d.jsonl", lines({"Frage": "p", "Antwort": "c"}), "for instance data.columns={prompt: Frage, completion: Antwort}"),
        ("d.jsonl", lines({"prompt": "p"}), "no answers that are known as such, which self-play needs"),
        ("d.csv", b"prompt;completion\na;b\n", "['prompt;completion']; separate columns by commas, or in a .tsv file by tabs"),
        ("d.csv", b"a: b,null\nc,d\n", 'for instance data.columns={prompt: "a: b", completion: "null"}'),
        ("d.csv", lines(*TWO), "has JSON where names of columns should be; name it .jsonl"),
        ("d.json", lines({"data": TWO}), "is one object with all rows in its 'data'; save that list by itself"),
        ("d.jsonl", lines({}), "has the columns [], no layout that is known"),
        ("d.csv", b"prompt,prompt\na,b\n", "has more than one column 'prompt'; rename one"),
        (
            "d.csv",
            b'prompt,completion\na,b\n"c,d\ne,f\n',
            "2 rows with faulty quotes, left out (first: line 3, unexpected end of data)",
        ),
        ("d.jsonl.gz", gzip.compress(lines(*TWO), mtime=0)[:-9], "is not a whole gzip file: Compressed file ended"),
        ("d.jsonl.gz", lines(*TWO), "is not a whole gzip file: Not a gzipped file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, renderer: Renderer, name: str, content: bytes, line: str
) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, renderer, content, name)
    assert line in str(error.value)
    assert str(error.value).startswith(f"data.path: '{tmp_path / name}'") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "asked", "line"),
    [
        ({"prompt": "Frag"}, {}, "has no column 'Frag', which data.columns.prompt names; it has ['Frage', 'Antwort']"),
        ({"prompt": "Frage"}, {}, "data.columns names prompt; needed: messages, or real, or chosen, or prompt and completion"),
        ({}, {"with_rejected": True}, "not the better and the worse answer that game.algorithm offline learns from"),
    ],
)
def test_columns_that_do_not_do_are_one_line(
    tmp_path: Path, renderer: Renderer, columns: dict[str, str], asked: dict[str, Any], line: str
) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, renderer, lines({"Frage": "p", "Antwort": "c"}), columns=columns, asked=asked)
    assert line in str(error.value)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"prompt": "p", "completion": "c", "category": "x"},
            "has prompt and completion and no other answer; game.algorithm offline needs the columns chosen and rejected; "
            "for this file set game.algorithm alpha-spin",
        ),
        ({"prompt": "p", "good": "c", "bad": "d"}, "for instance data.columns={prompt: prompt, chosen: good, rejected: bad}"),
        (
            {"category": "x", "prompt": "p", "better": "c"},
            "for instance data.columns={prompt: prompt, chosen: ..., rejected: ...}",
        ),
    ],
)
def test_pairs_are_asked_for_where_there_are_none(tmp_path: Path, renderer: Renderer, row: dict[str, str], line: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, renderer, lines(row), asked={"with_rejected": True})
    assert str(error.value).endswith(line)


def test_faulty_rows_of_a_csv_cost_no_more_than_their_lines(tmp_path: Path, renderer: Renderer) -> None:
    content = b'prompt,completion\na,b\nc,d,e\n"f"g,h\n\xff,i\nj,k\nl,m\nn,o\n'
    rows = read(tmp_path, renderer, content, "d.csv")
    assert rows.completions == ["b", "k", "m", "o"]
    kinds = ("with more or fewer cells than the header", "with faulty quotes", "that are not UTF-8")
    places = [rows.first[f"{kind}, left out"] for kind in kinds]
    assert places == ["line 3", "line 4, ',' expected after '\"'", "line 5"]


def test_a_cell_that_is_too_long_is_called_so_and_a_column_without_a_name_is_listed(tmp_path: Path, renderer: Renderer) -> None:
    content = f",prompt,completion\n0,a,b\n1,{'c' * 140_000},d\n2,e,f\n".encode()
    rows = read(tmp_path, renderer, content, "d.csv")
    assert rows.completions == ["b", "f"]
    assert rows.counts["with cells that are too long, or a quote that is not closed, left out"] == 1
    assert rows.layouts == ["prompt and completion (its other columns are not read: one without a name)"]


def test_text_of_a_parquet_file_that_is_not_utf8_is_left_out(tmp_path: Path, renderer: Renderer) -> None:
    texts = pa.array([b"abc", b"\xff", b"xyz"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": ["p", "q", "r"], "completion": texts}), tmp_path / "p.parquet")
    rows = read(tmp_path, renderer, (tmp_path / "p.parquet").read_bytes(), "d.parquet")
    assert (rows.completions, rows.first["that are not UTF-8, left out"]) == (["abc", "xyz"], "row 2")


def test_a_data_set_of_several_configurations_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder, which `datasets` loads as it does a repository."""
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    configs = "\n".join(f"- {{config_name: {n}, data_files: [{{split: train, path: {n}.jsonl}}]}}" for n in ("one", "two"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    for name, row in (("one", {"prompt": "p", "completion": "c"}), ("two", {"question": "q", "answer": "a"})):
        (tmp_path / f"{name}.jsonl").write_bytes(lines(row))

    def found(name: str | None) -> Any:
        (row,) = conversations(
            Source(str(tmp_path), "main", "test"), Data(path="x"), "data.path", "train", "category", name=name
        )
        return row

    assert (found("one").answer, found("two").answer) == ("c", "a")
    with pytest.raises(InputError, match=r"Config name is missing.*'one', 'two'.*; set data\.name"):
        found(None)


def test_prompts_alone_suffice_where_nothing_needs_answers(tmp_path: Path, renderer: Renderer) -> None:
    """A file of prompts, and conversations that end in a question; with an answer, a row is as ever."""
    alone: dict[str, Any] = {"needs_answers": None}
    rows = read(tmp_path, renderer, lines({"prompt": "sort: cab"}, {"prompt": [ASKED]}), asked=alone)
    full = read(tmp_path, renderer, lines({"prompt": "sort: cab", "completion": "abc"}), asked=alone)
    mixed = read(tmp_path, renderer, lines(chat(ASKED), chat(ASKED, RIGHT)), asked=alone)
    assert all(list(some.prompt(0)) == list(full.prompt(0)) for some in (rows, mixed))
    assert (rows.answered(range(2)), mixed.answered(range(2)), full.answered([0])) == ([], [1], [0])
    assert (rows.completions, mixed.completions) == (["", ""], ["", "abc"])
    assert mixed.ids[1] == full.ids[0] == read(tmp_path, renderer, lines(chat(ASKED, RIGHT))).ids[0]
    assert mixed.counts["prompts without an answer"] == 1


def test_rows_that_occur_again_are_counted(tmp_path: Path, renderer: Renderer) -> None:
    rows = read(tmp_path, renderer, lines(*({"prompt": p, "completion": c} for p, c in ["pa", "pa", "pb", "qa"])))
    again = {"rows that occurred before": 1, "rows whose prompt occurred before with another answer": 1}
    assert rows.counts == {"rows read": 4, **again}
    assert list(rows.first.values()) == ["line 1", "line 2", "line 3"]
    assert rows.counts_lines(Data(path="x"))[1:] == [
        "1 duplicate row (first: line 2)",
        "1 row with an earlier prompt and another answer (first: line 3)",
    ]
    held = read(tmp_path, renderer, lines(*({"prompt": p, "completion": c} for p, c in ["pa", "qb", "ra"])))
    assert overlap(rows, range(4), held, range(3)) == (1, 2)
    assert overlap(rows, [3], held, range(3)) == (0, 1)
    assert overlap(rows, range(1, 4), rows, [0]) == (1, 1)  # set aside, and still there once more


@pytest.mark.parametrize(
    "change", [{"columns": {"prompt": "q"}}, {"system_prompt": "s"}, {"turns": "all"}], ids=lambda change: next(iter(change))
)
def test_a_key_has_no_option_that_was_not_given(change: dict[str, Any]) -> None:
    source, model = Source("d.jsonl", None, "bytes"), Source("base", None, "model")
    limits = {"turns": "first", "max_prompt_length": 512, "max_completion_length": 512}
    named = {"source": "bytes", "split": None, "model": "model", "template": None}
    key: Callable[[Data], str] = lambda data: prepared_key(source, model, data, None, "train")  # noqa: E731
    assert key(Data(path="d.jsonl", name="main")) == digest({"kind": "data", "version": VERSIONS["data"], **named, **limits})
    assert key(Data(path="d.jsonl", **change)) != key(Data(path="d.jsonl"))


def test_an_answer_that_other_trainers_leave_out_is_counted(tmp_path: Path, renderer: Renderer) -> None:
    chats = [chat(ASKED, {**RIGHT, "weight": 0}), chat(ASKED, {**RIGHT, "train": False}), chat(ASKED, {**RIGHT, "weight": 1})]
    rows = read(tmp_path, renderer, lines(*chats))
    assert len(rows) == 3
    assert [kind for kind in rows.counts if "learned from" in kind] == [
        f"with {name!r} 0 beside the answer, which is learned from all the same" for name in ("weight", "train")
    ]


def test_a_column_that_is_named_and_not_read_is_listed(tmp_path: Path, renderer: Renderer) -> None:
    content = lines({"q": "p", "m": [ASKED, RIGHT], "s": "Be brief."})
    rows = read(tmp_path, renderer, content, columns={"prompt": "q", "messages": "m", "system": "s"})
    assert rows.layouts == ["messages (its other columns are not read: q)"]
    rows = read(tmp_path, renderer, lines({"q": "p", "b": "c", "w": "d"}), columns={"prompt": "q", "chosen": "b"})
    assert rows.layouts == ["chosen (its other columns are not read: w)"]
