"""From rows to token ids: every layout, the one renderer, nothing cut silently, seeded draws."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lowmem_spin.algorithm.stages import Draw
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Data
from lowmem_spin.data.formats import Conversation, conversations
from lowmem_spin.data.prepare import prepare
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.rows import Rows, draw_rows, hold_out
from lowmem_spin.data.sources import Source

QUESTION, ANSWER = {"role": "user", "content": "sort: cab"}, {"role": "assistant", "content": "abc"}
MORE = [{"role": "user", "content": "and zyx?"}, {"role": "assistant", "content": "xyz"}]


@pytest.fixture(scope="module")
def tokenizer(quickstart: Path) -> Any:
    return AutoTokenizer.from_pretrained(quickstart / "base")


def write(path: Path, rows: list[Any]) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(str(path), None, "test")


def prepared(source: Source, tokenizer: Any, template: str | None = None, **options: Any) -> Rows:
    data = Data(path="x", **options)
    return Rows(prepare(source, data, "data.path", "train", "category", Renderer(tokenizer, template)))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, ANSWER, *MORE]},
        {"prompt": "sort: cab", "completion": "abc"},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"real": [QUESTION, ANSWER], "generated": [QUESTION, {"role": "assistant", "content": "junk"}]},
    ],
)
def test_every_layout_gives_the_same_row(tmp_path: Path, tokenizer: Any, row: dict[str, Any]) -> None:
    rows = prepared(write(tmp_path / "d.jsonl", [row]), tokenizer)
    assert tokenizer.decode(rows.prompt(0)) == "<bos><user>sort: cab<end_of_turn><model>"
    assert tokenizer.decode(rows.chosen(0)) == "abc<end_of_turn>"
    assert rows.completions == ["abc"]


WRONG = {"role": "assistant", "content": "cab"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "sort: cab", "chosen": "abc", "rejected": "cab"},
        {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, WRONG]},
        {"prompt": "sort: cab", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION, WRONG]},  # as UltraFeedback has it
        {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [WRONG]},
        {"prompt": [QUESTION], "chosen": "abc", "rejected": "cab"},
    ],
)
def test_every_layout_of_preferences_gives_the_same_row(tmp_path: Path, tokenizer: Any, row: dict[str, Any]) -> None:
    source = write(tmp_path / "d.jsonl", [row])
    rows = Rows(
        prepare(source, Data(path="x"), "data.path", "train", "category", Renderer(tokenizer, None), with_rejected=True)
    )
    assert tokenizer.decode(rows.prompt(0)) == "<bos><user>sort: cab<end_of_turn><model>"
    assert tokenizer.decode(rows.chosen(0)) == "abc<end_of_turn>"
    assert tokenizer.decode(rows.rejected(0)) == "cab<end_of_turn>"
    assert rows.messages(0) == [QUESTION]
    better = prepared(source, tokenizer)  # what a game of another kind reads of it
    assert list(better.chosen(0)) == list(rows.chosen(0)) and better.ids != rows.ids


def test_preferences_may_be_about_a_later_turn_and_long_answers_end_early(tmp_path: Path, tokenizer: Any) -> None:
    later = [QUESTION, ANSWER, MORE[0]]
    row = {"chosen": [*later, MORE[1]], "rejected": [*later, {"role": "assistant", "content": "z" * 30}]}
    data, renderer = Data(path="x", max_completion_length=20), Renderer(tokenizer, None)
    source = write(tmp_path / "d.jsonl", [row])
    rows = Rows(prepare(source, data, "data.path", "train", "category", renderer, with_rejected=True))
    assert tokenizer.decode(rows.prompt(0)).endswith("abc<end_of_turn><user>and zyx?<end_of_turn><model>")
    assert (rows.completions, tokenizer.decode(rows.rejected(0))) == (["xyz"], "z" * 20)
    assert rows.counts == {"rows read": 1, "answers over the limit, ended early": 1}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt": "p", "completion": "c"}, "line 1 has no 'chosen' answer, which game.algorithm offline learns from; it has"),
        ({"prompt": "p", "chosen": "c"}, "line 1 has no 'rejected' answer"),
        ({"prompt": "p", "chosen": "c", "rejected": " "}, "line 1: its 'rejected' is no answer to a question"),
        ({"prompt": "p", "chosen": "c", "rejected": None}, "line 1: its messages must be a list of {role, content} texts"),
        ({"chosen": "c", "rejected": "r"}, "line 1: its 'chosen' is no answer to a question"),
        ({"chosen": [QUESTION], "rejected": [QUESTION]}, "line 1: its 'chosen' is no answer to a question"),
        ({"chosen": [], "rejected": []}, "line 1: its 'chosen' is no answer to a question"),
        ({"chosen": [MORE[0], ANSWER], "rejected": [QUESTION, WRONG]}, "chosen and rejected answer different conversations"),
        ({"prompt": 3, "chosen": "c", "rejected": "r"}, "line 1: its messages must be a list of {role, content} texts"),
        ([1], "line 1 is list, not a row with columns"),
    ],
)
def test_rows_that_are_no_preference_are_named(tmp_path: Path, tokenizer: Any, row: Any, line: str) -> None:
    source = write(tmp_path / "d.jsonl", [row])
    with pytest.raises(InputError) as error:
        prepare(source, Data(path="x"), "data.path", "train", "category", Renderer(tokenizer, None), with_rejected=True)
    assert line in str(error.value) and str(error.value).startswith("data.path: line 1") and "\n" not in str(error.value)


def test_parquet_reads_as_jsonl_does(tmp_path: Path, tokenizer: Any) -> None:
    pq.write_table(pa.Table.from_pylist([{"messages": [QUESTION, ANSWER]}]), tmp_path / "d.parquet")
    rows = prepared(Source(str(tmp_path / "d.parquet"), None, "test"), tokenizer)
    assert tokenizer.decode(rows.chosen(0)) == "abc<end_of_turn>"


def turns(place: Path) -> Iterator[str]:
    source = Source(str(place), None, "test")
    for row in conversations(source, Data(path="x"), "data.path", "train", "category", False):
        assert isinstance(row, Conversation)
        yield row.answer


@pytest.mark.parametrize("group", [700, 100_000])
def test_parquet_is_read_in_order_and_never_whole(tmp_path: Path, group: int) -> None:
    rows = [{"messages": [QUESTION, {"role": "assistant", "content": f"{n} " * 20}]} for n in range(20_000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=group)
    tracemalloc.start()
    pq.read_table(tmp_path / "d.parquet").to_pylist()
    _, whole = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    for row, answer in zip(rows, turns(tmp_path / "d.parquet"), strict=True):
        assert answer == row["messages"][1]["content"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < whole / 5


def test_a_row_is_named_by_its_number_in_the_whole_parquet_file(tmp_path: Path) -> None:
    rows = [{"messages": [QUESTION, ANSWER]}] * 2099 + [{"messages": [QUESTION]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=700)
    with pytest.raises(InputError, match="row 2100 has no question followed by an answer"):
        list(turns(tmp_path / "d.parquet"))


def without_footer(content: bytes) -> bytes:
    length = int.from_bytes(content[-8:-4], "little")
    return content[: -8 - length] + b"\xff" * length + content[-8:]


@pytest.mark.parametrize(
    "harm",
    [lambda content: content[:-9], lambda content: content.replace(b"PAR1", b"RAP1"), without_footer],
    ids=["truncated", "other format", "footer"],
)
def test_what_is_no_parquet_file_is_one_line(tmp_path: Path, harm: Callable[[bytes], bytes]) -> None:
    pq.write_table(pa.Table.from_pylist([{"messages": [QUESTION, ANSWER]}]), tmp_path / "d.parquet")
    (tmp_path / "d.parquet").write_bytes(harm((tmp_path / "d.parquet").read_bytes()))
    with pytest.raises(InputError, match="is not a Parquet file"):
        list(turns(tmp_path / "d.parquet"))


def test_all_turns_are_one_row_per_answer(tmp_path: Path, tokenizer: Any) -> None:
    rows = prepared(write(tmp_path / "d.jsonl", [{"messages": [QUESTION, ANSWER, *MORE]}]), tokenizer, turns="all")
    assert rows.completions == ["abc", "xyz"]
    assert tokenizer.decode(rows.prompt(1)).endswith("abc<end_of_turn><user>and zyx?<end_of_turn><model>")


def test_long_prompts_are_counted_and_left_out_and_long_answers_lose_their_end(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "p" * size, "completion": "c" * size} for size in (3, 30, 60)]
    kept = prepared(write(tmp_path / "d.jsonl", rows), tokenizer, max_prompt_length=40, max_completion_length=20)
    assert kept.counts == {"rows read": 3, "prompts over the limit, left out": 1, "answers over the limit, ended early": 1}
    assert kept.table["truncated"].to_pylist() == [False, True]
    assert tokenizer.decode(kept.chosen(1)) == "c" * 20  # no end of turn that the data does not have there


def test_a_row_that_occurs_twice_is_two_rows(tmp_path: Path, tokenizer: Any) -> None:
    rows = prepared(write(tmp_path / "d.jsonl", [{"prompt": "p", "completion": "c"}] * 2), tokenizer)
    assert len(set(rows.ids)) == 2


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"prompt": "p", "completion": "c"}\n{"prompt": \n', "data.path: line 2 is not JSON"),
        ('{"prompt": "p", "completion": "  "}\n', "has no usable row: 1 with an empty answer, left out"),
        ('{"question": "p"}\n', "data.path: line 1 has columns ['question']; needed: messages, or real"),
        ("", "has no usable row"),
        ('{"prompt": "' + "p" * 600 + '", "completion": "c"}\n', "every prompt is over data.max_prompt_length 512"),
        ('{"prompt": 3, "completion": "c"}\n', "line 1: its messages must be a list of {role, content} texts"),
        ("[1, 2]\n", "line 1 is list, not a row with columns"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, tokenizer: Any, content: str, line: str) -> None:
    (tmp_path / "d.jsonl").write_text(content)
    with pytest.raises(InputError) as error:
        prepared(Source(str(tmp_path / "d.jsonl"), None, "test"), tokenizer)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


IDS = [f"row {n}" for n in range(200)]


@given(st.integers(0, 200), st.integers(0, 5), st.permutations(range(200)))
def test_draws_depend_on_seed_round_and_rows_alone(count: int, seed: int, order: list[int]) -> None:
    asked = Draw("data", seed, 1, count)
    drawn = [IDS[place] for place in draw_rows(IDS, asked)]
    assert len(set(drawn)) == count  # without replacement
    shuffled = [IDS[place] for place in order]
    assert [shuffled[place] for place in draw_rows(shuffled, asked)] == drawn  # whatever the order of the file
    assert [IDS[place] for place in draw_rows(IDS, Draw("data", seed, 1, 200))][:count] == drawn  # a head of the larger draw


def test_rounds_draw_independently_and_a_fixed_set_does_not() -> None:
    first, second = (set(draw_rows(IDS, Draw("data", 0, t, 100))) for t in (0, 1))
    assert 30 < len(first & second) < 70
    assert draw_rows(IDS, Draw("data", 0, None, 100)) == draw_rows(IDS, Draw("other", 0, None, 100))


def test_too_many_pairs_and_rows_set_aside() -> None:
    with pytest.raises(InputError, match=r"game\.pairs: 201 prompts asked of 200 usable rows"):
        draw_rows(IDS, Draw("data", 0, 0, 201))
    kept, learned = hold_out(IDS, 256)
    assert len(kept) == 20
    assert sorted([*kept, *learned]) == list(range(200))
