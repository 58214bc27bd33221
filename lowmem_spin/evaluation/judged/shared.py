"""What is to be judged and by whom, and what MT-Bench and AlpacaEval have in common."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError, quoted
from lowmem_spin.common.files import json_text, write_text
from lowmem_spin.common.keys import digest
from lowmem_spin.config.choices import JudgeOracle
from lowmem_spin.config.endpoint_fields import SecretError, subfield
from lowmem_spin.config.wanted import wanted
from lowmem_spin.config.yaml_text import YAMLTextError, read_yaml
from lowmem_spin.data.formats import Message
from lowmem_spin.data.sources import Sources
from lowmem_spin.engines.model_files import ModelFiles
from lowmem_spin.engines.oracles.base import OracleContext
from lowmem_spin.engines.oracles.endpoint import Endpoint
from lowmem_spin.engines.oracles.judge import LLMJudge
from lowmem_spin.evaluation.target import EvaluationTarget
from lowmem_spin.store.rows import Prompt, fingerprint

EXTRA_BODY = "--judge-extra-body"
Asks = Callable[[str], dict[str, Any]]
"""What names the result of a policy, by its key."""


@dataclass(frozen=True)
class Judged:
    """What is to be judged, and by whom."""

    judge: JudgeOracle | None = None
    mtbench: Path | None = None  # folder with FastChat's files; None is the store's
    alpaca: Path | None = None  # None is the official file
    longest: int | None = None  # tokens of an answer, instead of the suite's
    download: bool = False
    recipes: frozenset[str] = frozenset()  # names of what a recipe said and no command, for messages

    def option(self, name: str) -> str:
        """What a user calls one of these things."""
        return f"{'evaluation.' if name in self.recipes else '--'}{name}"

    def cache(self, game: EvaluationTarget) -> Path:
        """Where the judge's replies are kept."""
        return game.store.root / "judge"

    def endpoint(self, game: EvaluationTarget, judge: JudgeOracle) -> Endpoint:
        """The judge as a model that is asked."""
        where = judge.base_url, judge.model, self.cache(game), self.option("judge"), judge.api_key_env
        return Endpoint(*where, extra=judge.extra_body, concurrency=judge.concurrency)

    def oracle(self, game: EvaluationTarget, judge: JudgeOracle, display: Display) -> LLMJudge:
        """The judge as an oracle that prefers."""
        return LLMJudge.from_recipe(judge, self.context(game, display), field=self.option("judge"), final=False)

    def context(self, game: EvaluationTarget, display: Display) -> OracleContext:
        """What an oracle that judges this game's policies is opened with."""
        sources = Sources(game.folder, game.store.root / "sources.json", notice=game.store.notice)
        return OracleContext(sources, game.machine, self.cache(game), lambda line: display.log(line, "yellow"))


def judge_from_options(
    base_url: str | None,
    model: str | None,
    api_key_env: str | None,
    concurrency: int,
    max_tokens: int | None,
    extra_body: str | None = None,
) -> JudgeOracle | None:
    """The judge of a command's options; None without any. `extra_body` is YAML, and so JSON.

    Raises:
        InputError: half of it is missing, or cannot be used.
    """
    given: dict[str, Any] = {"base_url": base_url, "model": model, "api_key_env": api_key_env, "max_tokens": max_tokens}
    if base_url is None and model is None:
        for name, value in {**given, "extra_body": extra_body}.items():
            if value is not None:  # and may be a secret
                raise InputError(f"{subfield('--judge', name)}: needs --judge-base-url and --judge-model")
        return None
    if base_url is None:
        raise InputError(f"--judge-model {model!r}: where? add --judge-base-url, for instance http://localhost:8000/v1")
    if model is None:
        raise InputError("--judge-base-url: which of its models? add --judge-model")
    given |= {"concurrency": concurrency} | ({} if extra_body is None else {"extra_body": _fields(extra_body)})
    try:
        return JudgeOracle.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option, why = subfield("--judge", str(problem["loc"][0])), wanted(problem)
        if isinstance(problem.get("ctx", {}).get("error"), SecretError):
            raise InputError(f"{option}: {why}") from None
        if option == EXTRA_BODY:
            why = "write it as '{field: value}'" if problem["type"] == "dict_type" else why
            raise InputError(f"{option} {quoted(extra_body)}: {why}") from None
        raise InputError(f"{option} {quoted(problem['input'])}: {why}") from None


def _fields(text: str) -> Any:
    """Fields of a request as YAML has them, and so JSON."""
    try:
        return read_yaml(text)
    except YAMLTextError:
        raise InputError(f"{EXTRA_BODY} {quoted(text)}: not valid YAML; quote it: '{{max_tokens: null}}'") from None


def with_recipe_defaults(given: Judged, recipes: Judged) -> Judged:
    """What a command was given, and for the rest what the recipe says. A judge is the one or the other, whole."""
    own = {name: getattr(recipes, name) for name in ("judge", "mtbench", "alpaca") if getattr(given, name) is None}
    said = {name: value for name, value in own.items() if value is not None}
    return replace(given, recipes=frozenset(said), **said)


def reach_judge(endpoint: Endpoint, game: EvaluationTarget, asks: Asks, judged: Judged) -> None:
    """Before policies answer for hours: the judge that will be needed is there. A recipe's may come later: while the game
    has the only GPU, the judge cannot have it."""
    if "judge" not in judged.recipes and any(game.lacks(asks(game.policies[name])) for name in game.wanted):
        endpoint.reach()


def answer_room(game: EvaluationTarget, option: str, longest: int, wanted: int, turns: int = 1) -> int:
    """Tokens for each answer: those wanted, or as many as the model's context has beside what is asked."""
    context = ModelFiles(game.model).context
    room = wanted if context is None else min(wanted, (context - longest) // turns)
    if room < 1:
        raise InputError(
            f"{option}: a question of {longest} tokens leaves no room to answer in a context of {context}; remove it"
        )
    return room


def plain_sampling(own: Sampling, temperature: float, room: int) -> Sampling:
    """Plain sampling with the game's seed and engine."""
    return replace(own, temperature=temperature, top_p=1.0, top_k=None, max_new_tokens=room, mixture=None)


def as_prompt(tokens: Sequence[int]) -> Prompt:
    """A prompt that is no row of the data, known by its tokens."""
    return Prompt(fingerprint(tokens), tokens)


def user(text: str) -> Message:
    """A question."""
    return {"role": "user", "content": text}


def ungraded(place: Path, judged: Judged) -> str:
    """What to tell who gave no judge."""
    remedy = "set evaluation.judge" if "judge" in judged.recipes else "add --judge-base-url and --judge-model"
    return f"answers are in {place}, ungraded: {remedy}, or give them to FastChat or alpaca_eval"


def file_name(name: str) -> str:
    """A name as a file and as other programs take it."""
    clean = re.sub(r"[^\w.-]+", "_", name)
    return clean if len(clean.encode()) <= 150 else f"{clean.encode()[:139].decode(errors='ignore')}_{digest(name)[:10]}"


def write_json_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """As FastChat has them."""
    write_text(path, "".join(json_text(record) + "\n" for record in records))


def write_json_list(path: Path, records: Sequence[Any]) -> None:
    """As AlpacaEval has them."""
    write_text(path, json_text(records, indent=1))
