"""How something that a user gave is refused."""

import re

# A user's name and password in an address, or as much of them as is quoted of one: what follows a host's name is a number.
LOGIN = re.compile(r"(?<=://)(?:[^\s'\"]*(?=@)|[^\s'\"/@\[]*:(?!\d*(?:[^\w.]|\.\s|$))[^\s'\"]*)")


def printable(text: str) -> str:
    """`text` on one line: what would steer a terminal shows as its escape instead."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shortened(text: str) -> str:
    """As much of what a stranger's file says as belongs on one line."""
    return text if len(text) <= 60 else f"{text[:60]}..."


class InputError(Exception):
    """Something the user gave cannot be used. The message is one line: the field, the value, the remedy."""

    def __init__(self, line: str) -> None:
        super().__init__(printable(LOGIN.sub("***", line)))
