"""The suites that a judge decides, MT-Bench and AlpacaEval: all policies answer first, then the answers are judged.

Answers are completions of the store, and what a judge replied is kept, so that whatever ends an evaluation costs nothing
but what was under way. Without a judge the answers are written all the same, for other programs or a later run to judge.
The judge is asked through endpoint.py, which oracles of games need anyway. inspect-ai would bring its own models, logs and
cache beside the store's; FastChat is no longer maintained.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowmem_spin.budget import read_config
from lowmem_spin.data import Renderer
from lowmem_spin.display import Display
from lowmem_spin.endpoint import Endpoint, check_key
from lowmem_spin.evaluation import alpaca, mtbench
from lowmem_spin.keys import digest
from lowmem_spin.options import JudgeOracle
from lowmem_spin.played import Answering, Played
from lowmem_spin.preference import Question
from lowmem_spin.preference.choosing import settings
from lowmem_spin.preference.judge import Judge
from lowmem_spin.recipe import InputError
from lowmem_spin.rows import Answer, Compared, Prompt, fingerprint
from lowmem_spin.runs import note_used
from lowmem_spin.stages import Sampling, judged_asked

SUITES = ("mtbench", "alpaca")
TEMPERATURE = 0.7  # of answers to AlpacaEval, as most of its own entries of open models have it
Asks = Callable[[str], dict[str, Any]]


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

    def cache(self, game: Played) -> Path:
        """Where the judge's replies are kept."""
        return game.store.root / "judge"

    def endpoint(self, game: Played, judge: JudgeOracle) -> Endpoint:
        """The judge as a model that is asked."""
        where = judge.base_url, judge.model, self.cache(game), self.option("judge"), judge.api_key_env
        return Endpoint(*where, concurrency=judge.concurrency)

    def oracle(self, game: Played, judge: JudgeOracle, display: Display) -> Judge:
        """The judge as an oracle that prefers."""
        field, where = self.option("judge"), (judge.base_url, judge.model, self.cache(game))
        return Judge(*where, lambda line: display.say(line, "yellow"), field=field, final=False, **settings(judge))


def judge(
    base_url: str | None, model: str | None, api_key_env: str | None, concurrency: int, max_tokens: int | None
) -> JudgeOracle | None:
    """The judge of a command's options; None without any.

    Raises:
        InputError: half of it is missing.
    """
    if base_url is None and model is None:
        for option, value in (("--judge-api-key-env", api_key_env), ("--judge-max-tokens", max_tokens)):
            if value is not None:
                raise InputError(f"{option} {value!r}: of which judge? add --judge-base-url and --judge-model")
        return None
    if base_url is None:
        raise InputError(f"--judge-model {model!r}: where? add --judge-base-url, for instance http://localhost:8000/v1")
    if model is None:
        raise InputError(f"--judge-base-url {base_url!r}: which of its models? add --judge-model")
    known = {"concurrency": concurrency, "max_tokens": max_tokens}
    return JudgeOracle(base_url=base_url, model=model, api_key_env=api_key_env, **known)


def filled(given: Judged, recipes: Judged) -> Judged:
    """What a command was given, and for the rest what the recipe says. A judge is the one or the other, whole."""
    own = {name: getattr(recipes, name) for name in ("judge", "mtbench", "alpaca") if getattr(given, name) is None}
    said = {name: value for name, value in own.items() if value is not None}
    return replace(given, recipes=frozenset(said), **said)


def check(suite: str, asked: Judged, store: Path) -> None:
    """Refuse before a game is played what could not be asked after it."""
    option = asked.option(suite)
    if suite == "mtbench":
        mtbench.read(asked.mtbench or store / "mtbench", None, option)
    else:
        alpaca.read(asked.alpaca, None, option)
        if asked.alpaca is None and asked.judge is not None:
            alpaca.check_length_control(option)
    if asked.judge is not None and asked.judge.api_key_env is not None:
        check_key(asked.option("judge"), asked.judge.api_key_env)


def measure(suite: str, game: Played, asked: Judged, limit: int | None, display: Display) -> None:
    """One suite on the wanted policies of a game."""
    {"mtbench": _mtbench, "alpaca": _alpaca}[suite](game, asked, limit, display)


def _mtbench(game: Played, asked: Judged, limit: int | None, display: Display) -> None:
    option, folder = asked.option("mtbench"), asked.mtbench or game.store.root / "mtbench"
    if asked.download:
        mtbench.download(folder)
    bench = mtbench.read(folder, limit, option)
    with display.start_up("loading the tokenizer"):
        renderer = game.renderer()
    asked_of = max(sum(len(renderer.prompt([_user(turn)])) for turn in question.turns) for question in bench.questions)
    room = _room(game, option, asked_of, asked.longest or mtbench.LONGEST, turns=mtbench.TURNS)
    with_engines = game.answering((asked_of + room, room))

    def sampled(temperature: float) -> Sampling:
        return _sampled(with_engines.sampling, temperature, room)

    temperatures = sorted({question.temperature for question in bench.questions})
    judge = asked.judge
    grader = None if judge is None else mtbench.Grader(asked.endpoint(game, judge), judge.max_tokens or mtbench.REPLY)

    def asks(policy: str) -> dict[str, Any]:
        tables = [digest(sampled(temperature).asked(policy)) for temperature in temperatures]
        what = {"task": "mtbench", "questions": bench.identity, "answers": tables}
        return {"kind": "evaluate", "version": mtbench.VERSION, "policy": policy, **what, "judge": grader and grader.identity()}

    if grader is not None:
        _reach(grader.endpoint, game, asks)
    answers = _two_turns(game, with_engines, bench, renderer, sampled)
    place = game.folder / "mtbench"
    for name, given in answers.items():
        _write_lines(place / "model_answer" / f"{_file(name)}.jsonl", mtbench.answer_records(bench, _file(name), given))
    if judge is None or grader is None:
        display.say(_ungraded(f"{place}/model_answer", asked))
        return
    for name in game.wanted:
        game.ensure(
            asks(game.policies[name]),
            lambda: _grade(grader, bench, name, answers[name], display),  # noqa: B023 called at once
            digest([[answer.text for answer in answers[name][question.id]] for question in bench.questions]),
        )
    game.keep("mtbench", f"MT-Bench judged by {judge.model}", limit, asks)
    records = {name: game.result(asks(key)) for name, key in game.policies.items()}
    judgements = [
        {**line, "model": _file(name)} for name, record in records.items() if record for line in record["judgements"]
    ]  # another game may have another name for the same policy
    _write_lines(place / "model_judgment" / f"{_file(judge.model)}_single.jsonl", judgements)


def _two_turns(
    game: Played,
    with_engines: Answering,
    bench: mtbench.Bench,
    renderer: Renderer,
    sampled: Callable[[float], Sampling],
) -> dict[str, dict[int | str, list[Answer]]]:
    """{policy: {question: its two answers}}: each turn of all policies is one stage, so that engines can mix them."""
    found: dict[str, dict[int | str, list[Answer]]] = {name: {q.id: [] for q in bench.questions} for name in game.wanted}
    for turn in range(mtbench.TURNS):
        for temperature in sorted({question.temperature for question in bench.questions}):
            mine = [question for question in bench.questions if question.temperature == temperature]
            sampling = sampled(temperature)
            prompts = {name: [_prompt(renderer.prompt(_so_far(q, found[name][q.id]))) for q in mine] for name in game.wanted}
            asked = [(game.policies[name], prompts[name]) for name in game.wanted]
            label = f"MT-Bench turn {turn + 1} at temperature {temperature:g}"
            note_used(game.folder, "completions", [digest(sampling.asked(policy)) for policy, _ in asked])
            for name, answers in zip(game.wanted, with_engines.tables.answers(asked, sampling, label), strict=True):
                for question, answer in zip(mine, answers, strict=True):
                    found[name][question.id].append(answer)
    return found


def _so_far(question: mtbench.Question, answers: Sequence[Answer]) -> list[dict[str, str]]:
    """The conversation up to the turn that comes now."""
    before = [
        message
        for turn, answer in zip(question.turns, answers, strict=False)
        for message in (_user(turn), {"role": "assistant", "content": answer.text})
    ]
    return [*before, _user(question.turns[len(answers)])]


def _grade(
    grader: mtbench.Grader, bench: mtbench.Bench, name: str, answers: dict[int | str, list[Answer]], display: Display
) -> dict[str, Any]:
    judge = grader.endpoint.model
    with display.stage("judge", f"{name} on MT-Bench by {judge}", mtbench.TURNS * len(bench.questions)) as meter:
        judgements = grader.grade(bench, answers, meter.advance)
    numbers = mtbench.numbers(bench, judgements)
    silent = sum(one.reply is None for one in judgements)
    if silent or numbers["failed"]["value"]:
        failed = round(numbers["failed"]["value"] * len(judgements))
        display.say(f"{name}: {failed} of {len(judgements)} judgements have no score, {silent} of them no reply", "yellow")
    return {
        "numbers": numbers,
        "count": len(bench.questions),
        "fewshot": None,
        "own": False,
        "recorded": {"versions": {"judge": judge}},
        "unanswered": silent,
        "judgements": [one.record(_file(name), judge) for one in judgements],
    }


def _alpaca(game: Played, asked: Judged, limit: int | None, display: Display) -> None:
    option, judge = asked.option("alpaca"), asked.judge
    instructions = alpaca.read(asked.alpaca, limit, option)
    with display.start_up("loading the tokenizer"):
        renderer = game.renderer()
    if instructions.official and judge is not None:
        alpaca.check_length_control(option)
    prompts = [_prompt(renderer.prompt([_user(row["instruction"])])) for row in instructions.rows]
    longest = max(len(prompt.tokens) for prompt in prompts)
    room = _room(game, option, longest, asked.longest or alpaca.LONGEST)
    oracle = None if judge is None else asked.oracle(game, judge, display)
    with_engines = game.answering((longest, room), oracle)
    sampling = _sampled(with_engines.sampling, TEMPERATURE, room)

    def compared(policy: str) -> dict[str, Any]:
        known = {} if oracle is None else oracle.identity()
        return judged_asked([instructions.identity, f"{digest(sampling.asked(policy))}/0"], known)

    def asks(policy: str) -> dict[str, Any]:
        what = {"task": "alpaca", "judged": digest(compared(policy)), "official": instructions.official}
        return {"kind": "evaluate", "version": alpaca.VERSION, "policy": policy, **what}

    if oracle is not None:
        _reach(oracle.endpoint, game, asks)
    wanted = [(game.policies[name], prompts) for name in game.wanted]
    note_used(game.folder, "completions", [digest(sampling.asked(policy)) for policy, _ in wanted])
    answers = dict(zip(game.wanted, with_engines.tables.answers(wanted, sampling, "AlpacaEval"), strict=True))
    place = game.folder / "alpaca"
    for name, given in answers.items():
        _write_json(place / f"{_file(name)}.json", alpaca.outputs(instructions, _file(name), [one.text for one in given]))
    if judge is None or oracle is None:
        display.say(_ungraded(place, asked))
        return
    note_used(game.folder, "judgements", [digest(compared(policy)) for policy, _ in wanted])
    for name in game.wanted:
        asked_of = compared(game.policies[name])
        game.ensure(
            asks(game.policies[name]),
            lambda: _compare(with_engines, asked_of, instructions, prompts, name, answers[name], oracle),  # noqa: B023 called at once
            digest([answer.text for answer in answers[name]]),
        )
    task = f"{'AlpacaEval 2' if instructions.official else 'Win-rate'} against {instructions.baseline}, judged by {judge.model}"
    game.keep("alpaca", task, limit, asks)
    for name, key in game.policies.items():
        if (record := game.result(asks(key))) is not None:
            annotated = [{**line, "generator_2": _file(name)} for line in record["annotations"]]
            _write_json(place / f"annotations_{_file(name)}_by_{_file(judge.model)}.json", annotated)


def _compare(
    with_engines: Answering,
    asked: dict[str, Any],
    instructions: alpaca.Instructions,
    prompts: Sequence[Prompt],
    name: str,
    answers: Sequence[Answer],
    oracle: Judge,
) -> dict[str, Any]:
    rows = []
    for row, prompt, answer in zip(instructions.rows, prompts, answers, strict=True):
        question = Question([_user(row["instruction"])], [row["output"], answer.text], row["output"])
        rows.append(Compared(prompt.id, question, [list(row["output"].encode()), answer.tokens]))
    judge, before = oracle.endpoint.model, oracle.silent
    preferences = with_engines.tables.preferences(asked, rows, f"{name} against {instructions.baseline} by {judge}")
    wins, texts = [float(matrix[1, 0]) for matrix in preferences], [answer.text for answer in answers]
    annotated, silent = alpaca.annotations(instructions, _file(name), texts, wins, judge), oracle.silent - before
    failed, orders = oracle.failures([row.question for row in rows])
    return {
        "numbers": {
            **alpaca.numbers(instructions, annotated),
            "failed": {"value": (failed + silent) / max(orders, 1), "stderr": None},
        },
        "count": len(rows),
        "fewshot": None,
        "own": not instructions.official,
        "recorded": {"versions": {"judge": judge, **alpaca.versions(instructions)}},
        "unanswered": silent,
        "annotations": annotated,
    }


def _reach(endpoint: Endpoint, game: Played, asks: Asks) -> None:
    """Before policies answer for hours: the judge that will be needed is there."""
    if any(game.lacks(asks(game.policies[name])) for name in game.wanted):
        endpoint.reach()


def _room(game: Played, option: str, asked: int, wanted: int, turns: int = 1) -> int:
    """Tokens for each answer: those wanted, or as many as the model's context has beside what is asked."""
    context = read_config(game.model).get("max_position_embeddings")
    room = wanted if context is None else min(wanted, (int(context) - asked) // turns)
    if room < 1:
        raise InputError(
            f"{option}: a question of {asked} tokens leaves no room to answer in a context of {context}; remove it"
        )
    return room


def _sampled(own: Sampling, temperature: float, room: int) -> Sampling:
    """Plain sampling with the game's seed and engine."""
    return replace(own, temperature=temperature, top_p=1.0, top_k=None, max_new_tokens=room, mixture=None)


def _prompt(tokens: Sequence[int]) -> Prompt:
    return Prompt(fingerprint(tokens), tokens)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _ungraded(place: Path | str, asked: Judged) -> str:
    remedy = "set evaluation.judge" if "judge" in asked.recipes else "add --judge-base-url and --judge-model"
    return f"answers are in {place}, ungraded: {remedy}, or give them to FastChat or alpaca_eval"


def _file(name: str) -> str:
    """A name as a file and as other programs take it."""
    return re.sub(r"[^\w.-]+", "_", name)


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _write_json(path: Path, records: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")
