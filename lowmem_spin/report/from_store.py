"""What a report has from the run's store, if that is still there: how trainings went, and how long the data's answers are."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_spin.algorithm.roles import Part
from lowmem_spin.common.checked import read_checked
from lowmem_spin.common.files import DamagedError
from lowmem_spin.common.keys import digest, is_key
from lowmem_spin.common.parquet import ParquetTable
from lowmem_spin.config.places import put_in_place
from lowmem_spin.report.results import recipe_field


def read_trainings(
    folder: Path, recipe: dict[str, Any], keys: dict[str, str], parts: dict[str, Part]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Manifests of the iterates' trainings, from iterates/ or the store, and a line if any is missing."""
    weights_dir = _store(folder, recipe) / "adapters"
    found, lost = {}, []
    for name, key in keys.items():
        if not parts[name].is_iterate:
            continue
        manifests = [folder / "iterates" / str(parts[name].iteration) / "manifest.json", weights_dir / key / "manifest.json"]
        manifest = next((manifest for path in manifests if (manifest := _manifest(path, key)) is not None), None)
        if manifest is None:
            lost.append(name)
        else:
            found[name] = manifest
    line = f"no training curves of {', '.join(lost)}: neither in {folder / 'iterates'} nor in {weights_dir}"
    return found, [line] if lost else []


def _store(folder: Path, recipe: dict[str, Any]) -> Path:
    """Where the store is, seen from the run's folder."""
    found_here = deepcopy(recipe)
    put_in_place(found_here, folder)
    return Path(str(recipe_field(found_here, "output.store")))


def answer_tokens(folder: Path, recipe: dict[str, Any], record: dict[str, Any]) -> int | None:
    """Tokens that 95% of the data's answers have at most, their end included; None where the rows are not in the store."""
    files = record.get("data")
    if not isinstance(files, list) or not files or not is_key(files[0]):
        return None
    try:
        rows = ParquetTable(_store(folder, recipe) / "data" / f"{files[0]}.parquet")
        lengths = [part["chosen"].combine_chunks().value_lengths().to_numpy() for part in rows.batches(["chosen"])]
    except (FileNotFoundError, DamagedError):
        return None
    answered = [length for some in lengths for length in some if length]
    return math.ceil(np.percentile(answered, 95)) if answered else None


def _manifest(path: Path, key: str) -> dict[str, Any] | None:
    """A training's manifest, if it is there and is the one of this key."""
    try:
        manifest = read_checked(path)
        return manifest if digest(manifest["asked"]) == key and _curves(manifest["metrics"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # also a link that goes round in a circle
        return None


def _curves(metrics: Any) -> bool:
    """Whether these are training records: dicts of numbers with a step."""
    return isinstance(metrics, list) and all(
        isinstance(record, dict)
        and isinstance(record.get("step"), int | float)
        and all(isinstance(v, int | float | None) for v in record.values())
        for record in metrics
    )
