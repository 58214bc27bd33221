"""benchmarks.jsonl in a run's folder: a line for every policy and task that is measured, which reports are made from."""

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from lowmem_spin.common.files import DamagedError, json_text, read_text, write_text
from lowmem_spin.runner.health import Estimate

FILE = "benchmarks.jsonl"
Record = dict[str, Any]


def keep_results(
    folder: Path, policies: dict[str, str], records: dict[str, Record | None], suite: str, task: str, limit: int | None
) -> None:
    """Write the lines of one task in place of those that are there of it, and drop those of policies the game no longer has.

    Args:
        folder: the run's.
        policies: {name: key} of the game.
        records: what is stored of the task for each of these names, None where nothing is.
        suite: that the task is of.
        task: its name.
        limit: documents that were asked for; None is all.

    Raises:
        DamagedError: the file that is there does not read.
    """
    path, lines = folder / FILE, []
    for name, record in records.items():
        if record is not None:
            about = {"name": name, "policy": policies[name], "suite": suite, "task": task, "limit": limit}
            about |= {part: record[part] for part in ("fewshot", "own", "count", "recorded")}
            about |= {"prompting": record["prompting"]} if "prompting" in record else {}
            base = None if name == "base" else records.get("base")
            lines.append({**about, "numbers": {metric: _number(record, base, metric) for metric in record["numbers"]}})
    anew = {_question(line) for line in lines}
    kept = [line for line in _lines(path) if policies.get(line["name"]) == line["policy"] and _question(line) not in anew]
    text = "".join(json_text(line) + "\n" for line in [*kept, *lines])
    if not path.exists() or read_text(path) != text:
        (folder / "report.html").unlink(missing_ok=True)  # it shows other numbers
        write_text(path, text)


def _lines(path: Path) -> list[Record]:
    try:
        lines = [json.loads(line) for line in read_text(path).splitlines()]
        if not all({"name", "policy", "suite", "task", "limit", "fewshot"} <= line.keys() for line in lines):
            raise DamagedError("lacks fields", path)
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError) as error:
        raise DamagedError("does not read back", path) from error
    return lines


def _question(line: Record) -> tuple[Any, ...]:
    """What was asked of all policies alike."""
    return line["suite"], line["task"], line["limit"], line["fewshot"], json_text(line.get("prompting", {}))


def _number(record: Record, base: Record | None, metric: str) -> dict[str, float | None]:
    """A number without its parts, and its difference from the base's: in pairs if both have a number per document."""
    mine = record["numbers"][metric]
    shown = {"value": mine["value"], "stderr": mine["stderr"]}
    theirs = None if base is None else base["numbers"].get(metric)
    if theirs is None or None in (mine["value"], theirs["value"]):
        return shown
    values, others = mine.get("values", []), theirs.get("values", [])
    if len(values) == len(others) > 1:
        apart = np.array(values, float) - np.array(others, float)
        sizes = mine.get("sizes", [len(apart)])  # of its subtasks, if it is the plain mean of theirs
        parts = [Estimate(part) for part in np.split(apart, np.cumsum(sizes)[:-1])]
        error = None if min(sizes) == 1 else math.hypot(*(part.error for part in parts)) / len(parts)
        return shown | {"gain": fmean(part.mean for part in parts), "gain_stderr": error}
    errors = mine["stderr"], theirs["stderr"]
    error = None if None in errors else math.hypot(*errors)
    return shown | {"gain": mine["value"] - theirs["value"], "gain_stderr": error}
