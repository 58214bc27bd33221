"""MT-Bench (arXiv 2306.05685): two-turn questions, each answer graded by itself by a judge, from 1 to 10.

The questions, the judge's prompts and its reference answers are FastChat's files, read from a folder laid out as there.
What is written has FastChat's layout too. As there: categories have temperatures of their own; math, reasoning and coding
are judged beside a reference answer; the second turn is judged with the first in view; a reply's first [[n]] is the score.
Otherwise than there, an n outside 1 to 10 is a failure, not a score.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.endpoint_fields import subfield
from lowmem_spin.engines.oracles.endpoint import Endpoint, NoReplyError
from lowmem_spin.runner.health import Estimate
from lowmem_spin.store.rows import Answer

VERSION = 1  # bumped by hand when the same answers would be judged otherwise
TEMPERATURES = {"stem": 0.1, "humanities": 0.1, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0}
OTHERS = 0.7  # the temperature of any other category, which are writing, roleplay and your own
REFERRED = ("math", "reasoning", "coding")  # categories that are judged beside a reference answer
TURNS = 2
LONGEST = 1024  # tokens of an answer
REPLY = 2048  # tokens of a judge's reply
OWN = ("score", "turn 1", "turn 2", "failed")  # numbers beside those of the categories
BOUND, ENOUGH = 0.2, 20  # the share of judgements, and of no fewer than so many, that may have no reply
SCORE = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


@dataclass(frozen=True)
class MTBenchQuestion:
    """Two turns, and for some categories how a good answer to each looks."""

    id: int | str
    category: str
    turns: list[str]
    reference: list[str] | None

    @property
    def temperature(self) -> float:
        """Of the answers."""
        return TEMPERATURES.get(self.category, OTHERS)


@dataclass(frozen=True)
class MTBench:
    """The questions, and the judge's prompts by (referred, second turn)."""

    questions: list[MTBenchQuestion]
    prompts: dict[tuple[bool, bool], dict[str, str]]

    @property
    def identity(self) -> str:
        """Hash of all that is asked of policies and of judges."""
        content = [[q.id, q.category, q.temperature, q.turns, q.reference] for q in self.questions]
        return digest([content, [self.prompts[kind] for kind in sorted(self.prompts)]])

    @property
    def categories(self) -> list[str]:
        return list(dict.fromkeys(question.category for question in self.questions))


@dataclass(frozen=True)
class Judgement:
    """A line of FastChat's judgement file; the score is -1 where the reply has none."""

    question: MTBenchQuestion
    turn: int  # 1 or 2
    prompt_name: str
    user_prompt: str
    reply: str | None  # None: none came

    @property
    def score(self) -> float:
        return parse_score(self.reply or "")

    def record(self, model: str, judge: str) -> dict[str, Any]:
        """As FastChat writes it."""
        told = {"question_id": self.question.id, "model": model, "judge": [judge, self.prompt_name]}
        said = {"user_prompt": self.user_prompt, "judgment": self.reply or "$ERROR$", "score": self.score}
        return {**told, **said, "turn": self.turn, "tstamp": time.time()}


def parse_score(reply: str) -> float:
    """The first [[n]] of a reply, or the first [n] if it has none; -1 if it has neither or n is not within 1 to 10."""
    found = next((match for pattern in SCORE if (match := pattern.search(reply))), None)
    value = float(found[1]) if found else -1.0
    return value if 1 <= value <= 10 else -1.0


class Grader:
    """A judge that gives each answer its score.

    What has no reply after all tries is asked again when the same is measured again; what the judge replied is not.
    """

    def __init__(self, endpoint: Endpoint, max_tokens: int = REPLY) -> None:
        self.endpoint, self.max_tokens = endpoint, max_tokens
        self._lock = threading.Lock()
        self._done = self._silent = 0

    def spec(self) -> dict[str, Any]:
        """What decides its scores besides the prompts."""
        return {"model": self.endpoint.model, "temperature": 0.0, "max_tokens": self.max_tokens, "extra": self.endpoint.extra}

    def grade(
        self, bench: MTBench, answers: Mapping[int | str, Sequence[Answer]], advance: Callable[[int], None]
    ) -> list[Judgement]:
        """Judge one policy's answers, both turns of every question.

        Args:
            bench: the questions.
            answers: by the question's id, its two answers.
            advance: called with 1 for each judgement.

        Raises:
            InputError: more than a fifth have no reply, or the endpoint will never give one.
        """
        work = [(question, turn) for question in bench.questions for turn in range(TURNS)]
        self._done = self._silent = 0

        def judge(item: tuple[MTBenchQuestion, int]) -> Judgement:
            question, turn = item
            prompt = bench.prompts[question.reference is not None, turn > 0]
            texts = [answer.text for answer in answers[question.id]]
            asked = prompt["prompt_template"].format(**prompt_fields(question, turn, texts))
            messages = [{"role": "system", "content": prompt["system_prompt"]}, {"role": "user", "content": asked}]
            reply = self._ask(messages)
            with self._lock:
                advance(1)
            return Judgement(question, turn + 1, prompt["name"], asked, reply)

        return self.endpoint.each(judge, work)

    def _ask(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        try:
            reply = self.endpoint.ask(messages, 0.0, self.max_tokens)
        except NoReplyError as error:
            with self._lock:
                self._done, self._silent = self._done + 1, self._silent + 1
                if self._silent > BOUND * max(self._done, ENOUGH):
                    count = f"{self._silent} of {self._done} judgements have no reply, at most {BOUND:.0%} may"
                    where = subfield(self.endpoint.field, "base_url")
                    raise InputError(f"{where}: {count}; the last: {error}; what came is kept, run again") from None
            return None
        with self._lock:
            self._done += 1
        return reply


def prompt_fields(question: MTBenchQuestion, turn: int, answers: Sequence[str]) -> dict[str, str]:
    """What the places of a judge's prompt stand for."""
    both = {f"ref_answer_{place + 1}": text for place, text in enumerate(question.reference or [])}
    if turn == 0:
        return {"question": question.turns[0], "answer": answers[0], **both}
    for place in range(TURNS):
        both |= {f"question_{place + 1}": question.turns[place], f"answer_{place + 1}": answers[place]}
    return both


def mtbench_numbers(bench: MTBench, judgements: Sequence[Judgement]) -> dict[str, dict[str, Any]]:
    """Means over judgements that have a score, as FastChat takes them; errors are over questions, whose turns depend.

    Returns:
        score, turn 1, turn 2, each category, and the share that failed. `values` are per question, where none failed.
    """
    scored = [one for one in judgements if one.score > 0]
    groups: dict[str, list[Judgement]] = {"score": scored}
    groups |= {f"turn {turn + 1}": [one for one in scored if one.turn == turn + 1] for turn in range(TURNS)}
    groups |= {name: [one for one in scored if one.question.category == name] for name in bench.categories}
    found = {name: _mean(group) for name, group in groups.items() if group}
    if len(scored) == len(judgements):
        of_question = {q.id: fmean(one.score for one in scored if one.question.id == q.id) for q in bench.questions}
        found["score"]["values"] = list(of_question.values())
    failed = Estimate(np.array([one.score < 0 for one in judgements], float))
    return {**found, "failed": {"value": failed.mean, "stderr": failed.error}}


def _mean(group: Sequence[Judgement]) -> dict[str, Any]:
    """The mean of scores, and its error with a question's two turns taken as one cluster."""
    mean = fmean(one.score for one in group)
    off: dict[int | str, float] = {}
    for one in group:
        off[one.question.id] = off.get(one.question.id, 0.0) + one.score - mean
    count = len(off)
    if count < 2:
        return {"value": mean, "stderr": None}
    return {"value": mean, "stderr": (sum(v * v for v in off.values()) * count / (count - 1)) ** 0.5 / len(group)}


def answer_records(bench: MTBench, model: str, answers: Mapping[int | str, Sequence[Answer]]) -> list[dict[str, Any]]:
    """One policy's answers as FastChat's gen_model_answer writes them."""
    when = time.time()
    return [
        {
            "question_id": question.id,
            "answer_id": digest([model, question.id, [answer.text for answer in answers[question.id]]]),
            "model_id": model,
            "choices": [{"index": 0, "turns": [answer.text for answer in answers[question.id]]}],
            "tstamp": when,
        }
        for question in bench.questions
    ]
