"""A run's or a sweep's folder read back and checked; what does not read back is one line that says so."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from lowmem_spin.algorithm.roles import PLAIN_SFT, Part, Role, part_in, parts_in
from lowmem_spin.common.checked import read_checked
from lowmem_spin.common.errors import InputError, shortened
from lowmem_spin.common.files import DamagedError, read_text
from lowmem_spin.config.wanted import wanted
from lowmem_spin.config.yaml_text import YAMLTextError, read_yaml
from lowmem_spin.evaluation.arena import FILE as ARENA
from lowmem_spin.evaluation.prompting import in_words
from lowmem_spin.report.cautions import CUT
from lowmem_spin.report.from_store import answer_tokens, read_trainings
from lowmem_spin.report.intervals import Value, is_yes_or_no, row_numbers, rows_of
from lowmem_spin.report.measures import TASKS
from lowmem_spin.report.results import Benchmark, PolicyResults, RunResults, SweepFile, SweepResults
from lowmem_spin.runner.claim import METRICS, SO_FAR, WORKERS
from lowmem_spin.runner.run_folder import as_far_as_played, check_keys, game_inside, is_played
from lowmem_spin.runner.worker_record import read_workers

SAMPLED = ("prompts", "proposals", "rejected", "acceptance", "ess", "log_z")
MEASURED = ("kl_to_base", "kl_to_previous", "kl_from_base", "length", "truncated")
OF_ANSWERS = ("chosen_logp", "sampled_accuracy", "identical")  # where the data has prompts alone, there is none of these


def read_results(folder: Path, so_far: bool = False) -> RunResults | SweepResults:
    """Read a run's or a sweep's folder; with `so_far` of a run that is not finished what there is.

    Raises:
        InputError: it is neither, or what it holds does not read back.
    """
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is no folder; give the folder of a run or a sweep")
    if (folder / "sweep.json").is_file():
        return read_sweep(folder)
    if (folder / "run.json").is_file():
        return read_run_results(folder, so_far)
    remedy = game_inside(folder, "run.json", "sweep.json")
    raise InputError(f"{str(folder)!r} is neither a run nor a sweep: {remedy or 'it has no run.json and no sweep.json'}")


def read_sweep(folder: Path) -> SweepResults:
    """Read a sweep's folder, and those of its finished points.

    Raises:
        InputError: what it holds does not read back.
    """
    path = folder / "sweep.json"
    try:
        file = SweepFile.model_validate(_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {field}: {wanted(first)}; run the sweep again to write it anew") from None
    finished = [point for point in file.points if point.status == "finished"]
    for point in finished:
        if not (folder / point.dir).resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{path}: dir {shortened(repr(point.dir))} of {shortened(point.name)} is not in the sweep's folder; no sweep "
                "writes that: leave the folder alone, or sweep anew"
            )
    workers = lost = None
    try:
        workers = read_workers(folder)
    except DamagedError as error:
        lost = f"nothing on which worker did what: {folder / WORKERS} {error}; delete it"
    runs = {point.name: read_run_results(folder / point.dir) for point in finished}
    return SweepResults(folder, file, runs, workers, lost)


def read_run_results(folder: Path, so_far: bool = False) -> RunResults:
    """Read a run's folder; with `so_far` of a game that is not finished what there is, and a line in `missing` that says so.

    Raises:
        InputError: what it holds does not read back.
    """
    record = _json(folder / "run.json")
    if not isinstance(record, dict) or not _texts(record.get("policies")):
        raise InputError(f"{folder / 'run.json'}: it names no policies; run the recipe again to write it anew")
    try:
        parts = parts_in(record)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{folder / 'run.json'}: its roles do not read back; run the recipe again to write it anew") from None
    check_keys(folder / "run.json", {f"policies.{name}": [key] for name, key in record["policies"].items()})
    text = _text(folder / "recipe.yaml")
    try:
        recipe = read_yaml(text)
    except YAMLTextError:
        recipe = None
    if not isinstance(recipe, dict):
        raise InputError(f"{folder / 'recipe.yaml'}: not a recipe; run the recipe again to write it anew")
    keys = as_far_as_played(record["policies"], record)
    path, unfinished = folder / METRICS, []
    if so_far and not path.is_file():
        path, asked = folder / SO_FAR, keys
        keys = _measured(path, keys, parts)
        unfinished = [_unfinished(folder, keys, asked, parts)]
    policies = _policies(path, keys, parts)
    trainings, missing = read_trainings(folder, recipe, keys, parts)
    benchmarks, arena = read_benchmarks(folder, keys), _arena(folder, keys)
    cut = any(policy.values["truncated"].mean > CUT for policy in policies)
    tokens = answer_tokens(folder, recipe, record) if cut else None  # which reads the whole file
    return RunResults(
        folder=folder,
        recipe=recipe,
        recipe_text=text,
        record=record,
        policies=policies,
        trainings=trainings,
        missing=[*unfinished, *missing],
        benchmarks=benchmarks,
        arena=arena,
        answer_tokens=tokens,
        finished=not unfinished,
    )


def _measured(path: Path, keys: dict[str, str], parts: dict[str, Part]) -> dict[str, str]:
    """The policies that a game which is not finished has measured, in their order.

    Raises:
        InputError: there is none yet.
    """
    if not path.is_file():
        raise InputError(
            f"{str(path.parent)!r} {_how(path.parent)}, and no policy is measured yet; `lowmem-spin runs` says how far it is"
        )
    try:
        names = {json.loads(line)["name"] for line in _text(path).splitlines()}
    except (KeyError, TypeError, ValueError, RecursionError):
        raise InputError(f"{path}: does not read back; run the recipe again to write it") from None
    return {name: key for name, key in keys.items() if (PLAIN_SFT if parts[name].role is Role.BASELINE else name) in names}


def _how(folder: Path) -> str:
    return "is being played now" if is_played(folder) else "is not finished"


def _unfinished(folder: Path, keys: dict[str, str], asked: dict[str, str], parts: dict[str, Part]) -> str:
    done, all_of_them = (sum(parts[name].is_iterate for name in names) for names in (keys, asked))
    continues = "" if is_played(folder) else f"; `lowmem-spin run {folder / 'recipe.yaml'}` continues"
    return f"this game {_how(folder)}: what is shown is of the base and {done} of {all_of_them} iterates{continues}"


def read_benchmarks(folder: Path, keys: dict[str, str]) -> list[Benchmark]:
    """What `evaluate` found of the policies with these keys, in their order; nothing if it never ran."""
    path = folder / "benchmarks.jsonl"
    if not path.is_file():
        return []
    benchmarks = []
    again = "delete the file and evaluate again: its numbers are in the store"
    for number, line in enumerate(_text(path, again).splitlines(), 1):
        try:
            benchmarks.append(_benchmark(json.loads(line)))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
            raise InputError(f"{path}: line {number} is not a whole record of a benchmark; {again}") from None
    order = list(keys)
    mine = [one for one in benchmarks if (one.key == keys[one.name] if one.name in keys else one.key in keys.values())]
    return sorted(mine, key=lambda one: order.index(one.name) if one.name in order else len(order))


def _benchmark(record: Any) -> Benchmark:
    """One record; raises KeyError, TypeError, ValueError or AttributeError if it is not whole."""
    values, gains = {}, {}
    for metric, number in record["numbers"].items():
        if number["value"] is not None:
            values[metric] = Value.read(number["value"], number["stderr"], record["count"] if is_yes_or_no(metric) else None)
        if number.get("gain") is not None:
            gains[metric] = Value.read(number["gain"], number["gain_stderr"])
    names = record["name"], record["policy"], record["suite"], record["task"]
    if not all(isinstance(name, str) for name in names) or not _texts(record["recorded"]["versions"]):
        raise TypeError("names")
    counts = record["fewshot"], record["limit"], record["count"]
    if not all(count is None or isinstance(count, int) for count in counts):
        raise TypeError("counts")
    versions = record["recorded"]["versions"]
    return Benchmark(
        name=record["name"],
        key=record["policy"],
        suite=record["suite"],
        task=record["task"],
        fewshot=record["fewshot"],
        limit=record["limit"],
        count=record["count"],
        own=record["own"] is True,
        versions=versions,
        values=values,
        gains=gains,
        asked=in_words(record.get("prompting", {})) if record["suite"] == "tasks" else "",
        sampling=str(record["recorded"].get("sampling", "temperature 0.7")),  # which earlier versions always took
    )


def _arena(folder: Path, keys: dict[str, str]) -> dict[str, Any] | None:
    """The arena of a run with these policies, if there was one.

    Raises:
        InputError: the file does not read back.
    """
    path = folder / ARENA
    if not path.is_file():
        return None
    try:
        record = read_checked(path)
        if [keys.get(name) for name in record["names"]] != record["policies"]:
            return None  # of iterates that were played anew since
        count = len(record["names"])
        for name, shape in (("wins", 2), ("errors", 2), ("strengths", 1), ("low", 1), ("high", 1)):
            if np.array(record[name], float).shape != (count,) * shape:
                raise ValueError(name)
        if not all(
            isinstance(record[name], kind) for name, kind in (("judge", str), ("how", str), ("from", str), ("prompts", int))
        ):
            raise TypeError("judge")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: does not read back; delete it, `lowmem-spin arena` writes it again") from None
    return record


def _policies(path: Path, keys: dict[str, str], parts: dict[str, Part]) -> list[PolicyResults]:
    """The records of metrics.jsonl, which have to be those of the game in run.json, all of them."""
    again = "run the recipe again to finish the game"
    policies = []
    for number, line in enumerate(_text(path, again).removesuffix("\n").split("\n"), 1):
        try:
            policies.append(_policy(json.loads(line)))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            raise InputError(f"{path}: line {number} is not a whole record of a policy; {again}") from None
    expected = [PLAIN_SFT if parts[name].role is Role.BASELINE else name for name in keys]
    known = [policy for policy in policies if policy.part.role is not Role.UNQUANTIZED]  # which run.json names as no policy
    if [policy.name for policy in known] != list(dict.fromkeys(expected)) or policies[0] is not known[0]:
        absent = [name for name in dict.fromkeys(expected) if name not in {policy.name for policy in policies}]
        what = f"no record of {absent[0]}" if absent else "not the records of the policies in run.json"
        raise InputError(f"{path}: {what}; {again}")
    if not {policy.key for policy in known} <= set(keys.values()):
        raise InputError(f"{path}: these are another game's results than run.json's; {again}")
    if not policies[0].score_names:  # of prompts alone: against itself the base has an even chance
        policies[0].values["win_rate_to_base"] = Value(0.5, 0.0)
    if not all(policy.score_names for policy in known):
        raise InputError(f"{path}: a policy has no number to be compared by; {again}")
    for policy in known:  # a record from before gains were kept gives the difference alone
        policy.values.setdefault("gain", Value(policy.score.mean - policies[0].score.mean, math.nan))
    return policies


def _policy(record: Any) -> PolicyResults:
    """One record; raises KeyError, TypeError or ValueError if it is not whole."""
    names, by_row = [name for name in record if f"{name}_se" in record], row_numbers(record)
    values = {n: Value.read(record[n], record[f"{n}_se"], rows_of(record, n), by_row.get(n)) for n in names}
    categories = {name.partition("/")[2]: values.pop(name) for name in names if name.partition("/")[0] in TASKS and "/" in name}
    of_answers = OF_ANSWERS if any(name in record for name in OF_ANSWERS) else ()
    part = part_in(record, record["name"])
    measured = MEASURED[-2:] if part.role is Role.UNQUANTIZED else MEASURED  # whose drift is from nothing
    for name in (*measured, *of_answers):
        if not math.isfinite(values[name].mean):
            raise ValueError(name)
    if not all(_texts(sample) and {"prompt_id", "answer"} <= sample.keys() for sample in record["samples"]):
        raise TypeError("samples")
    if not _texts({"name": record["name"], "policy": record["policy"]}):
        raise TypeError("names")
    sampler = record.get("sampler")
    if sampler is not None:
        sampler = {"sampler": str(sampler["sampler"]), **{name: sampler[name] for name in SAMPLED}}
    name = record["name"]
    return PolicyResults(name, record["policy"], part, values, categories, record["samples"], sampler)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(item, str) for item in value.values())


def _json(path: Path) -> Any:
    try:
        return read_checked(path)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; run again to write it") from None
    except DamagedError as error:
        raise InputError(f"{path}: {error}; run again to write it anew") from None


def _text(path: Path, remedy: str = "run again to write it") -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        raise InputError(f"{path}: missing; {remedy}") from None
    except DamagedError as error:
        raise InputError(f"{path}: {error}; {remedy}") from None
