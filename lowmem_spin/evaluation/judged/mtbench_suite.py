"""MT-Bench on the policies of a game: two turns of all of them, then each answer graded by itself."""

from collections.abc import Callable, Sequence
from typing import Any

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.common.display import Display
from lowmem_spin.common.files import check_inside
from lowmem_spin.common.keys import digest
from lowmem_spin.data.formats import Message
from lowmem_spin.data.render import Renderer
from lowmem_spin.evaluation.judged import mtbench, mtbench_files
from lowmem_spin.evaluation.judged.shared import (
    Judged,
    answer_room,
    as_prompt,
    file_name,
    plain_sampling,
    reach_judge,
    ungraded,
    user,
    write_json_lines,
)
from lowmem_spin.evaluation.target import Answering, EvaluationTarget
from lowmem_spin.runner.run_folder import note_used
from lowmem_spin.store.rows import Answer


def measure_mtbench(game: EvaluationTarget, judged: Judged, limit: int | None, display: Display) -> None:
    """Have the wanted policies answer, the answers judged, and both written to the game's folder."""
    check_inside(game.folder, "mtbench", "mtbench/model_answer", "mtbench/model_judgment")
    option, folder = judged.option("mtbench"), judged.mtbench or game.store.root / "mtbench"
    if judged.download:
        mtbench_files.download(folder)
    bench = mtbench_files.read_mtbench(folder, limit, option)
    with display.start_up("loading the tokenizer"):
        renderer = game.renderer()
    asked_of = max(sum(len(renderer.prompt([user(turn)])) for turn in question.turns) for question in bench.questions)
    room = answer_room(game, option, asked_of, judged.longest or mtbench.LONGEST, turns=mtbench.TURNS)
    with_engines = game.answering((asked_of + room, room))

    def sampled(temperature: float) -> Sampling:
        return plain_sampling(with_engines.sampling, temperature, room)

    temperatures = sorted({question.temperature for question in bench.questions})
    judge = judged.judge
    grader = None if judge is None else mtbench.Grader(judged.endpoint(game, judge), judge.max_tokens or mtbench.REPLY)

    def asks(policy: str) -> dict[str, Any]:
        tables = [digest(sampled(temperature).spec(policy)) for temperature in temperatures]
        what = {"task": "mtbench", "questions": bench.identity, "answers": tables}
        return {"kind": "evaluate", "version": mtbench.VERSION, "policy": policy, **what, "judge": grader and grader.spec()}

    if grader is not None:
        reach_judge(grader.endpoint, game, asks, judged)
    answers = _two_turns(game, with_engines, bench, renderer, sampled)
    place = game.folder / "mtbench"
    for name, given in answers.items():
        write_json_lines(
            place / "model_answer" / f"{file_name(name)}.jsonl", mtbench.answer_records(bench, file_name(name), given)
        )
    if judge is None or grader is None:
        display.log(ungraded(place / "model_answer", judged))
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
        {**line, "model": file_name(name)} for name, record in records.items() if record for line in record["judgements"]
    ]  # another game may have another name for the same policy
    write_json_lines(place / "model_judgment" / f"{file_name(judge.model)}_single.jsonl", judgements)


def _two_turns(
    game: EvaluationTarget,
    with_engines: Answering,
    bench: mtbench.MTBench,
    renderer: Renderer,
    sampled: Callable[[float], Sampling],
) -> dict[str, dict[int | str, list[Answer]]]:
    """{policy: {question: its two answers}}: each turn of all policies is one stage, so that engines can mix them."""
    found: dict[str, dict[int | str, list[Answer]]] = {name: {q.id: [] for q in bench.questions} for name in game.wanted}
    for turn in range(mtbench.TURNS):
        for temperature in sorted({question.temperature for question in bench.questions}):
            mine = [question for question in bench.questions if question.temperature == temperature]
            sampling = sampled(temperature)
            prompts = {name: [as_prompt(renderer.prompt(_so_far(q, found[name][q.id]))) for q in mine] for name in game.wanted}
            requests = [(game.policies[name], prompts[name]) for name in game.wanted]
            label = f"MT-Bench turn {turn + 1} at temperature {temperature:g}"
            note_used(game.store, game.folder, "completions", [digest(sampling.spec(policy)) for policy, _ in requests])
            for name, answers in zip(game.wanted, with_engines.tables.answers(requests, sampling, label), strict=True):
                for question, answer in zip(mine, answers, strict=True):
                    found[name][question.id].append(answer)
    return found


def _so_far(question: mtbench.MTBenchQuestion, answers: Sequence[Answer]) -> list[Message]:
    """The conversation up to the turn that comes now."""
    before = [
        message
        for turn, answer in zip(question.turns, answers, strict=False)
        for message in (user(turn), {"role": "assistant", "content": answer.text})
    ]
    return [*before, user(question.turns[len(answers)])]


def _grade(
    grader: mtbench.Grader, bench: mtbench.MTBench, name: str, answers: dict[int | str, list[Answer]], display: Display
) -> dict[str, Any]:
    judge = grader.endpoint.model
    with display.stage("judge", f"{name} on MT-Bench by {judge}", mtbench.TURNS * len(bench.questions)) as meter:
        judgements = grader.grade(bench, answers, meter.advance)
    numbers = mtbench.mtbench_numbers(bench, judgements)
    silent = sum(one.reply is None for one in judgements)
    if silent or numbers["failed"]["value"]:
        failed = round(numbers["failed"]["value"] * len(judgements))
        display.log(f"{name}: {failed} of {len(judgements)} judgements have no score, {silent} of them no reply", "yellow")
    return {
        "numbers": numbers,
        "count": len(bench.questions),
        "fewshot": None,
        "own": False,
        "recorded": {"versions": {"judge": judge}},
        "unanswered": silent,
        "judgements": [one.record(file_name(name), judge) for one in judgements],
    }
