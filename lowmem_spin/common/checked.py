"""Small files and folders that tell whether they are as they were written.

A checksum says that these are the bytes that were written, not by whom: whoever can write a file can write its checksum too.
It is there against disks, copies and hands that slip.
"""

import hashlib
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError, Notice, json_text, read_text, reading, sha256, write_json

CHECKSUM = "checksum"  # in a JSON object: of all the rest
MANIFEST = "manifest.json"  # in a folder: names and hashes of all its files, written last


def write_checked(path: Path, record: dict[str, Any]) -> None:
    """Write readable JSON that is whole or absent, with its checksum."""
    plain = json.loads(json_text(record))
    write_json(path, {**plain, CHECKSUM: _checksum(plain)})


def read_checked(path: Path) -> dict[str, Any]:
    """What `write_checked` wrote, or an earlier version without a checksum.

    Raises:
        DamagedError: it is something else.
        FileNotFoundError, UnreadableError: as `reading` does.
    """
    try:
        record = json.loads(read_text(path))
    except DamagedError:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedError("is not valid JSON", path) from error
    if not isinstance(record, dict):
        raise DamagedError("is no JSON object", path)
    expected = record.pop(CHECKSUM, None)
    if expected is not None and expected != _checksum(record):
        raise DamagedError("has other content than was written", path)
    return record


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """{path in the folder: sha256} of all files below it but its manifest; they are on the disk when this returns."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            found[name] = sha256(path)
    return found


def seal_folder(folder: Path) -> None:
    """Say in a folder's manifest what is in it; until then it is not whole."""
    write_checked(folder / MANIFEST, {"files": file_hashes(folder)})


def folder_fault(folder: Path) -> str | None:
    """Why a folder is not as it was sealed; None if it is. Every file in it is read.

    Raises:
        UnreadableError: the system does not give a file's bytes.
    """
    manifest = read_manifest(folder)
    if isinstance(manifest, str):
        return manifest
    expected = manifest.get("files")
    if not isinstance(expected, dict):
        return f"has a {MANIFEST} that names no files"
    with reading(folder):
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()} - {MANIFEST}
    if there - expected.keys():
        return f"has a file that was not written with it, {min(there - expected.keys())}"
    return wrong_bytes(folder, expected)


def read_manifest(folder: Path) -> dict[str, Any] | str:
    """A sealed folder's manifest, or what is wrong with it in a few words."""
    try:
        return read_checked(folder / MANIFEST)
    except FileNotFoundError:
        return f"has no {MANIFEST}, which is written last"
    except DamagedError as error:
        return f"has a {MANIFEST} that {error}"


def wrong_bytes(folder: Path, expected: dict[str, str]) -> str | None:
    """The first of the files {path in the folder: sha256} with other bytes, said in a few words; None if there is none.

    Raises:
        UnreadableError: the system does not give a file's bytes.
    """
    for name, digest in sorted(expected.items()):
        try:
            if sha256(folder / name) == digest:
                continue
        except FileNotFoundError:
            return f"lacks {name}"
        except DamagedError as error:
            return f"has a {name} that {error}"
        return f"has other bytes in {name} than were written"
    return None


def warn(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr)


def check_within(path: Path, home: Path, field: str = "output.store") -> None:
    """Refuse to move what is not in a field's folder, whatever names it or links to it.

    Raises:
        InputError: one line.
    """
    if path.name in ("", "..") or not path.parent.resolve().is_relative_to(home.resolve()):
        raise InputError(
            f"{field}: {str(path)!r} is not in {str(home)!r}, or only by a link, so nothing there is moved; remove the link"
        )


def set_aside(path: Path, store: Path, why: str, then: str, notice: Notice, home: Path | None = None) -> None:
    """Move what cannot be trusted to the store's aside/, saying so.

    Args:
        path: a file or folder.
        store: the store's folder.
        why: what is wrong with it.
        then: what becomes of it: "computed again".
        notice: called with the line.
        home: the run folder, where it has to be in that one and not in the store.

    Raises:
        InputError: it is elsewhere.
    """
    if home is None:
        check_within(path, store)
    else:
        check_within(path, home, "output.dir")
    place = store / "aside" / f"{path.parent.name}-{path.name}-{uuid.uuid4().hex[:8]}"
    place.parent.mkdir(exist_ok=True)
    try:
        path.rename(place)
    except FileNotFoundError:  # another process has moved it
        return
    notice(f"{path} {why}; moved to {place} and {then}")
