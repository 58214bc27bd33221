"""A committed adapter: a PEFT folder whose manifest.json says what it was made from, and the hash of each of its files."""

import json
from pathlib import Path
from typing import Any

from lowmem_spin.common.checked import MANIFEST, file_hashes, read_manifest, write_checked, wrong_bytes
from lowmem_spin.common.files import DamagedError, read_text, share

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def seal_adapter(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, with the hashes of all files."""
    share(folder)
    files = file_hashes(folder)
    write_checked(folder / MANIFEST, {**manifest, "sha256": files[WEIGHTS], "files": files})


def adapter_fault(folder: Path) -> str | None:
    """What of a committed adapter is not as it was committed; None if all is. Every file is read.

    Raises:
        UnreadableError: the system does not give a file's bytes.
    """
    manifest = read_manifest(folder)
    if isinstance(manifest, str):
        return manifest
    expected = {WEIGHTS: manifest.get("sha256"), **manifest.get("files", {})}
    return wrong_bytes(folder, expected) or (None if "files" in manifest else _config_fault(folder))


def _config_fault(folder: Path) -> str | None:
    """The same of a configuration whose hash an earlier version did not keep: it has at least to read."""
    try:
        config = json.loads(read_text(folder / CONFIG))
    except FileNotFoundError:
        return f"lacks {CONFIG}"
    except DamagedError as error:
        return f"has a {CONFIG} that {error}"
    except ValueError:
        return f"has a {CONFIG} that is not JSON"
    whole = isinstance(config, dict) and type(config.get("r")) is int and isinstance(config.get("lora_alpha"), int | float)
    return None if whole else f"has a {CONFIG} without its rank and scale"
