"""AlpacaEval on the policies of a game: each answer beside a baseline's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lowmem_spin.algorithm.pair_sources import Sampling, judgement_spec
from lowmem_spin.algorithm.preferences import Comparison
from lowmem_spin.common.display import Display
from lowmem_spin.common.files import check_inside
from lowmem_spin.common.keys import digest
from lowmem_spin.engines.oracles.judge import LLMJudge
from lowmem_spin.evaluation.judged import alpaca
from lowmem_spin.evaluation.judged.shared import (
    Judged,
    answer_room,
    as_prompt,
    file_name,
    plain_sampling,
    reach_judge,
    ungraded,
    user,
    write_json_list,
)
from lowmem_spin.evaluation.target import Answering, EvaluationTarget
from lowmem_spin.runner.run_folder import note_used
from lowmem_spin.store.rows import Answer, Compared, Prompt

TEMPERATURE = 0.7  # of answers, as most of AlpacaEval's own entries of open models have it


def answer_sampling(own: Sampling, room: int) -> Sampling:
    """How policies answer: with the game's temperature, top_p and top_k if it has any of its own.

    SPPO's and RSPO's code take those of the game, 0.7 and top-p 0.9, in AlpacaEval too. A game that samples whole policies
    does so because its algorithm assumes it, and is answered for at TEMPERATURE.
    """
    whole = (own.temperature, own.top_p, own.top_k) == (1.0, 1.0, None)
    return plain_sampling(own, TEMPERATURE, room) if whole else replace(own, max_new_tokens=room, mixture=None)


def in_words(sampling: Sampling) -> str:
    """As "temperature 0.7, top_p 0.9"."""
    settings = {"temperature": sampling.temperature}
    if sampling.temperature:
        settings |= {"top_p": sampling.top_p if sampling.top_p < 1 else None, "top_k": sampling.top_k}
    return ", ".join(f"{name} {value:g}" for name, value in settings.items() if value is not None)


def measure_alpaca(game: EvaluationTarget, judged: Judged, limit: int | None, display: Display) -> None:
    """Have the wanted policies answer, the answers judged, and both written to the game's folder."""
    check_inside(game.folder, "alpaca")
    option, judge = judged.option("alpaca"), judged.judge
    instructions = alpaca.read_alpaca(judged.alpaca, limit, option)
    with display.start_up("loading the tokenizer"):
        renderer = game.renderer()
    if instructions.official and judge is not None:
        alpaca.check_length_control(option)
    prompts = [as_prompt(renderer.prompt([user(row["instruction"])])) for row in instructions.rows]
    longest = max(len(prompt.tokens) for prompt in prompts)
    room = answer_room(game, option, longest, judged.longest or alpaca.LONGEST)
    oracle = None if judge is None else judged.oracle(game, judge, display)
    with_engines = game.answering((longest, room), oracle)
    sampling = answer_sampling(with_engines.sampling, room)

    def compared(policy: str) -> dict[str, Any]:
        known = {} if oracle is None else oracle.spec()
        return judgement_spec([instructions.identity, f"{digest(sampling.spec(policy))}/0"], known)

    def asks(policy: str) -> dict[str, Any]:
        what = {"task": "alpaca", "judged": digest(compared(policy)), "official": instructions.official}
        return {"kind": "evaluate", "version": alpaca.VERSION, "policy": policy, **what}

    if oracle is not None:
        reach_judge(oracle.endpoint, game, asks, judged)
    wanted = [(game.policies[name], prompts) for name in game.wanted]
    note_used(game.store, game.folder, "completions", [digest(sampling.spec(policy)) for policy, _ in wanted])
    answers = dict(zip(game.wanted, with_engines.tables.answers(wanted, sampling, "AlpacaEval"), strict=True))
    place = game.folder / "alpaca"
    for name, given in answers.items():
        write_json_list(
            place / f"{file_name(name)}.json", alpaca.outputs(instructions, file_name(name), [one.text for one in given])
        )
    if judge is None or oracle is None:
        display.log(ungraded(place, judged))
        return
    note_used(game.store, game.folder, "judgements", [digest(compared(policy)) for policy, _ in wanted])
    for name in game.wanted:
        asked_of = compared(game.policies[name])
        game.ensure(
            asks(game.policies[name]),
            lambda: _compare(with_engines, sampling, asked_of, instructions, prompts, name, answers[name], oracle),  # noqa: B023 called at once
            digest([answer.text for answer in answers[name]]),
        )
    task = f"{'AlpacaEval 2' if instructions.official else 'Win-rate'} against {instructions.baseline}, judged by {judge.model}"
    game.keep("alpaca", task, limit, asks)
    for name, key in game.policies.items():
        if (record := game.result(asks(key))) is not None:
            annotated = [{**line, "generator_2": file_name(name)} for line in record["annotations"]]
            write_json_list(place / f"annotations_{file_name(name)}_by_{file_name(judge.model)}.json", annotated)


def _compare(
    with_engines: Answering,
    sampling: Sampling,
    spec: dict[str, Any],
    instructions: alpaca.Instructions,
    prompts: Sequence[Prompt],
    name: str,
    answers: Sequence[Answer],
    oracle: LLMJudge,
) -> dict[str, Any]:
    rows = []
    for row, prompt, answer in zip(instructions.rows, prompts, answers, strict=True):
        question = Comparison([user(row["instruction"])], [row["output"], answer.text], row["output"])
        rows.append(Compared(prompt.id, question, [list(row["output"].encode()), answer.tokens]))
    judge, before = oracle.endpoint.model, oracle.silent
    preferences = with_engines.tables.preferences(spec, rows, f"{name} against {instructions.baseline} by {judge}")
    wins, texts = [float(matrix[1, 0]) for matrix in preferences], [answer.text for answer in answers]
    annotated, silent = alpaca.annotations(instructions, file_name(name), texts, wins, judge), oracle.silent - before
    failed, orders = oracle.failures([row.question for row in rows])
    return {
        "numbers": {
            **alpaca.alpaca_numbers(instructions, annotated),
            "failed": {"value": (failed + silent) / max(orders, 1), "stderr": None},
        },
        "count": len(rows),
        "fewshot": None,
        "own": not instructions.official,
        "recorded": {"versions": {"judge": judge, **alpaca.versions(instructions)}, "sampling": in_words(sampling)},
        "unanswered": silent,
        "annotations": annotated,
    }
