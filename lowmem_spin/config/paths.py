"""Paths as a user writes them."""

import os
from typing import Annotated

from pydantic import AfterValidator

LONGEST, LONGEST_NAME = 3800, 240  # bytes; systems take 4096 and 255, and temporary files have longer names than their own


def expanded(path: str) -> str:
    """`path` with `~` as the home folder: no shell stands between a recipe, or --set, and the file.

    Raises:
        ValueError: it is the home of somebody who has none here, or what no file can be called.
    """
    if "\0" in path:
        raise ValueError("it has a NUL character, which no path has; correct it")
    found = os.path.expanduser(path)
    try:
        size, longest = len(os.fsencode(found)), max(len(os.fsencode(name)) for name in found.split("/"))
    except UnicodeEncodeError:
        raise ValueError("it has half of a character, which no path has; correct it") from None
    if size > LONGEST or longest > LONGEST_NAME:
        long = f"{size:,} bytes" if size > LONGEST else f"a name of {longest} bytes"
        raise ValueError(f"it has {long}, and paths have at most {LONGEST:,}, their names {LONGEST_NAME}; shorten it")
    if found.startswith("~"):
        user = path.partition("/")[0]
        raise ValueError(f"no home folder of {user!r} is known here; write the path out, or ./{path} for a file of that name")
    return found


PathText = Annotated[str, AfterValidator(expanded)]
"""A path, or for models and data a name on the hub."""
