"""Prepared rows, and seeded draws from them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from heapq import nsmallest
from itertools import compress

import numpy as np
import pyarrow as pa

from lowmem_spin.algorithm.pair_sources import Draw
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError
from lowmem_spin.common.keys import numbers
from lowmem_spin.common.parquet import ParquetTable, token_arrays
from lowmem_spin.config.data_config import Data
from lowmem_spin.data.column_layouts import Message

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


class Rows:
    """Prepared rows: prompt and chosen token ids by place, ids, categories, conversations, and what was left out.

    Each column is read when it is first asked for: a game that is finished needs no more of most rows than their ids.

    Raises:
        DamagedError: the table is not one that prepare.py makes.
    """

    def __init__(self, table: pa.Table | ParquetTable) -> None:
        if not any(table.schema.equals(known) for known in (SCHEMA, PREFERENCES)):
            raise DamagedError("has other columns than prepared rows")
        self.table, self._sides = table, dict[str, list[np.ndarray]]()
        metadata = table.schema.metadata or {}
        try:
            self.counts: dict[str, int] = json.loads(metadata.get(b"counts", b"{}"))
            self.first: dict[str, str] = json.loads(metadata.get(b"first", b"{}"))
            self.layouts: list[str] = json.loads(metadata.get(b"layouts", b"[]"))
        except ValueError as error:
            raise DamagedError("has counts of rows that do not read") from error

    def __len__(self) -> int:
        return self.table.num_rows

    def only(self, places: Sequence[int]) -> "Rows":
        """The rows at these places, in their order, without the others in memory."""
        asked = np.zeros(len(self), bool)
        asked[places] = True
        return Rows(self.table.filter(asked).take(np.argsort(np.argsort(places))))

    def head(self, most: int) -> "Rows":
        """The first rows."""
        return self.only(range(min(most, len(self))))

    def tokens(self) -> Iterable[pa.Table]:
        """The token ids of all rows, some rows at a time: prompt, chosen and, where there are any, rejected."""
        sides = [side for side in ("prompt", "chosen", "rejected") if side in self.table.schema.names]
        return self.table.batches(sides) if isinstance(self.table, ParquetTable) else [self.table.select(sides)]

    @cached_property
    def ids(self) -> list[str]:
        return self.table.column("id").to_pylist()

    @cached_property
    def categories(self) -> list[str | None]:
        return self.table.column("category").to_pylist()

    @cached_property
    def completions(self) -> list[str]:
        return self.table.column("completion").to_pylist()

    @cached_property
    def _messages(self) -> pa.ChunkedArray:
        return self.table.column("messages")

    def _side(self, name: str) -> list[np.ndarray]:
        if name not in self._sides:
            self._sides[name] = token_arrays(self.table.column(name))
        return self._sides[name]

    def prompt(self, position: int) -> np.ndarray:
        return self._side("prompt")[position]

    def chosen(self, position: int) -> np.ndarray:
        return self._side("chosen")[position]

    def rejected(self, position: int) -> np.ndarray:
        return self._side("rejected")[position]

    def answered(self, positions: Sequence[int]) -> list[int]:
        """Those of these places that the data has an answer to; a prompt alone has no chosen tokens."""
        return [position for position in positions if len(self.chosen(position))]

    def counts_lines(self, data: Data) -> list[str]:
        """What the file was read as and how many rows it has; then a line for each kind of thing that became of them."""
        return counts_lines(self.counts, self.first, self.layouts, data)

    def messages(self, position: int) -> list[Message]:
        """The conversation that the answer continues."""
        return json.loads(self._messages[position].as_py())


LEFT_OUT = ", left out"
OVER_LONG = f"prompts over the limit{LEFT_OUT}"
CUT = "prompts over the limit, of which the last tokens are kept"
ENDED_EARLY = "answers over the limit, ended early"
AGAIN, ASKED_AGAIN = "rows that occurred before", "rows whose prompt occurred before with another answer"
READ, CONVERSATIONS = "rows read", "conversations read"
IN_WORDS = {  # what is shown of a kind, one of them and several; the kinds themselves are stored
    AGAIN: ("duplicate row", "duplicate rows"),
    ASKED_AGAIN: ("row with an earlier prompt and another answer", "rows with an earlier prompt and another answer"),
    READ: ("row read", "rows read"),
    CONVERSATIONS: ("conversation read", "conversations read"),
    OVER_LONG: (f"prompt longer than {{prompt}}{LEFT_OUT}", f"prompts longer than {{prompt}}{LEFT_OUT}"),
    CUT: ("prompt longer than {prompt}, cut to its last tokens", "prompts longer than {prompt}, cut to their last tokens"),
    ENDED_EARLY: ("completion cut to {completion}", "completions cut to {completion}"),
}


def counted(kind: str, count: int, data: Data) -> str:
    """So many rows of a kind, in words, with the limit that was set where one decided."""
    limits = {
        side: f"data.max_{side}_length ({getattr(data, f'max_{side}_length'):,} tokens)" for side in ("prompt", "completion")
    }
    if kind in IN_WORDS:
        return f"{count:,} {IN_WORDS[kind][count != 1].format(**limits)}"
    noun = ("row " if count == 1 else "rows ") if kind.startswith(("with ", "without ", "whose ", "that ")) else ""
    if count == 1 and kind.startswith("that are "):
        kind = kind.replace("are no objects", "is no object").replace("that are", "that is")
    return f"{count:,} {noun}{kind}"


def counts_lines(number: Mapping[str, int], first: Mapping[str, str], layouts: Iterable[str], data: Data) -> list[str]:
    """Counts by kind as lines; see Rows.counts_lines."""
    read_as, used = " or ".join(layouts), number.get(READ, 0) - left_out(number)
    read = [counted(kind, number[kind], data) for kind in (CONVERSATIONS, READ) if kind in number]
    read += [f"{used:,} used"] if left_out(number) else []
    kinds = [kind for kind in number if kind not in (CONVERSATIONS, READ)]
    places = {kind: f" (first: {first[kind]})" if kind in first else "" for kind in kinds}
    return [
        (f"read as {read_as}: " if read_as else "") + ", ".join(read),
        *(counted(kind, number[kind], data) + places[kind] for kind in kinds),
    ]


def left_out(number: Mapping[str, int]) -> int:
    """How many rows are not used, of all kinds."""
    return sum(count for kind, count in number.items() if kind.endswith(LEFT_OUT))


def overlap(train: Rows, learned: Iterable[int], held: Rows, measured: Sequence[int]) -> tuple[int, int]:
    """Of the places `measured` of `held`: (those that are a row among the places `learned` of `train`, those and others whose
    prompt is one of theirs)."""
    answers_to = {held.prompt(position).tobytes(): set[bytes]() for position in measured}
    learns = np.zeros(len(train), bool)
    learns[np.fromiter(learned, np.int64)] = True
    rows = (row for part in train.tokens() for row in zip(*map(token_arrays, part.columns), strict=True))
    for prompt, chosen, *_ in compress(rows, learns):
        if (answers := answers_to.get(prompt.tobytes())) is not None:
            answers.add(chosen.tobytes())
    known = [(answers_to[held.prompt(position).tobytes()], held.chosen(position).tobytes()) for position in measured]
    return sum(answer in answers for answers, answer in known), sum(bool(answers) for answers, _ in known)


def shuffled(ids: Sequence[str], seed: int, turn: int | None) -> list[int]:
    """All places in the order of this seed and round (`turn`), which every draw is the head of.

    Each row's place in it is a hash of (seed, round, its id), so a draw does not depend on the order of the file, on alpha or
    on the history, and a smaller draw is the head of a larger one.
    """
    return [position for *_, position in sorted(zip(numbers(ids, seed, turn), ids, range(len(ids)), strict=True))]


def take(shuffled: Sequence[int], draw: Draw, field: str = "game.pairs") -> list[int]:
    """The part of an order that a draw takes.

    Raises:
        InputError: there are too few rows; the line names the field that asks for them.
    """
    if draw.start + draw.prompts > len(shuffled):
        others, remedy, lower = "", "", f"lower it to {len(shuffled)}"
        if draw.start:
            lower = "lower it"
            others = f", {draw.start} of them for other draws (data.resample split or game.sampler.own_prompts),"
            remedy = ", or let those of a split come again with data.prompt_sets" if draw.round is None else ""
        raise InputError(
            f"{field}: {draw.start + draw.prompts} prompts{others} are needed, but there are only {len(shuffled)} "
            f"usable rows; {lower} or give more data{remedy}"
        )
    return list(shuffled[draw.start : draw.start + draw.prompts])


def hold_out(ids: Sequence[str], count: int) -> tuple[list[int], list[int]]:
    """(places kept for measuring, places left to learn from): `count` rows, but at most a tenth of the data."""
    measured = fixed_sample(ids, min(count, len(ids) // 10))
    kept = set(measured)
    return measured, [position for position in range(len(ids)) if position not in kept]


def fixed_sample(ids: Sequence[str], count: int) -> list[int]:
    """`count` places, or all of them if there are fewer, the same for every seed."""
    return [position for *_, position in nsmallest(count, zip(numbers(ids, "head"), ids, range(len(ids)), strict=True))]
