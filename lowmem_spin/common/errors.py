"""How something that a user gave is refused."""

import re
from typing import Any

LONGEST_LINE, LONGEST_QUOTE = 600, 80  # characters of a refusal, and of one value in it
# A user's name and password in an address, or as much of them as is quoted of one: what follows a host's name is a number.
LOGIN = re.compile(r"(?<=://)(?:[^\s'\"]*(?=@)|[^\s'\"/@\[]*:(?!\d*(?:[^\w.]|\.\s|$))[^\s'\"]*)")


def printable(text: str) -> str:
    """`text` on one line: what would steer a terminal shows as its escape instead."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shortened(text: str) -> str:
    """As much of what a stranger's file says as belongs on one line."""
    return text if len(text) <= 60 else f"{text[:60]}..."


def quoted(value: Any) -> str:
    """A value as a refusal names it: what is long has its beginning."""
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 3]}..."


def install_extra(name: str) -> str:
    """The command that installs what an extra of this package brings; the package is on no index."""
    return f"in your clone: `pip install -e '.[{name}]'`"


class InputError(Exception):
    """Something the user gave cannot be used. The message is one line: the field, the value, the remedy.

    Whatever is quoted in it, it stays a line that can be read: the field in front and the remedy at the end are kept.
    """

    def __init__(self, line: str) -> None:
        line, half = printable(LOGIN.sub("***", line)), LONGEST_LINE // 2
        super().__init__(line if len(line) <= LONGEST_LINE else f"{line[: half - 3]} ... {line[2 - half :]}")
