"""All policies of a run against each other on the same prompts, every two answers judged in both orders."""

from pathlib import Path
from typing import Any

import numpy as np

from lowmem_spin.algorithm.measured import samples_judged
from lowmem_spin.algorithm.preferences import Comparison
from lowmem_spin.common.checked import write_checked
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.common.trust import Trust
from lowmem_spin.data.formats import Message
from lowmem_spin.engines.foreign_code import code_of_oracle, key_of_judge
from lowmem_spin.engines.oracles.base import Oracle, open_oracle
from lowmem_spin.engines.oracles.judge import LLMJudge
from lowmem_spin.evaluation import bradley_terry, json_rows
from lowmem_spin.evaluation.judged.shared import Judged
from lowmem_spin.evaluation.target import Answering, EvaluationTarget
from lowmem_spin.runner import run_folder
from lowmem_spin.runner.open import SharedResources
from lowmem_spin.runner.run_folder import note_used
from lowmem_spin.store.rows import Compared, Prompt, fingerprint

ArenaPrompts = list[tuple[Prompt, list[Message], str]]
"""Each prompt as the policies and as the judge see it, and the data's answer if there is one."""


def arena(
    folder: Path, prompts: Path | None, limit: int, judged: Judged, display: Display, trust: bool = False
) -> dict[str, Any]:
    """Let the base and all trained iterates answer, have them judged, and count who wins how often.

    Args:
        folder: of the run.
        prompts: a JSONL file; None takes held-out rows, which the game itself has had answered.
        limit: of how many prompts.
        judged: the judge; without one, the recipe's oracle.
        display: what a person sees.
        trust: whether code that comes with the run may run.

    Returns:
        What `arena.json` in the folder has.

    Raises:
        InputError: one line on what is missing.
    """
    run, shared = run_folder.read_run_folder(folder), SharedResources(trust=Trust(trust))
    try:
        game = EvaluationTarget.from_run(run, "all", shared, display)
        if len(game.wanted) < 2:
            raise InputError(f"run {str(folder)!r}: has no iterate yet to put against the base; play it first")
        oracle = _oracle(game, run, judged, display)
        code = code_of_oracle(oracle)
        if judged.judge is None:
            code += key_of_judge(run.recipe.game.oracle, "game.oracle")
        shared.trust.check(code, lambda line: display.log(line, "yellow"))
        questions, room = _asked(game, prompts, limit, display)
        if isinstance(oracle, LLMJudge):
            oracle.endpoint.reach()
        record = _play(game, game.answering(room, oracle), questions, oracle, display)
    finally:
        shared.engines.close()
    record["from"] = "held-out rows" if prompts is None else prompts.name
    write_checked(folder / FILE, record)
    return record


def _oracle(game: EvaluationTarget, run: run_folder.RunFolder, judged: Judged, display: Display) -> Oracle:
    if judged.judge is not None:
        return judged.oracle(game, judged.judge, display)
    own = open_oracle(run.recipe.game.oracle, judged.context(game, display))
    if own is None:
        raise InputError(
            f"--judge-model: who judges? the recipe of {str(run.folder)!r} has no game.oracle; add --judge-base-url and "
            "--judge-model"
        )
    return own


def _asked(
    game: EvaluationTarget, prompts: Path | None, limit: int, display: Display
) -> tuple[ArenaPrompts, tuple[int, int] | None]:
    """What is asked, and the room that it needs if it is not of the recipe's own data."""
    if prompts is None:
        held = game.answering().held
        positions = held.health[:limit]
        rows = held.rows
        return [(Prompt(rows.ids[p], rows.prompt(p)), rows.messages(p), rows.completions[p]) for p in positions], None
    lines = json_rows.rows(prompts, "--prompts", f"no file {str(prompts)!r}; leave the option out to take held-out rows")
    conversations = [_conversation(line, prompts) for line in lines[:limit]]
    if not conversations:
        raise InputError(f"--prompts: {str(prompts)!r} has no prompt")
    with display.start_up("loading the tokenizer"):
        renderer = game.renderer()
    rendered = [renderer.prompt(conversation) for conversation in conversations]
    questions: ArenaPrompts = [
        (Prompt(fingerprint(tokens), tokens), conversation, "")
        for tokens, conversation in zip(rendered, conversations, strict=True)
    ]
    return questions, (max(map(len, rendered)), game.recipe.generation.max_new_tokens)


def _conversation(line: Any, path: Path) -> list[Message]:
    """What a line asks: the text of `prompt` or `instruction`, or `messages` up to the last that is not an answer."""
    known = line if isinstance(line, dict) else {}
    text = next((known[name] for name in ("prompt", "instruction") if isinstance(known.get(name), str)), None)
    if text is not None:
        return [{"role": "user", "content": text}]
    messages = known.get("messages")
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise InputError(f"--prompts: a line of {str(path)!r} has neither a prompt nor messages with a role and a text each")
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise InputError(f"--prompts: a line of {str(path)!r} asks nothing")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _play(
    game: EvaluationTarget, answering: Answering, questions: ArenaPrompts, oracle: Oracle, display: Display
) -> dict[str, Any]:
    prompts, names = [prompt for prompt, _, _ in questions], game.wanted
    policies = [game.policies[name] for name in names]
    judge = oracle.spec()
    shown, how = str(judge.get("model", judge["oracle"])), "in both orders by" if isinstance(oracle, LLMJudge) else "by"
    pairs = len(names) * (len(names) - 1) // 2 * len(prompts)
    display.log(f"{len(names)} policies, {len(prompts)} prompts, {pairs:,} pairs, each judged {how} {shown}")
    tables, sampling = answering.tables, answering.sampling
    own = [digest(sampling.spec(policy)) for policy in policies]
    named = samples_judged(policies, sampling, judge)
    note_used(game.store, game.folder, "completions", own)
    note_used(game.store, game.folder, "judgements", [digest(named)])
    answers = tables.answers([(policy, prompts) for policy in policies], sampling, f"{len(names)} policies")
    rows = []
    for position, (prompt, messages, reference) in enumerate(questions):
        mine = [of_policy[position] for of_policy in answers]
        question = Comparison(messages, [answer.text for answer in mine], reference)
        rows.append(Compared(prompt.id, question, [answer.tokens for answer in mine]))
    preferences = np.stack(tables.preferences(named, rows, f"{len(names)} policies by {shown}"))
    found = bradley_terry.arena_table(names, preferences, game.recipe.seed)
    failed = {}
    if isinstance(oracle, LLMJudge):
        undecided, orders = oracle.failures([row.question for row in rows])
        failed = {"failed": undecided + oracle.silent, "orders": orders}
    numbers = {name: _known(getattr(found, name)) for name in ("wins", "errors", "strengths", "low", "high")}
    about = {"judge": shown, "how": how, "names": names, "policies": policies, "prompts": len(prompts)}
    return {**about, **numbers, **failed}


def _known(numbers: np.ndarray) -> Any:
    """As lists, null where there is no number: JSON has no NaN."""
    found = numbers.astype(object)
    found[np.isnan(numbers)] = None
    return found.tolist()


FILE = "arena.json"
