"""Data sets as conversations, row by row. Layouts of columns are in column_layouts.py, kinds of files in readers.py."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from lowmem_spin.config.data_config import Data
from lowmem_spin.data.column_layouts import (
    ANSWERED,
    PREFERENCES,
    PROMPTS,
    REASONING,
    SYSTEM,
    UNREAD,
    WEIGHTS,
    Layout,
    Message,
    RowError,
    has,
    message,
    unread,
    with_system,
)
from lowmem_spin.data.columns import NO_OBJECT, describe_layout, layout_of, with_our_names
from lowmem_spin.data.readers import Unusable, is_text, read_rows
from lowmem_spin.data.sources import Source

HEAD = 1000  # rows by which a file's layout is found


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
    layout = layout_of(head, layouts, renamed, f"{field}: {source.location!r}", needs_answers)
    named = {theirs for ours, theirs in renamed.items() if not unread([ours], layout)}
    read_as = describe_layout(head, layout, {*named, category}, bool(renamed), for_game=field == "data.path")
    for place, row in chain(head, rows):
        try:
            yield from _row(place, row, layout, read_as, data, renamed, category, with_rejected, needs_answers is None)
        except RowError as error:
            yield Unusable(place, error.reason, error.broken, error.detail)


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
    columns = with_our_names(row, renamed) if renamed else row
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


def conversation_text(context: list[Message]) -> str:
    """A conversation as a person reads it; a single question is just its text."""
    if len(context) == 1:
        return context[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in context)
