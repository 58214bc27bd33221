"""Text on a terminal, or through a pipe, that has not every letter: LANG=C, PYTHONIOENCODING=ascii, or Windows' cp1252."""

import codecs
import io
from typing import TextIO

SPELLED = {"±": "+-", "…": "..."}  # of our own tables; as an escape, ±0.7 would read as 10.7


def spell_out(stream: TextIO) -> None:
    """Have what the stream's encoding lacks shown in letters that it has: no game ends by what it prints."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="spelled")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(SPELLED.get(one) or one.encode("ascii", "backslashreplace").decode() for one in text), error.end


codecs.register_error("spelled", _spelled)
