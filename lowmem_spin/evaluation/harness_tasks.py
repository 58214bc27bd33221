"""Which tasks of lm-evaluation-harness are meant, and a name for each that changes when the task does. Imports no torch."""

import difflib
import hashlib
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_spin.common.errors import InputError, install_extra, quoted
from lowmem_spin.common.files import sha256
from lowmem_spin.common.keys import digest
from lowmem_spin.evaluation.leaderboard import COLUMNS, OF_SUBTASKS
from lowmem_spin.evaluation.prompting import PLAIN, Prompting

VERSION = 1  # bumped by hand when the same task would be measured otherwise
QUICK = ("arc", "truthfulqa", "winogrande", "gsm8k", "hellaswag", "mmlu")  # folders of the harness with the leaderboard's tasks


@dataclass(frozen=True)
class Task:
    """One task or group with a score of its own, as it will be asked."""

    name: str
    fewshot: int | None  # None is the task's own number
    identity: str  # hash of its configuration, its functions' source and its local data
    own: bool  # of the user's YAML, not the harness's
    suite: str = "tasks"
    of_subtasks: bool = False  # has the plain mean of its subtasks as well
    prompting: Prompting = PLAIN

    def spec(self, policy: str, limit: int | None, learner: dict[str, Any]) -> dict[str, Any]:
        """What names the result; its digest is the key. The harness's version is recorded and no part of it."""
        what = {"task": self.name, "identity": self.identity, "fewshot": self.fewshot, "limit": limit}
        what |= {"mean": "of subtasks"} if self.of_subtasks else {}
        what |= {"prompting": record} if (record := self.prompting.record()) else {}
        return {"kind": "evaluate", "version": VERSION, "policy": policy, **what, "learner": learner}


def check_installed(asked_by: str) -> None:
    """Refuse where the harness is missing."""
    if find_spec("lm_eval") is None:
        raise InputError(f"{asked_by}: lm-evaluation-harness is not installed; {install_extra('eval')}")


@dataclass(frozen=True)
class Loaded:
    """A task with its data: it serves all policies."""

    task: Task
    harness: Any  # the harness's tasks and groups as it evaluates them


class Catalogue:
    """The tasks of a folder of YAML files, and the harness's own.

    Finding the harness's own takes seconds and they are many thousands; so they are looked through only for a name that
    is neither in the folder nor on the leaderboard.

    Args:
        include: folder with YAML files of the user's; its tasks hide the harness's of the same name.
        names: what will be asked for.
        option: where the names come from, for messages.
        suites: what is measured otherwise, and may have been meant.
    """

    def __init__(self, include: Path | None, names: Iterable[str], option: str, suites: Sequence[str] = ()) -> None:
        check_installed(option)
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every override that was asked for
        import lm_eval.tasks
        from lm_eval.tasks import TaskManager

        self.option, self.include, self.suites = option, include, suites
        self.built_in = Path(lm_eval.tasks.__file__).parent
        own = [] if include is None else [str(_folder(include))]
        quick = [str(self.built_in / name) for name in QUICK]
        self.manager = TaskManager(include_path=[*quick, *own], include_defaults=False)
        self.index = self.manager.task_index
        if include is not None and not any(self._own(name) for name in self.index):
            raise InputError(f"--include-path: {str(include)!r} has no task: no YAML file there that has `task:` and reads")
        if not set(names) <= set(self.index):
            self.manager = TaskManager(include_path=list(own), include_defaults=True)
            self.index = self.manager.task_index

    def leaderboard(self) -> list[Task]:
        """The six tasks of the Open LLM Leaderboard."""
        return [
            Task(
                name=column.task,
                fewshot=column.fewshot,
                identity=self._identity(column.task),
                own=self._own(column.task),
                suite="leaderboard",
                of_subtasks=column.metric == OF_SUBTASKS,
            )
            for column in COLUMNS
        ]

    def tasks(self, name: str, fewshot: int | None) -> list[Task]:
        """The task or group called `name`; what has no score of its own, such as a tag, is its members."""
        if name not in self.index:
            mine = ", ".join(known for known in self.index if self._own(known))
            also = f", and {str(self.include)!r} has only {mine}" if self.include else ""
            raise InputError(
                f"{self.option} {quoted(name)}: lm-evaluation-harness has no such task{also}; {self._meant(name)}"
                "`python -m lm_eval ls tasks` lists them"
            )
        entry = self.index[name]
        members: Sequence[Any] | None = None
        if entry.kind.name == "TAG":
            members = sorted(entry.tags)
        elif entry.kind.name == "GROUP" and not (entry.cfg or {}).get("aggregate_metric_list"):
            members = (entry.cfg or {}).get("task") or []
        if members is None:
            return [Task(name, fewshot, self._identity(name), self._own(name))]
        if not all(isinstance(member, str) for member in members):
            raise InputError(f"{self.option} {name!r}: it has no score of its own; ask for its tasks by their names")
        return [task for member in members for task in self.tasks(member, fewshot)]

    def _meant(self, name: str) -> str:
        """The names that are most like an unknown one, the nearest first."""
        near = difflib.get_close_matches(name, {*self.suites, *self.index}, n=3)
        of_suites = "--suite " if self.option == "--task" else ""
        return f"did you mean {' or '.join(of_suites * (one in self.suites) + one for one in near)}? " if near else ""

    def load(self, task: Task) -> Loaded:
        """Read a task's data.

        Raises:
            InputError: its data cannot be had, its YAML is wrong, or it would run what a model writes.
        """
        import datasets
        import jinja2
        import yaml
        from datasets.exceptions import DatasetsError

        datasets.disable_progress_bars()
        for library in ("datasets", "huggingface_hub"):  # they warn of every try; imported, they have set their own level
            logging.getLogger(library).setLevel(logging.ERROR)
        seed()
        try:
            found = self.manager.load([task.name])
        except (OSError, ValueError, TypeError, LookupError, ImportError, DatasetsError) as error:
            raise self._broken(task, error) from error
        except (jinja2.TemplateError, yaml.YAMLError) as error:
            raise self._broken(task, error) from error
        if any(getattr(leaf, "UNSAFE_CODE", False) for leaf in found["tasks"].values()):
            raise InputError(f"{self.option} {task.name!r}: it runs code that a model writes, which is not done here")
        for leaf in found["tasks"].values():
            _set_fewshot(leaf, task.fewshot)
            if leaf.OUTPUT_TYPE == "generate_until" and task.prompting.generation:
                own = leaf.get_config("generation_kwargs") or {}
                leaf.set_config(key="generation_kwargs", value={**own, **task.prompting.generation})
        return Loaded(task, found)

    def _broken(self, task: Task, error: Exception) -> InputError:
        why = " ".join(str(error).split())[:300]
        option = "--suite leaderboard" if task.suite == "leaderboard" else self.option
        if isinstance(error, ConnectionError):  # offline mode, too
            remedy = "connect, and give the same command again"
            return InputError(f"{option} {task.name!r}: cannot reach the Hugging Face hub, where its data is ({why}); {remedy}")
        return InputError(f"{option} {task.name!r}: does not load ({type(error).__name__}: {why}); see to its data and YAML")

    def _own(self, name: str) -> bool:
        path = self.index[name].yaml_path
        return path is not None and not path.is_relative_to(self.built_in)

    def _identity(self, name: str) -> str:
        """Hash of a task's or a group's configuration, its members' included."""
        known: dict[str, Any] = {}
        self._collect(name, known)
        return digest(known)

    def _collect(self, name: str, known: dict[str, Any]) -> None:
        if name in known or name not in self.index:
            return
        entry = self.index[name]
        known[name] = {"configuration": _content(entry.cfg), "members": sorted(entry.tags) if entry.cfg is None else []}
        members = (entry.cfg or {}).get("task")
        for member in [*known[name]["members"], *(members if isinstance(members, list) else [])]:
            for inner in _named(member):
                self._collect(inner, known)


def seed() -> None:
    """As the harness's command does before it reads tasks: some draw from these."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)


def _set_fewshot(leaf: Any, fewshot: int | None) -> None:
    """As the harness's command does: a number asked for holds, except for a task that says 0 itself."""
    own = leaf.get_config("num_fewshot")
    if fewshot is not None and own != 0:
        leaf.set_config(key="num_fewshot", value=fewshot)
    elif own is None:
        leaf.set_config(key="num_fewshot", value=0)


def _named(member: Any) -> list[str]:
    """Names that an entry of a group's list refers to: "name", or {task: name, ...} or {group: name, task: [...]}."""
    if not isinstance(member, dict):
        return [str(member)]
    inner = member.get("task")
    names = [name for item in inner for name in _named(item)] if isinstance(inner, list) else [str(inner)]
    return [*names, str(member.get("group"))]


def _folder(include: Path) -> Path:
    if not include.is_dir():
        raise InputError(f"--include-path: no folder {str(include)!r}; give one with task YAML files")
    return include.resolve()


def _content(value: Any, data: bool = False) -> Any:
    """A configuration as JSON in which functions and local data are known by their bytes, and not by where they are."""
    if isinstance(value, dict):
        return {str(key): _content(item, data or str(key).startswith("dataset_")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_content(item, data) for item in value]
    if isinstance(value, str):
        return _file(value, data)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _file(text: str, data: bool) -> Any:
    """`!function utils.name` comes as /its/folder/utils.name; local data as a path."""
    module, _, function = text.rpartition(".")
    if text.startswith("/") and Path(f"{module}.py").is_file():
        return {"function": function, "source": sha256(Path(f"{module}.py"))}
    path = Path(text)
    if data and path.is_file():
        return {"file": sha256(path)}
    if data and path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {"folder": {str(file.relative_to(path)): sha256(file) for file in files}}
    return text


def samples_hash(samples: Iterable[dict[str, Any]]) -> str:
    """The hash of documents, prompts and targets that the harness's own command writes as task_hashes."""
    parts = (sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples)
    return hashlib.sha256("".join(parts).encode()).hexdigest()
