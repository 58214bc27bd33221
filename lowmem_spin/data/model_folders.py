"""What a folder or a file that was given as a model is instead, and what to do with it."""

import json
import shlex
from collections.abc import Collection
from pathlib import Path

from lowmem_spin.common.errors import InputError, shortened


def check_model_folder(path: Path, name: str, field: str) -> None:
    """Refuse what is no folder with a model in safetensors.

    Raises:
        InputError: one line on what it is and what to do.
    """
    if path.is_file():
        if path.suffix == ".gguf":
            raise InputError(f"{field}: {name!r} is a GGUF file; {_convert(name)}")
        raise InputError(f"{field}: {name!r} is a file; give the folder with config.json, its weights and its tokenizer")
    check_model_names({file.name for file in path.iterdir()}, name, field, path)


def check_model_names(names: Collection[str], name: str, field: str, folder: Path | None = None) -> None:
    """The same of the names of a folder's files, or of a hub repository's."""
    gguf = sorted(file for file in names if file.endswith(".gguf"))
    pickles = [file for file in names if file.endswith((".bin", ".pt", ".pth"))]
    weights = [file for file in names if file.endswith(".safetensors") and not file.startswith("adapter_model")]
    if "adapter_config.json" in names and field == "model.name_or_path":
        raise InputError(
            f"{field}: {name!r} has an adapter_config.json, so it is an adapter; give its base{_base_of(folder)} here, and "
            "the adapter as model.adapter"
        )
    if gguf and not ("config.json" in names and weights):
        file = gguf[0] if folder is None else str(Path(name) / gguf[0])
        raise InputError(f"{field}: {name!r} has only GGUF weights; {_convert(file)}")
    if "config.json" not in names:
        raise InputError(f"{field}: {name!r} is no model: it has no config.json")
    if not weights:
        pickled = (
            f"; its .{pickles[0].rpartition('.')[2]} weights are pickles, which can run code: convert them" if pickles else ""
        )
        raise InputError(f"{field}: {name!r} has no safetensors weights{pickled}")


def _convert(file: str) -> str:
    return f"make a model folder of it once, python recipes/from_gguf.py {shlex.quote(file)} --to NEW, and give that folder"


def _base_of(folder: Path | None) -> str:
    """The base that an adapter names, for the remedy; nothing if its config does not say."""
    if folder is None:
        return ""
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    return f" ({shortened(named)})" if isinstance(named, str) and named else ""
