"""Paths as a user writes them."""

import os
from typing import Annotated

from pydantic import AfterValidator


def expanded(path: str) -> str:
    """`path` with `~` as the home folder: no shell stands between a recipe, or --set, and the file.

    Raises:
        ValueError: it is the home of somebody who has none here.
    """
    found = os.path.expanduser(path)
    if found.startswith("~"):
        user = path.partition("/")[0]
        raise ValueError(f"no home folder of {user!r} is known here; write the path out, or ./{path} for a file of that name")
    return found


PathText = Annotated[str, AfterValidator(expanded)]
"""A path, or for models and data a name on the hub."""
