"""Reads, renders and filters a data set: instruction data to rows of token ids."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from lowmem_spin.algorithm.source_hashes import VERSIONS
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.data_config import Data
from lowmem_spin.data.chat_templates import TEMPLATES
from lowmem_spin.data.formats import Conversation, Unusable, conversations
from lowmem_spin.data.render import Rendered, Renderer
from lowmem_spin.data.rows import (
    AGAIN,
    ASKED_AGAIN,
    CONVERSATIONS,
    CUT,
    ENDED_EARLY,
    LEFT_OUT,
    OVER_LONG,
    PREFERENCES,
    READ,
    SCHEMA,
    counted,
    counts_lines,
    left_out,
)
from lowmem_spin.data.sources import Source


def prepared_key(
    source: Source,
    model: Source,
    data: Data,
    template: str | None,
    split: str,
    with_rejected: bool = False,
    prompts_alone: bool = False,
    name: str | None = None,
) -> str:
    """Key of the prepared rows: what they are read from and everything that shapes their token ids.

    The category labels are not in it: they change no row.

    Args:
        source: the data.
        model: whose tokenizer and, without `template`, whose chat template make token ids of it.
        data: limits, columns and what is added.
        template: the recipe's chat template.
        split: of a hub data set.
        with_rejected: whether rows have the data's worse answers too.
        prompts_alone: whether rows without an answer are rows.
        name: configuration of a hub data set.
    """
    limits = data.model_dump(include={"turns", "max_prompt_length", "max_completion_length"})
    asked = {"source": source.identity, "split": None if source.local else split}
    rendered = {"model": model.identity, "template": TEMPLATES.get(template or "", template)}
    chosen = {  # each is left out where it changes nothing, so that earlier keys stay
        "worse": with_rejected,
        "alone": prompts_alone,
        "name": None if source.local else name,
        "columns": data.columns.model_dump(exclude_none=True),
        "system_prompt": data.system_prompt,
        "template arguments": data.chat_template_kwargs,
        "template date": data.changed_date,
        "long_prompts": data.long_prompts if data.long_prompts != "drop" else None,
    }
    chosen = {option: value for option, value in chosen.items() if value}
    return digest({"kind": "data", "version": VERSIONS["data"], **asked, **rendered, **limits, **chosen})


class RowCounts:
    """How many rows there were of each kind, and where the first of them was."""

    def __init__(self) -> None:
        self.number: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.layouts: Counter[str] = Counter()  # what rows were read as
        self.last: str | None = None  # the place of the last row
        self.broken = 0  # rows that do not look like a row of such a file at all

    def add(self, kind: str, place: str) -> None:
        self.number[kind] += 1
        self.first.setdefault(kind, place)

    def read(self, row: Conversation | Unusable, turns: str) -> bool:
        """Count a row that was read, and whether it can be used."""
        if turns == "all" and self.last != row.place:  # then a conversation has as many rows as answers
            self.add(CONVERSATIONS, row.place)
            self.last = row.place
        self.add(READ, row.place)
        if isinstance(row, Unusable):
            self.broken += row.broken
            self.add(row.reason + LEFT_OUT, f"{row.place}, {row.detail}" if row.detail else row.place)
            return False
        self.layouts[row.layout] += 1
        for note in row.notes:
            self.add(note, row.place)
        return True

    @property
    def used(self) -> int:
        return self.number[READ] - left_out(self.number)

    def lines(self, data: Data) -> list[str]:
        return counts_lines(self.number, self.first, self.layouts, data)

    def why_left_out(self, data: Data) -> str:
        """The most frequent reasons; empty if every row can be used."""
        reasons = Counter({kind: count for kind, count in self.number.items() if kind.endswith(LEFT_OUT)}).most_common(3)
        return ", ".join(f"{counted(kind, count, data)} (first: {self.first[kind]})" for kind, count in reasons)

    def refuse_if_useless(self, named: str, data: Data) -> None:
        """Refuse a file of which nothing is left, or most of which is no row: that is not the file it was taken for.

        Raises:
            InputError: with the most frequent reasons.
        """
        if self.used and self.broken <= self.number[READ] / 2:
            return
        if self.number[READ] and self.number[OVER_LONG] == self.number[READ]:
            raise InputError(f"{named} has no usable row: every prompt is over data.max_prompt_length {data.max_prompt_length}")
        why = self.why_left_out(data)
        if not self.used:
            raise InputError(f"{named} has no usable row" + (f": {why}" if why else ": it is empty"))
        share = f"{self.broken:,} of {self.number[READ]:,} rows"
        raise InputError(f"{named}: {share} are no rows of such a file, so it may be another kind of file than it seems: {why}")

    def metadata(self) -> dict[str, str]:
        return {
            "counts": json.dumps(self.number),
            "first": json.dumps(self.first),
            "layouts": json.dumps(list(self.layouts)),
        }


def count_rows(rows: Iterable[Conversation | Unusable], named: str, data: Data) -> RowCounts:
    """What a file has before it is rendered: what a plan can say of it. Raises as `prepare` does."""
    counts = RowCounts()
    for row in rows:
        counts.read(row, data.turns)
    counts.refuse_if_useless(named, data)
    return counts


def prepare(
    source: Source,
    data: Data,
    field: str,
    split: str,
    category: str,
    renderer: Renderer,
    with_rejected: bool = False,
    needs_answers: str | None = "self-play",
    name: str | None = None,
) -> pa.Table:
    """Read, render and filter a data set; see formats.conversations for the arguments. A prompt alone has no chosen tokens.

    Rows that cannot be used are counted and left out; over-long answers are counted and lose their end of turn, for they do
    not end there. The counts are in the table's metadata: "rows read" are the rows of the file, or with `data.turns: all` the
    answers in its conversations, and each is either a row of the table or counted as left out.

    Raises:
        InputError: no row can be used, or most are broken.
    """
    counts, seen = RowCounts(), Counter[str]()
    schema = PREFERENCES if with_rejected else SCHEMA
    columns: dict[str, list[Any]] = {column: [] for column in schema.names}
    rows = conversations(source, data, field, split, category, with_rejected, needs_answers, name)
    for batch in _batches(rows, 1000):
        for row, rendered in _rendered(batch, renderer):
            if not counts.read(row, data.turns) or (kept := _limited(row, rendered, data, counts)) is None:
                continue
            content = np.asarray([*kept["prompt"], -1, *kept["chosen"], *([-1, *kept["rejected"]] if with_rejected else [])])
            content = hashlib.sha256(content.astype(np.int32).tobytes()).hexdigest()[:20]
            seen[content] += 1  # a row that occurs twice is two rows, as in the user's data
            prompt = "prompt " + hashlib.sha256(np.asarray(kept["prompt"], np.int32).tobytes()).hexdigest()[:20]
            seen[prompt] += 1
            if seen[content] > 1:
                counts.add(AGAIN, row.place)
            elif seen[prompt] > 1:
                counts.add(ASKED_AGAIN, row.place)
            kept["id"] = f"{content}-{seen[content]}" if seen[content] > 1 else content
            for column, values in columns.items():
                value = kept[column]
                values.append(np.asarray(value, np.int32) if isinstance(value, list) else value)  # a ninth of lists
    counts.refuse_if_useless(f"{field}: {source.location!r}", data)
    return pa.table(columns, schema=schema.with_metadata(counts.metadata()))


ALONE = "prompts without an answer"


def _rendered(
    batch: list[Conversation | Unusable], renderer: Renderer
) -> Iterator[tuple[Conversation | Unusable, list[Rendered | str]]]:
    """Every row with its answers as token ids: the chosen one and, where there is one, the rejected one."""
    usable = [row for row in batch if isinstance(row, Conversation)]
    chosen = renderer([(row.context, "answer" if row.answer is None else row.answer) for row in usable])
    rejected = renderer([(row.context, row.rejected) for row in usable if row.rejected is not None])
    for row in batch:
        if isinstance(row, Unusable):
            yield row, []
        else:
            yield row, [next(chosen), *([next(rejected)] if row.rejected is not None else [])]


def _limited(row: Any, rendered: list[Rendered | str], data: Data, counts: RowCounts) -> dict[str, Any] | None:
    """The columns of a row that is within the limits, else None; counted either way."""
    answers: list[Rendered] = []
    drops, most = data.long_prompts == "drop", data.max_prompt_length
    for answer in rendered:
        if isinstance(answer, str) or (drops and len(answer.prompt) > most):
            counts.add(f"{answer}{LEFT_OUT}" if isinstance(answer, str) else OVER_LONG, row.place)
            return None
        answers.append(answer)
    if len(answers[0].prompt) > most:
        counts.add(CUT, row.place)
        answers = [answer._replace(prompt=answer.prompt[-most:]) for answer in answers]
    if row.answer is None:
        counts.add(ALONE, row.place)
        answers = [answers[0]._replace(completion=[], text="")]
    limit = data.max_completion_length
    for answer in answers:
        for note in (*answer.notes, *([ENDED_EARLY] if len(answer.completion) > limit else [])):
            counts.add(note, row.place)
    chosen, rejected = answers[0], [answer.completion[:limit] for answer in answers[1:]]
    kept = {"prompt": chosen.prompt, "chosen": chosen.completion[:limit], "truncated": len(chosen.completion) > limit}
    kept |= {"completion": chosen.text, "category": row.category, "messages": json.dumps(row.context)}
    return kept | ({"rejected": rejected[0]} if rejected else {})


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
