"""How a task of lm-evaluation-harness is put to a policy: as its plain text, or as turns in the game's chat template."""

import difflib
import json
import re
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ValidationError

from lowmem_spin.common.errors import InputError, quoted
from lowmem_spin.config.harness_config import GenKwargs, Harness
from lowmem_spin.config.wanted import wanted
from lowmem_spin.config.yaml_text import YAMLTextError, read_yaml


@dataclass(frozen=True)
class Prompting:
    """What is not the task's own. Without anything it is the task's plain text, as every task was asked by earlier versions."""

    chat_template: bool = False
    multiturn: bool = False  # the examples before a question are turns of their own
    gen_kwargs: str = "{}"  # JSON of what holds instead of the task's generation_kwargs

    @classmethod
    def of(cls, options: Harness) -> Self:
        return cls(options.apply_chat_template, options.multiturn, json.dumps(options.gen_kwargs.given, sort_keys=True))

    @property
    def generation(self) -> dict[str, Any]:
        return json.loads(self.gen_kwargs)

    def record(self) -> dict[str, Any]:
        """By the harness's names, for keys and files; empty for plain text, as which earlier versions stored every result."""
        if self == PLAIN:
            return {}
        turns = {"fewshot_as_multiturn": self.multiturn} if self.chat_template else {}
        return {"chat_template": self.chat_template, **turns, "gen_kwargs": self.generation}


PLAIN = Prompting()


def in_words(record: dict[str, Any]) -> str:
    """For a table's title, from `Prompting.record`."""
    template = "with the chat template" if record.get("chat_template") else "without a chat template"
    turns = ", examples in one turn" if record.get("fewshot_as_multiturn") is False else ""
    generation = "".join(f", {name} {json.dumps(value)}" for name, value in record.get("gen_kwargs", {}).items())
    return template + turns + generation


@dataclass(frozen=True)
class HarnessChanges:
    """What a command's options change of a recipe's evaluation.harness; None leaves it."""

    apply_chat_template: bool | None = None
    fewshot_as_multiturn: bool | None = None
    gen_kwargs: str | None = None  # KEY=VALUE,...
    log_samples: bool | None = None

    def of(self, own: Harness, tasks: bool, harness: bool) -> Harness:
        """The recipe's options with these changes.

        Args:
            own: the recipe's.
            tasks: whether tasks are asked by name.
            harness: whether anything is asked with the harness.

        Raises:
            InputError: they are for nothing, or do not go together.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in given.items():
            if name == "log_samples" and not harness:
                raise InputError("--log-samples: of which task? it is for --task and --suite leaderboard")
            if name != "log_samples" and not tasks:
                leaderboard = "; the leaderboard is asked as it was, in plain text and greedily" if harness else ""
                raise InputError(f"{_option(name, value)}: of which task? it is for those named by --task{leaderboard}")
        if "gen_kwargs" in given:
            given["gen_kwargs"] = _fields(given["gen_kwargs"])
        turns = own.fewshot_as_multiturn if given.get("apply_chat_template", True) else None
        try:
            return Harness.model_validate({**own.model_dump(), "fewshot_as_multiturn": turns, **given})
        except ValidationError as error:
            raise InputError(_why(error)) from None


UNCHANGED = HarnessChanges()


def _option(name: str, value: Any) -> str:
    """An option as it was typed."""
    flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
    return flag if isinstance(value, bool) else f"{flag} {quoted(value)}"


def _fields(text: str) -> Any:
    """KEY=VALUE,... with values as YAML has them, lists among them."""
    try:
        found = read_yaml("{" + re.sub(r"(^|,)\s*(\w+)=", r"\1 \2: ", text) + "}")
    except YAMLTextError:
        found = None
    if not isinstance(found, dict) or not found or None in found.values():
        raise InputError(f"--gen-kwargs {quoted(text)}: give KEY=VALUE,..., for instance do_sample=true,temperature=0.7")
    return found


def _why(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where, why = problem["loc"], wanted(problem)
    if where[:1] != ("gen_kwargs",):
        return "--fewshot-as-multiturn: without the chat template there are no turns; leave out --no-apply-chat-template"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(where[1]), GenKwargs.model_fields, n=1)
        known = f"did you mean {near[0]}?" if near else f"known here: {', '.join(GenKwargs.model_fields)}"
        return f"--gen-kwargs: unknown {quoted(where[1])}; {known}"
    return f"--gen-kwargs {where[1]}={quoted(problem['input'])}: {why}" if len(where) > 1 else f"--gen-kwargs: {why}"
