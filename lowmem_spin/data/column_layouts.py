"""The layouts of columns that people's files have, and a row of each as messages. A new one is a line in a list."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from lowmem_spin.data.readers import is_text

Message = dict[str, str]
Row = dict[str, Any]


class RowError(Exception):
    """A row that cannot be used: `reason` is what is the matter with such rows, `detail` what it is in this one."""

    def __init__(self, reason: str, detail: str = "", broken: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.broken = reason, detail, broken


class Turns(NamedTuple):
    """A row's messages, not yet looked at."""

    before: Any  # those before an answer that has a column of its own
    after: Any  # those among which its answer is


class Layout(NamedTuple):
    """A set of columns, and the conversation in them."""

    name: str  # as the line that reports the rows says it
    columns: tuple[str, ...]
    read: Callable[[Row], Any]  # Turns; of preferences, those of the better and those of the worse answer

    def lacking(self, row: Row) -> list[str]:
        return [column for column in self.columns if row.get(column) is None]


ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **{role: role for role in ("system", "developer")},
    **dict.fromkeys(
        ("tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation", "ipython"),
        "tool",
    ),
}
"""{a role as files call it: as chat templates do}; turns of tools are none that a game can answer."""

UNREAD = ("tools", "functions", "images", "videos", "audios")  # columns without which a conversation is another one
REASONING = ("reasoning_content", "reasoning", "thinking")  # of an answer's message, beside its content
WEIGHTS = ("weight", "train", "loss")  # of a message, by which other trainers leave it out: 0 or false
CONVERSATIONS = ("conversations", "conversation", "messages")
QUESTIONS = ("prompt", "question", "instruction", "query", "input")
SYSTEM = ("system", "system_prompt")


def has(row: Row, column: str) -> bool:
    """Whether there is anything in a column; a cell that spells an empty list has nothing."""
    value = row.get(column)
    return value is not None and not (isinstance(value, str | list | dict) and value in ("", [], {}, "[]", "null"))


def message(raw: Any) -> Message:
    """One turn as {role, content}, by whatever names; the parts of its content joined, if all are text.

    Raises:
        RowError: it is of a tool, or is no text, or none in a chat.
    """
    if not isinstance(raw, dict):
        raise RowError("with messages that are not {role, content}", broken=True)
    said = raw.get("from") if raw.get("role") is None else raw["role"]
    if not isinstance(said, str):
        raise RowError("with messages that are not {role, content}", broken=True)
    if any(raw.get(name) for name in ("tool_calls", "function_call")):
        raise RowError("with tool calls")
    role = ROLES.get(said.strip().lower())
    if role == "tool":
        raise RowError("with turns of tools or functions")
    if role is None:
        raise RowError("with a role other than system, user and assistant", repr(said[:30]))
    return {"role": role, "content": _content(raw.get("value") if raw.get("content") is None else raw["content"])}


def _content(content: Any) -> str:
    if isinstance(content, list):
        content = "".join(map(_part, content))
    if content is None:
        raise RowError("with a message without content")
    if not isinstance(content, str):
        raise RowError("with content that is no text", broken=True)
    if not is_text(content):
        raise RowError("with half a character (a lone surrogate)")
    return content


def _part(part: Any) -> str:
    kind = part.get("type", "text") if isinstance(part, dict) else "text"
    if kind != "text":
        raise RowError("with parts other than text", repr(kind)[:30])
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise RowError("with content that is no text", broken=True)
    return text


def with_system(turns: Turns, row: Row) -> list[Any]:
    """All messages, after the system message that has a column of its own, if one has."""
    if not (isinstance(turns.before, list) and isinstance(turns.after, list)):
        raise RowError("with messages that are not a list", broken=True)
    messages = [*turns.before, *turns.after]
    system = next((row[name] for name in SYSTEM if has(row, name)), None)
    if system is None or (isinstance(system, str) and not system.strip()):
        return messages
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    if "system" in (first.get("role"), first.get("from")):
        if system in (first.get("content"), first.get("value")):
            return messages
        raise RowError("with a system message and another one in a column")
    return [{"role": "system", "content": system}, *messages]


def _turn(role: str, content: Any) -> list[Any]:
    """A text as one message; a list is messages already, and so is one of them."""
    if isinstance(content, dict):
        return [content]
    return content if isinstance(content, list) else [{"role": role, "content": content}]


def _asked_anywhere(row: Row) -> list[Any]:
    """The messages before an answer that has a column of its own, in whatever column they are."""
    name = next((name for name in (*QUESTIONS, *CONVERSATIONS) if row.get(name) is not None), None)
    return [] if name is None else _asked(row, name)


def _asked(row: Row, name: str) -> list[Any]:
    """The messages before an answer, from the column `name`."""
    asked = row[name]
    more = next((row[other] for other in ("input", "context") if has(row, other)), None)
    if name == "instruction" and more is not None:
        if not (isinstance(asked, str) and isinstance(more, str)):
            raise RowError("with content that is no text", broken=True)
        asked = f"{asked}\n\n{more}" if more.strip() else asked
    before = _history(row["history"]) if name == "instruction" and has(row, "history") else ()
    return [*before, *_turn("user", asked)]


def _history(history: Any) -> Iterator[Message]:
    """Alpaca's earlier turns: [question, answer] pairs."""
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise RowError("with a history that is not pairs of a question and an answer", broken=True)
    for question, answer in history:
        yield {"role": "user", "content": question}
        yield {"role": "assistant", "content": answer}


def _whole(name: str) -> Callable[[Row], Turns]:
    """The conversation that ends in the answer `name`, which may be in that column already."""

    def read(row: Row) -> Turns:
        answer = row[name]
        if isinstance(answer, str) and re.match(r"\s*Human:", answer) and "\n\nAssistant:" in answer:
            return Turns([], list(_transcript(answer)))
        answer = _turn("assistant", answer)
        return Turns([] if len(answer) > 1 else _asked_anywhere(row), answer)

    return read


def _transcript(text: str) -> Iterator[Message]:
    r"""The turns of hh-rlhf's "\n\nHuman: ...\n\nAssistant: ..."."""
    _, *turns = re.split(r"(?:^|\n\n)\s*(Human|Assistant):", text)
    for role, content in zip(turns[::2], turns[1::2], strict=True):
        yield {"role": "user" if role == "Human" else "assistant", "content": content.strip()}


def _pair(question: str, answer: str, name: str = "") -> Layout:
    def read(row: Row) -> Turns:
        return Turns(_asked(row, question), _turn("assistant", row[answer]))

    return Layout(name or f"{question} and {answer}", (question, answer), read)


def _column(name: str, column: str) -> Layout:
    return Layout(name, (column,), lambda row: Turns([], row[column]))


ANSWERED = [
    _column("messages", "messages"),
    _column("real, as in SPIN's data", "real"),
    Layout("chosen", ("chosen",), _whole("chosen")),
    _pair("prompt", "completion"),
    *(_column("ShareGPT", column) for column in ("conversations", "conversation", "dialog")),
    _pair("prompt", "response"),
    _pair("instruction", "output", "Alpaca"),
    _pair("instruction", "response"),
    _pair("question", "answer"),
    _pair("question", "response"),
    _pair("query", "response"),
    _pair("input", "output"),
]
"""Where a row's answer is; of several that fit a file, the first."""

PREFERENCES = [
    Layout("chosen and rejected", ("chosen", "rejected"), lambda row: (_whole("chosen")(row), _whole("rejected")(row))),
    Layout(
        "real and generated, as in SPIN's data",
        ("real", "generated"),
        lambda row: (Turns([], row["real"]), Turns([], row["generated"])),
    ),
]
"""Where a row's two answers are."""

PROMPTS = [
    Layout(f"{column} alone", (column,), lambda row, column=column: Turns(_asked(row, column), [])) for column in QUESTIONS
]
"""Where a prompt without an answer is."""

SHARE = 0.5  # of a file's rows that have a layout's columns, if it is the file's layout


def find_layout(rows: Sequence[Row], layouts: Sequence[Layout]) -> Layout | None:
    """The first layout that at least half of the rows have, else the one that most of them have."""
    found = [sum(not layout.lacking(row) for row in rows) for layout in layouts]
    enough = next((layout for layout, count in zip(layouts, found, strict=True) if count >= SHARE * len(rows)), None)
    return enough or (layouts[found.index(max(found))] if any(found) else None)


def unread(columns: Sequence[str], layout: Layout) -> list[str]:
    """The columns that this layout does not look at."""
    read = {*layout.columns, *SYSTEM, *UNREAD}
    if "chosen" in read:
        read |= {next((name for name in (*QUESTIONS, *CONVERSATIONS) if name in columns), "")}
    if "instruction" in read:
        read |= {"input", "context", "history"}
    return [column for column in columns if column not in read]


def nearest(columns: Sequence[str], layouts: Sequence[Layout]) -> Layout | None:
    """The layout whose columns these are most like, if they are like any."""

    def score(layout: Layout) -> float:
        return sum(max(alike(name, column) for column in columns) for name in layout.columns) / len(layout.columns)

    best = max(layouts, key=score, default=None) if columns else None
    return best if best is not None and score(best) >= ALIKE else None


ALIKE = 0.6


def alike(one: str, other: str) -> float:
    """How similar two names are, from 0 to 1."""
    return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio()
