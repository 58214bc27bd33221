"""Files of JSON that a user gives to a benchmark."""

import json
from pathlib import Path
from typing import Any

from lowmem_spin.common.errors import InputError


def rows(path: Path, option: str, absent: str) -> list[Any]:
    """The rows of a JSON list, or of JSON lines.

    Args:
        path: of the file.
        option: how the user named it.
        absent: what to say where it is not there.

    Raises:
        InputError: it is not there, cannot be read, or is something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]  # splitlines would cut at U+2028, too
    except FileNotFoundError:
        raise InputError(f"{option}: {absent}") from None
    except OSError as error:
        raise InputError(f"{option}: {str(path)!r} cannot be read: {error.strerror}; give a file of JSON") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{option}: {str(path)!r} is not JSON, nor lines of it: {error}") from None
