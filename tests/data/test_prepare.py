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

from helpers.draws import draw_rows
from lowmem_spin.algorithm.pair_sources import Draw
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.parquet import ParquetTable, write_parquet
from lowmem_spin.config.data_config import Data
from lowmem_spin.data.formats import Conversation, Unusable, conversations
from lowmem_spin.data.prepare import prepare, prepared_key
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.rows import Rows, hold_out
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


def test_some_rows_are_what_they_are_among_all_in_the_order_that_is_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "d.jsonl", [{"prompt": f"sort: {n}", "completion": f"{n}"} for n in range(600)])
    whole = prepared(source, tokenizer)
    assert isinstance(whole.table, pa.Table)
    write_parquet(tmp_path / "rows.parquet", whole.table)
    for rows in (whole, Rows(ParquetTable(tmp_path / "rows.parquet"))):
        for places in ([], [599], [250, 3, 400, 0, 249], range(600)):
            some = rows.only(places)
            assert some.ids == [whole.ids[place] for place in places]
            assert some.completions == [str(place) for place in places]
            assert [tokenizer.decode(some.chosen(n)) for n in range(len(some))] == [f"{place}<end_of_turn>" for place in places]
            assert [some.messages(n)[0]["content"] for n in range(len(some))] == [f"sort: {place}" for place in places]
        assert rows.head(3).ids == whole.ids[:3] and rows.head(1000).ids == whole.ids


def test_preferences_may_be_about_a_later_turn_and_long_answers_end_early(tmp_path: Path, tokenizer: Any) -> None:
    later = [QUESTION, ANSWER, MORE[0]]
    row = {"chosen": [*later, MORE[1]], "rejected": [*later, {"role": "assistant", "content": "z" * 30}]}
    data, renderer = Data(path="x", max_completion_length=20), Renderer(tokenizer, None)
    source = write(tmp_path / "d.jsonl", [row])
    rows = Rows(prepare(source, data, "data.path", "train", "category", renderer, with_rejected=True))
    assert tokenizer.decode(rows.prompt(0)).endswith("abc<end_of_turn><user>and zyx?<end_of_turn><model>")
    assert (rows.completions, tokenizer.decode(rows.rejected(0))) == (["xyz"], "z" * 20)
    assert rows.counts == {"rows read": 1, "answers over the limit, ended early": 1}


def test_parquet_reads_as_jsonl_does(tmp_path: Path, tokenizer: Any) -> None:
    pq.write_table(pa.Table.from_pylist([{"messages": [QUESTION, ANSWER]}]), tmp_path / "d.parquet")
    rows = prepared(Source(str(tmp_path / "d.parquet"), None, "test"), tokenizer)
    assert tokenizer.decode(rows.chosen(0)) == "abc<end_of_turn>"


def turns(place: Path) -> Iterator[str]:
    source = Source(str(place), None, "test")
    for row in conversations(source, Data(path="x"), "data.path", "train", "category"):
        assert isinstance(row, Conversation) and row.answer is not None
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
    *_, last = conversations(
        Source(str(tmp_path / "d.parquet"), None, "test"), Data(path="x"), "data.path", "train", "category"
    )
    assert last == Unusable("row 2100", "without an answer")


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
    assert kept.counts_lines(Data(path="x", max_prompt_length=40, max_completion_length=1024)) == [
        "read as prompt and completion: 3 rows read, 2 used",
        "1 completion cut to data.max_completion_length (1,024 tokens) (first: line 2)",
        "1 prompt longer than data.max_prompt_length (40 tokens), left out (first: line 3)",
    ]
    assert kept.table.column("truncated").to_pylist() == [False, True]
    assert tokenizer.decode(kept.chosen(1)) == "c" * 20  # no end of turn that the data does not have there


def test_long_prompts_can_keep_their_last_tokens(tmp_path: Path, tokenizer: Any) -> None:
    """TRL's keep_end, tokens by tokens."""
    path = write(tmp_path / "d.jsonl", [{"prompt": "p" * size + "?", "completion": "c"} for size in (3, 60)])
    whole = prepared(path, tokenizer, max_prompt_length=100)
    kept = prepared(path, tokenizer, max_prompt_length=40, long_prompts="truncate_left")
    assert kept.counts == {"rows read": 2, "prompts over the limit, of which the last tokens are kept": 1}
    assert [list(kept.prompt(place)) for place in (0, 1)] == [list(whole.prompt(0)), list(whole.prompt(1))[-40:]]
    assert kept.completions == whole.completions
    source, model = Source("d", None, "data"), Source("m", None, "model")
    keys = [
        prepared_key(source, model, Data(path="d", long_prompts=choice), None, "train") for choice in ("drop", "truncate_left")
    ]
    assert len(set(keys)) == 2


def test_a_row_that_occurs_twice_is_two_rows(tmp_path: Path, tokenizer: Any) -> None:
    rows = prepared(write(tmp_path / "d.jsonl", [{"prompt": "p", "completion": "c"}] * 2), tokenizer)
    assert len(set(rows.ids)) == 2


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
    with pytest.raises(InputError, match=r"game\.pairs: 201 prompts are needed, but there are only 200 usable rows"):
        draw_rows(IDS, Draw("data", 0, 0, 201))
    kept, learned = hold_out(IDS, 256)
    assert len(kept) == 20
    assert sorted([*kept, *learned]) == list(range(200))
