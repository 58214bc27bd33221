"""Files that are whole or absent."""

import contextlib
import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_spin.common.errors import InputError

# What a disk can answer; any other error of the system is a bug and keeps its traceback.
DISK = {"ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EEXIST", "ENOTDIR", "EISDIR", "ENAMETOOLONG"}
Notice = Callable[[str], None]
Tokens = Sequence[int] | np.ndarray
"""Token ids of one prompt or completion."""


def check_folder_place(folder: Path, field: str) -> None:
    """Refuse a place where no folder can be made.

    Args:
        folder: to be made, or there already.
        field: the recipe's that names it.

    Raises:
        InputError: it is a file, or would be in one, or is a link that leads nowhere.
    """
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            where = "is a file" if place == folder else f"would be in {str(place)!r}, which is a file"
            raise InputError(f"{field}: {str(folder)!r} {where}; choose another folder")
        if place.is_symlink() and not place.exists():
            where = "is" if place == folder else f"would be in {str(place)!r}, which is"
            raise InputError(
                f"{field}: {str(folder)!r} {where} a link that leads nowhere; make its folder, or choose another one"
            )


def make_folder(folder: Path) -> None:
    """Make a folder, if it is not there, and those that it is in.

    Raises:
        InputError: it would be in one in which the system makes none, such as /proc.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:
        raise InputError(
            f"{str(folder)!r}: the system makes no folder there; choose another output.store or output.dir"
        ) from None


def check_inside(top: Path, *names: str) -> None:
    """Refuse folders in a run's folder that are links out of it: what is written there would be somewhere else.

    Raises:
        InputError: one leads out.
    """
    home = os.path.realpath(top)
    for name in names:
        if not Path(os.path.realpath(top / name)).is_relative_to(home):
            raise InputError(f"{str(top / name)!r} is a link that leads out of {str(top)!r}; remove it")


class DamagedError(ValueError):
    """A file has other bytes than were written. The message is what one says after its name: "is not valid JSON"."""

    def __init__(self, why: str, path: Path | None = None) -> None:
        super().__init__(why)
        self.path = path


class UnreadableError(OSError):
    """The system does not give a file's bytes, which may be as they were: a drive does not answer, or is closed."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Have an error of the system name the file that is read: only opening it does so by itself.

    Raises:
        FileNotFoundError: it is not there.
        DamagedError: a folder is in its place, or a file in the place of its folder.
        UnreadableError: any other error of the system.
    """
    try:
        yield
    except (FileNotFoundError, UnreadableError):
        raise
    except (IsADirectoryError, NotADirectoryError) as error:
        raise DamagedError("is a folder" if isinstance(error, IsADirectoryError) else "is in a file", path) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise UnreadableError(error.errno, os.strerror(error.errno), str(path)) from error


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes; raises as `reading` does."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    """A file in UTF-8; raises as `reading` does, and DamagedError if it is no text."""
    with reading(path):
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DamagedError("is not UTF-8 text", path) from error


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that any program reads: what is undefined or infinite, which JSON has no number for, is null."""
    return json.dumps(_defined(value), indent=indent, allow_nan=False)


def _defined(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _defined(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON that is whole or absent."""
    write_text(path, json_text(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 that is whole or absent. A link there is replaced, not written through."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` write to a temporary file beside `path`, and rename it when it is on the disk.

    Raises:
        InputError: a folder is in its place.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except IsADirectoryError:
        raise InputError(f"{path}: a folder is where this file is to be written; move it away") from None
    finally:
        temporary.unlink(missing_ok=True)


def share(folder: Path) -> None:
    """Give all files below `folder` the mode that new files have here, by the umask: safetensors writes its own for their
    maker alone, and others would see a store that they cannot read."""
    probe = folder / f".{uuid.uuid4().hex}"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mode != mode:
            path.chmod(mode)


def size_in_words(count: int) -> str:
    """Bytes of a file or folder, as people say them."""
    if count < 1e9:
        return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
    return f"{count / 1e9:,.2f} GB"
