"""What runs and sweeps have stored, read back and checked. No model, no drawing: what every report is made from.

read(folder)            a Run or a Sweep
Sweep.configurations    its points, seeds gathered
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lowmem_spin.keys import digest
from lowmem_spin.recipe import InputError
from lowmem_spin.report.statistics import Value, difference, over

MEASURED = (
    "chosen_logp",
    "sampled_accuracy",
    "kl_to_base",
    "kl_to_previous",
    "kl_from_base",
    "length",
    "truncated",
    "identical",
)
MATCH = "exact_match"


@dataclass(frozen=True)
class Policy:
    """One line of metrics.jsonl: what is known of one policy."""

    name: str
    key: str
    values: dict[str, Value]  # by the names of evaluation.health.Health
    categories: dict[str, Value]  # exact match by category
    samples: list[dict[str, str]]  # prompt_id, answer; and prompt, data, finish_reason if they were kept

    @property
    def score(self) -> Value:
        """What policies are compared by: exact match where it is measured, else the log-prob of the data's answers."""
        return self.values[MATCH if MATCH in self.values else "chosen_logp"]


@dataclass(frozen=True)
class Run:
    """One game's folder."""

    folder: Path
    recipe: dict[str, Any]  # resolved
    recipe_text: str
    record: dict[str, Any]  # run.json
    policies: list[Policy]
    trainings: dict[str, dict[str, Any]]  # manifests of the iterates by name, of those that were found
    missing: list[str]  # a line for each thing that a report will lack

    @property
    def base(self) -> Policy:
        return self.policies[0]

    @property
    def played(self) -> list[Policy]:
        """The base and the iterates."""
        return [policy for policy in self.policies if policy.name == "base" or policy.name.startswith("iterate ")]

    @property
    def yardsticks(self) -> list[Policy]:
        """What self-play is measured against."""
        return [policy for policy in self.policies if policy not in self.played]

    @property
    def last(self) -> Policy:
        return self.played[-1]

    @property
    def seconds(self) -> dict[str, float]:
        """By kind of stage, over all runs of this game in this folder; empty if they were not recorded."""
        return self.record.get("seconds", {})


class Point(BaseModel):
    """A sweep's point as sweep.json lists it."""

    model_config = ConfigDict(frozen=True)
    name: str
    values: dict[str, Any]  # of the axes, and the seed
    dir: str  # relative to the sweep's folder
    status: Literal["finished", "failed", "waiting"]
    error: str | None = None

    @property
    def seed(self) -> Any:
        return self.values.get("seed")

    @property
    def setting(self) -> dict[str, Any]:
        """Its place on the axes, whatever the seed."""
        return {name: value for name, value in self.values.items() if name != "seed"}


class Plan(BaseModel):
    """sweep.json."""

    recipe: str
    axes: dict[str, list[Any]]
    seeds: list[int]
    points: list[Point]


@dataclass(frozen=True)
class Configuration:
    """The points of a sweep that differ in nothing but their seed."""

    setting: dict[str, Any]
    points: list[Point]
    runs: dict[Any, Run]  # by seed, of the finished points

    @property
    def label(self) -> str:
        return ", ".join(f"{name.rpartition('.')[2]} {plain(value)}" for name, value in self.setting.items()) or "the recipe"

    @property
    def iterates(self) -> int:
        """Policies that every run of it has, the base among them."""
        return min(len(run.played) for run in self.runs.values())

    def value(self, name: str, place: int = -1) -> Value:
        """A measured number of the base (place 0) or an iterate (1, 2, ...), over the seeds."""
        return over([run.played[place].values[name] for run in self.runs.values()])

    def best(self, name: str) -> int:
        """The place of the best policy by its mean over the seeds: 0 is the base."""
        return max(range(self.iterates), key=lambda place: self.value(name, place).mean)

    def against(self, other: "Configuration", name: str) -> Value:
        """How much higher its last iterate's number is, in pairs of runs with the same seed where there are two or more."""
        return difference(*({seed: run.last.values[name] for seed, run in c.runs.items()} for c in (self, other)))

    def same_as(self, other: "Configuration") -> bool:
        """Whether both end in the same policies: what differs in the settings has made no difference to the game."""
        mine, theirs = ({run.last.key for run in configuration.runs.values()} for configuration in (self, other))
        return mine == theirs


@dataclass(frozen=True)
class Sweep:
    """A folder of games that differ in the values of some recipe fields and in their seeds."""

    folder: Path
    plan: Plan
    runs: dict[str, Run]  # of finished points, by name

    @property
    def missing(self) -> list[str]:
        return [f"{name}: {line}" for name, run in self.runs.items() for line in run.missing]

    @cached_property
    def configurations(self) -> list[Configuration]:
        """In the order of the sweep, those without any finished point too."""
        groups: dict[str, list[Point]] = {}
        for point in self.plan.points:
            groups.setdefault(json.dumps(point.setting, sort_keys=True), []).append(point)
        return [
            Configuration(points[0].setting, points, {p.seed: self.runs[p.name] for p in points if p.name in self.runs})
            for points in groups.values()
        ]

    @property
    def finished(self) -> list[Configuration]:
        """The configurations that have a finished point."""
        return [configuration for configuration in self.configurations if configuration.runs]

    @property
    def score(self) -> str:
        """Name of the number that configurations are compared by: exact match if all runs have it."""
        return MATCH if all(MATCH in policy.values for run in self.runs.values() for policy in run.policies) else "chosen_logp"

    @property
    def best(self) -> Configuration:
        return max(self.finished, key=lambda configuration: configuration.value(self.score).mean)


def plain(value: Any) -> str:
    """A recipe's value as a person writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def field(recipe: dict[str, Any], name: str) -> Any:
    """A recipe's value by its dotted name, None where an older or newer version has no such field."""
    value: Any = recipe
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def read(folder: Path) -> Run | Sweep:
    """Read a run's or a sweep's folder.

    Raises:
        InputError: it is neither, or what it holds does not read back.
    """
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is no folder; give the folder of a run or a sweep")
    if (folder / "sweep.json").is_file():
        return _sweep(folder)
    if (folder / "run.json").is_file():
        return _run(folder)
    raise InputError(f"{str(folder)!r} is neither a run nor a sweep: it has no run.json and no sweep.json")


def _sweep(folder: Path) -> Sweep:
    path = folder / "sweep.json"
    try:
        plan = Plan.model_validate(_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {place}: {first['msg']}; run the sweep again to write it anew") from None
    finished = [point for point in plan.points if point.status == "finished"]
    return Sweep(folder, plan, {point.name: _run(folder / point.dir) for point in finished})


def _run(folder: Path) -> Run:
    record = _json(folder / "run.json")
    if not isinstance(record, dict) or not _texts(record.get("policies")):
        raise InputError(f"{folder / 'run.json'}: it names no policies; run the recipe again to write it anew")
    text = _text(folder / "recipe.yaml")
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError:
        recipe = None
    if not isinstance(recipe, dict):
        raise InputError(f"{folder / 'recipe.yaml'}: not a recipe; run the recipe again to write it anew")
    policies = _policies(folder / "metrics.jsonl", record["policies"])
    trainings, missing = _trainings(folder, recipe, record["policies"])
    return Run(folder, recipe, text, record, policies, trainings, missing)


def _policies(path: Path, keys: dict[str, str]) -> list[Policy]:
    """The records of metrics.jsonl, which have to be those of the game in run.json, all of them."""
    again = "run the recipe again to finish the game"
    policies = []
    for number, line in enumerate(_text(path, again).removesuffix("\n").split("\n"), 1):
        try:
            policies.append(_policy(json.loads(line)))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"{path}: line {number} is not a whole record of a policy; {again}") from None
    expected = ["plain SFT" if name.startswith("SFT ") else name for name in keys]
    if [policy.name for policy in policies] != list(dict.fromkeys(expected)):
        absent = [name for name in dict.fromkeys(expected) if name not in {policy.name for policy in policies}]
        what = f"no record of {absent[0]}" if absent else "not the records of the policies in run.json"
        raise InputError(f"{path}: {what}; {again}")
    if not {policy.key for policy in policies} <= set(keys.values()):
        raise InputError(f"{path}: these are another game's results than run.json's; {again}")
    return policies


def _policy(record: Any) -> Policy:
    """One record; raises KeyError, TypeError or ValueError if it is not whole."""
    names = [name for name in record if f"{name}_se" in record]
    values = {name: Value(float(record[name]), float(record[f"{name}_se"])) for name in names}
    categories = {name.partition("/")[2]: values.pop(name) for name in names if name.startswith(f"{MATCH}/")}
    for name in MEASURED:
        if not math.isfinite(values[name].mean):
            raise ValueError(name)
    if not all(_texts(sample) and {"prompt_id", "answer"} <= sample.keys() for sample in record["samples"]):
        raise TypeError("samples")
    if not _texts({"name": record["name"], "policy": record["policy"]}):
        raise TypeError("names")
    return Policy(record["name"], record["policy"], values, categories, record["samples"])


def _trainings(folder: Path, recipe: dict[str, Any], keys: dict[str, str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Manifests of the iterates' trainings, from iterates/ or the store, and a line if any is missing.

    The store's name in the recipe is relative to where the game was played from, which need not be here.
    """
    shelf = Path(str(field(recipe, "output.store"))) / "adapters"
    found, lost = {}, []
    for name, key in keys.items():
        if not name.startswith("iterate "):
            continue
        manifests = [folder / "iterates" / name.removeprefix("iterate ") / "manifest.json", shelf / key / "manifest.json"]
        manifest = next((manifest for path in manifests if (manifest := _manifest(path, key)) is not None), None)
        if manifest is None:
            lost.append(name)
        else:
            found[name] = manifest
    line = f"no training curves of {', '.join(lost)}: neither in {folder / 'iterates'} nor in {shelf}"
    return found, [line] if lost else []


def _manifest(path: Path, key: str) -> dict[str, Any] | None:
    """A training's manifest, if it is there and is the one of this key."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return manifest if digest(manifest["asked"]) == key and _curves(manifest["metrics"]) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def _curves(metrics: Any) -> bool:
    """Whether these are training records: dicts of numbers with a step."""
    return isinstance(metrics, list) and all(
        isinstance(record, dict) and "step" in record and all(isinstance(v, int | float) for v in record.values())
        for record in metrics
    )


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(item, str) for item in value.values())


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError:
        raise InputError(f"{path}: not valid JSON; run again to write it anew") from None


def _text(path: Path, remedy: str = "run again to write it") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: missing; {remedy}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; {remedy}") from None
