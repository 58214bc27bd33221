"""Data sets as conversations, read row by row. A new layout of columns is one line in `LAYOUTS`."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Data
from lowmem_spin.data.readers import read_rows
from lowmem_spin.data.sources import Source

Message = dict[str, str]


class Conversation(NamedTuple):
    """A question with its answer, as the data has it."""

    place: str  # where it was read: "line 3"
    context: list[Message]  # the messages before the answer
    answer: str
    rejected: str | None  # the worse answer, where one is needed
    category: str | None


class Unusable(NamedTuple):
    """A row that is left out and counted."""

    place: str
    reason: str  # what is the matter with such rows, as in "3 with an empty answer"


def conversations(
    source: Source, data: Data, field: str, split: str, category: str, with_rejected: bool
) -> Iterator[Conversation | Unusable]:
    """What each row has to learn from, or why it has nothing; `data.turns` says which of its answers."""
    for place, row in read_rows(source, field, split):
        label = row.get(category) if isinstance(row, dict) else None
        label = None if label is None else str(label)
        if with_rejected:
            context, better, lesser = _preference(row, f"{field}: {place}")
            yield Conversation(place, context, better, lesser, label)
            continue
        messages = _messages(row, f"{field}: {place}")
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers or answers[0] == 0:
            raise InputError(f"{field}: {place} has no question followed by an answer")
        for index in answers[:1] if data.turns == "first" else answers:
            answer = messages[index]["content"]
            if not answer.strip():
                yield Unusable(place, "with an empty answer")
                continue
            yield Conversation(place, messages[:index], answer, None, label)


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
