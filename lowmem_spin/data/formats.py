"""Data sets as conversations, read row by row. The layouts of columns are in layouts.py, the kinds of files in readers.py."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.data_config import Data
from lowmem_spin.config.yaml_text import YAMLTextError, read_yaml
from lowmem_spin.data.layouts import (
    ALIKE,
    ANSWERED,
    PREFERENCES,
    PROMPTS,
    QUESTIONS,
    REASONING,
    SYSTEM,
    UNREAD,
    WEIGHTS,
    Layout,
    Message,
    Row,
    RowError,
    alike,
    find_layout,
    has,
    message,
    nearest,
    unread,
    with_system,
)
from lowmem_spin.data.readers import Unusable, is_text, read_rows
from lowmem_spin.data.sources import Source

HEAD = 1000  # rows by which a file's layout is found
NAMED, SAID = 20, 5  # columns that a line lists, of a file that is refused or read
WIDTH = 40  # characters of their names


class Conversation(NamedTuple):
    """A question with its answer, as the data has it."""

    place: str  # where it was read: "line 3"
    context: list[Message]  # the messages before the answer
    answer: str | None  # None: a prompt alone
    rejected: str | None  # the worse answer, where one is needed
    category: str | None
    layout: str = ""  # what the file was read as
    notes: tuple[str, ...] = ()  # what of it is not used, to be counted


def conversations(
    source: Source,
    data: Data,
    field: str,
    split: str,
    category: str,
    with_rejected: bool = False,
    needs_answers: str | None = "self-play",
    name: str | None = None,
) -> Iterator[Conversation | Unusable]:
    """What each row has to learn from, or why it has nothing; `data.turns` says which of its answers.

    Args:
        source: a file, or a data set on the hub.
        data: says which columns and turns are read, and what comes before them.
        field: the recipe's, for refusals.
        split: of a data set on the hub.
        category: the column of labels.
        with_rejected: whether each row is to have a worse answer too.
        needs_answers: what needs the rows' answers, for refusals; None: a row may be a prompt alone.
        name: which configuration of a data set on the hub.

    Raises:
        InputError: the file is of no layout that is known, or of no kind.
    """
    rows = iter(read_rows(source, field, split, name))
    head = list(islice(rows, HEAD))
    if not head:
        return
    layouts = PREFERENCES if with_rejected else ANSWERED if needs_answers else [*ANSWERED, *PROMPTS]
    renamed = {ours: theirs for ours, theirs in data.columns if theirs is not None and (ours != "rejected" or with_rejected)}
    layout = _layout(head, layouts, renamed, f"{field}: {source.location!r}", needs_answers)
    named = {theirs for ours, theirs in renamed.items() if not unread([ours], layout)}
    read_as = _read_as(head, layout, {*named, category}, bool(renamed), for_game=field == "data.path")
    for place, row in chain(head, rows):
        try:
            yield from _row(place, row, layout, read_as, data, renamed, category, with_rejected, needs_answers is None)
        except RowError as error:
            yield Unusable(place, error.reason, error.broken, error.detail)


def _layout(
    head: Sequence[tuple[str, Any]], layouts: Sequence[Layout], renamed: dict[str, str], named: str, needs_answers: str | None
) -> Layout:
    """What the file is read as, by its first rows."""
    rows = [row for _, row in head if isinstance(row, dict)]
    if not rows:
        place, row = next(iter(head))
        reason = row.reason if isinstance(row, Unusable) else NO_OBJECT
        needed = "; needed: one object with columns on each line, or one array of such objects" if reason in NO_ROWS else ""
        raise InputError(f"{named} has rows {reason} and no other (first: {place}){needed}")
    columns = _columns(head)
    for ours, theirs in renamed.items():
        if theirs not in columns:
            raise InputError(f"{named} has no column {theirs!r}, which data.columns.{ours} names; it has {_listed(columns)}")
    if renamed:
        rows = [_renamed(row, renamed) for row in rows]
    layout = find_layout(rows, layouts)
    if layout is not None:
        return layout
    if renamed:
        needed = ", or ".join(dict.fromkeys(" and ".join(one.columns) for one in layouts[:4]))
        raise InputError(f"{named}: data.columns names {' and '.join(renamed)}; needed: {needed}")
    why = "no layout that is known"
    names = ("prompt", "completion")
    if layouts is PREFERENCES:
        answered = find_layout(rows, ANSWERED)
        if answered is not None and not all(
            max(alike(name, one) for one in columns) >= ALIKE for name in PREFERENCES[0].columns
        ):
            has_only = f"{named} has {' and '.join(answered.columns)} and no other answer"
            needed = "game.algorithm offline needs the columns chosen and rejected"
            raise InputError(f"{has_only}; {needed}; for this file set game.algorithm alpha-spin")
        why, names = (
            "not the better and the worse answer that game.algorithm offline learns from",
            ("prompt", "chosen", "rejected"),
        )
    elif find_layout(rows, PROMPTS) is not None:
        why = f"no answers that are known as such, which {needs_answers} needs"
    elif len(columns) == 1 and any(sign in columns[0] for sign in ";\t|"):
        raise InputError(f"{named} has one column, {_listed(columns)}; separate columns by commas, or in a .tsv file by tabs")
    elif len(rows) == len(columns) == 1 and isinstance(rows[0][columns[0]], list):
        raise InputError(f"{named} is one object with all rows in its {columns[0]!r}; save that list by itself")
    elif columns == ["text"]:
        why = "in which nothing says what is asked and what is answered"
    near = nearest(columns, layouts)
    similar = f"; the nearest layout is {' and '.join(near.columns)}" if near is not None else ""
    said = ", ".join(f"{name}: {_yaml(column)}" for name, column in zip(names, _guessed(columns, names), strict=True))
    raise InputError(
        f"{named} has the columns {_listed(columns)}, {why}{similar}: rename the columns, or name them, for instance "
        f"data.columns={{{said}}}"
    )


def _yaml(column: str) -> str:
    """A name as it can be written in a recipe."""
    try:
        plain = read_yaml(f"{{name: {column}}}") == {"name": column}
    except YAMLTextError:
        plain = False
    return column if plain else json.dumps(column, ensure_ascii=False)


def _guessed(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """For each name the column that may be it, or dots. As many columns as names are taken to be in the same order."""
    if len(columns) == len(names) and all(
        names.index(column) == columns.index(column) for column in columns if column in names
    ):
        return [column[:WIDTH] for column in columns]
    likest = [max(columns, key=lambda column: alike(name, column), default="") for name in names]
    return [column[:WIDTH] if alike(name, column) >= ALIKE else "..." for name, column in zip(names, likest, strict=True)]


def _read_as(head: Iterable[tuple[str, Any]], layout: Layout, read: set[str], renamed: bool, for_game: bool) -> str:
    """What a file is read as, with the columns that are not looked at, for the line that reports the rows."""
    given = [(place, {name: row[name] for name in row if has(row, name)}) for place, row in head if isinstance(row, dict)]
    columns = [column for column in _columns(given) if column not in read]
    left = columns if renamed else unread(columns, layout)
    question = next((name for name in QUESTIONS if name in columns), None) if layout.columns == ("chosen",) else None
    name = layout.name if question is None or renamed else f"{question} and {layout.name}"
    worse = next(
        (pair.columns[1] for pair in PREFERENCES if layout.columns == pair.columns[:1] and pair.columns[1] in left), None
    )
    if worse is not None and for_game:
        left.remove(worse)
        name += f" ({worse!r} is not used: for DPO on these pairs set game.algorithm=offline)"
    more = f" and {len(left) - SAID} more" if len(left) > SAID else ""
    named = ", ".join(column[:WIDTH] or "one without a name" for column in left[:SAID])
    return name + (f" (its other columns are not read: {named}{more})" if left else "")


def _columns(head: Iterable[tuple[str, Any]]) -> list[str]:
    return list(dict.fromkeys(column for _, row in head if isinstance(row, dict) for column in row))


NO_OBJECT = "that are no objects with columns"
NO_ROWS = ("that are not JSON", NO_OBJECT)


def _listed(columns: Sequence[str]) -> str:
    named = [column if len(column) <= WIDTH else f"{column[:WIDTH]}..." for column in columns[:NAMED]]
    return str(named) + (f" and {len(columns) - NAMED} more" if len(columns) > NAMED else "")


def _renamed(row: Row, renamed: dict[str, str]) -> Row:
    return {ours: row[theirs] for ours, theirs in renamed.items() if theirs in row}


def _row(
    place: str,
    row: Any,
    layout: Layout,
    read_as: str,
    data: Data,
    renamed: dict[str, str],
    category: str,
    with_rejected: bool,
    prompts_alone: bool,
) -> Iterator[Conversation | Unusable]:
    """A row's conversations; raises RowError where it cannot be used, or not any further."""
    if isinstance(row, Unusable):
        yield row
        return
    if not isinstance(row, dict):
        raise RowError(NO_OBJECT, type(row).__name__, broken=True)
    foreign = next((column for column in UNREAD if has(row, column)), None)
    if foreign is not None:
        raise RowError(f"with a column {foreign!r}, which is not read")
    label = row.get(category)
    label = None if label is None else str(label)
    if label is not None and not is_text(label):
        raise RowError("with half a character (a lone surrogate)")
    columns = _renamed(row, renamed) if renamed else row
    lacking = layout.lacking(columns)
    if lacking:
        theirs = renamed.get(lacking[0], lacking[0])
        raise RowError(f"without {theirs!r}", broken=theirs not in row)
    system = ("with a system message in a column",) if any(has(columns, column) for column in SYSTEM) else ()
    if with_rejected:
        sides = [with_system(side, columns) for side in layout.read(columns)]
        (context, better), (other, lesser) = map(_ended, sides, layout.columns)
        if context != other:
            raise RowError("whose two answers are to different conversations")
        if better == lesser:
            raise RowError("whose two answers are the same")
        begun, noted = _begun(context, data)
        yield Conversation(
            place=place,
            context=begun,
            answer=better,
            rejected=lesser,
            category=label,
            layout=read_as,
            notes=(*system, *noted),
        )
        return
    turns = layout.read(columns)
    messages = with_system(turns, columns)
    own = 0 if data.turns == "all" else len(messages) - len(turns.after)  # an answer in its own column is the row's
    for context, answer, notes in _answers(messages, own, data.turns, prompts_alone):
        if answer is not None and not answer.strip():
            yield Unusable(place, "with an empty answer")
        elif not _question(context):
            yield Unusable(place, "with an empty question")
        else:
            begun, noted = _begun(context, data)
            yield Conversation(
                place=place,
                context=begun,
                answer=answer,
                rejected=None,
                category=label,
                layout=read_as,
                notes=(*system, *noted, *notes),
            )


def _answers(
    raw: Sequence[Any], own: int, turns: str, prompts_alone: bool
) -> Iterator[tuple[list[Message], str | None, tuple[str, ...]]]:
    """(the messages before it, the answer to a question, what of it is left unread) of the first from `own` on, or of all."""
    context: list[Message] = []
    asked = answered = False
    for place, turn in enumerate(raw):
        said = message(turn)
        if said["role"] == "assistant" and asked and place >= own:
            notes = tuple(f"with {name!r} beside the answer, which is not used" for name in REASONING if turn.get(name))
            named = (name for name in WEIGHTS if turn.get(name) in (0, "0"))
            notes += tuple(f"with {name!r} 0 beside the answer, which is learned from all the same" for name in named)
            yield list(context), said["content"], notes
            answered = True
            if turns == "first":
                return
        asked |= said["role"] == "user"
        context.append(said)
    if answered:
        return
    if prompts_alone and context and context[-1]["role"] == "user":
        yield context, None, ()
    elif not any(said["role"] == "user" for said in context):
        raise RowError("without a question")
    else:
        raise RowError("without an answer")


def _ended(raw: Sequence[Any], name: str) -> tuple[list[Message], str]:
    """(the messages before the last, which is an answer to them; the answer)."""
    messages = [message(turn) for turn in raw]
    if not messages or messages[-1]["role"] != "assistant":
        raise RowError(f"whose {name!r} is not an assistant message")
    *context, answer = messages
    if not any(said["role"] == "user" for said in context):
        raise RowError("without a question")
    if not answer["content"].strip():
        raise RowError(f"whose {name!r} is empty")
    if not _question(context):
        raise RowError("with an empty question")
    return context, answer["content"]


def _question(context: Sequence[Message]) -> str:
    return next(said["content"] for said in reversed(context) if said["role"] == "user").strip()


def _begun(context: list[Message], data: Data) -> tuple[list[Message], tuple[str, ...]]:
    """(the conversation after the recipe's system message, if it has none of its own; what to count)."""
    if data.system_prompt is None:
        return context, ()
    if context[0]["role"] in ("system", "developer"):
        return context, ("with a system message of their own in place of data.system_prompt",)
    return [{"role": "system", "content": data.system_prompt}, *context], ()
