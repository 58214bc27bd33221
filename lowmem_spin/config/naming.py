"""Names of folders that say what was set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowmem_spin.common.keys import digest
from lowmem_spin.config.loss_choices import own_in_words

LONGEST = 80  # bytes of what is added to a name
# Settings that change no policy and no number of a game: runs that differ in these have one folder.
SILENT = ("output", "runtime", "model.trust_remote_code", "training.gradient_checkpointing", "game.oracle.base_url")
SILENT += ("game.oracle.api_key_env", "game.oracle.concurrency", "game.oracle.batch_size")
OWN = ("game.loss", "game.opponents", "game.reference", "evaluation.metric")  # may be functions in a person's file
SILENT += tuple(f"evaluation.{name}" for name in ("benchmarks", "harness", "judge", "mtbench", "alpaca"))


def plain(value: Any) -> str:
    """A value as a part of a file's name."""
    return "".join(character if character.isalnum() or character in ".+-" else "_" for character in str(value))


def with_suffix(folder: str, suffix: str) -> str:
    """The folder beside `folder` whose name is longer by `suffix`."""
    if not suffix:
        return folder
    path = Path(folder)
    path = path if path.name not in ("", "..") else path.resolve()
    return str(path.with_name(path.name + suffix) if path.name else path / suffix)  # / has no name


def of_settings(settings: Mapping[str, Any]) -> str:
    """What {field: value} adds to a folder's name, such as "-alpha0.8-loss-ipo"; long ones are a hash."""
    heard = {field: settings[field] for field in sorted(settings) if not _is_silent(field)}
    found = "".join(f"-{_short(field, heard)}{_own(field, value) or _value(value)}" for field, value in heard.items())
    return found if len(found.encode()) <= LONGEST else f"-{digest(_texts(heard))[:8]}"


def _is_silent(field: str) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in SILENT)


def _short(field: str, others: Mapping[str, Any]) -> str:
    """The last part of a field's name, unless it is the name of several things."""
    *parents, last = field.split(".")
    if last in ("path", "name_or_path") and parents:
        return plain(parents[-1])
    alone = sum(other.split(".")[-1] == last for other in others) == 1
    return plain(last if alone else field)


def own_function(field: str, value: Any) -> str | None:
    """A function of one's own as a part of a file's name, such as own.py_loss-margin2.0; None: the field names none."""
    words = own_in_words(value) if field in OWN else None
    return None if words is None else plain(words.replace(", ", "-").replace(" ", ""))


def _own(field: str, value: Any) -> str:
    name = own_function(field, value)
    return "" if name is None else f"-{name}"


def _value(value: Any) -> str:
    """A number as it is, -word, and the parts of what has some."""
    if isinstance(value, dict):
        name = [f"-{plain(value['name'])}"] if "name" in value else []
        return "".join([*name, *(f"-{plain(part)}{_value(one)}" for part, one in value.items() if part != "name")])
    if isinstance(value, list | tuple):
        return "_".join(_value(one).removeprefix("-") for one in value) or "-none"
    if isinstance(value, bool) or value is None:
        return f"-{'none' if value is None else str(value).lower()}"
    if isinstance(value, int | float):
        return plain(value)
    return f"-{plain(str(value).rstrip('/').rpartition('/')[2])}"


def _texts(value: Any) -> Any:
    """As a key takes it: YAML has dates and infinite numbers too."""
    if isinstance(value, dict):
        return {str(name): _texts(one) for name, one in value.items()}
    return [_texts(one) for one in value] if isinstance(value, list | tuple) else str(value)
