"""A preference oracle that asks a language model, in both orders, behind any OpenAI-compatible endpoint."""

import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, Self

import numpy as np

from lowmem_spin.algorithm.preferences import Comparison, of_pairs
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.choices import JudgeOracle
from lowmem_spin.config.endpoint_fields import subfield
from lowmem_spin.engines.oracles.base import NoWeights, OracleContext
from lowmem_spin.engines.oracles.endpoint import Endpoint, NoReplyError

BOUND = 0.2  # the share of orders that may fail,
ENOUGH, EARLY = 20, 50  # of as many as this at least, at the end of a call and in the middle of one
VERDICT = re.compile(r"\[\[([ABC])\]\]")
VERDICTS = {"A": 1.0, "B": 0.0, "C": 0.5}  # what the answer shown as A gets
PLACES = re.compile(r"\{(conversation|answer_a|answer_b|reference)\}")
PROMPT = """\
Two assistants have each written an answer to the conversation below. Decide which answer serves the user better: which is \
right, does what was asked, and is clear. Neither the order of the two nor their length is a merit.

<conversation>
{conversation}
</conversation>

<answer_A>
{answer_a}
</answer_A>

<answer_B>
{answer_b}
</answer_B>

Compare them in a few sentences. Then end with your verdict, alone on the last line: [[A]] if answer A is better, [[B]] if \
answer B is better, [[C]] if neither is."""
AGAIN = "Your verdict is missing. Give it now and nothing else: [[A]], [[B]] or [[C]]."


class LLMJudge(NoWeights):
    """P[i, j] is the mean, over the two orders in which i and j are shown, of 1 for i, 1/2 for a tie and 0 for j.

    A judge that only looks at places so gives 1/2 (as in MT-Bench, arXiv 2306.05685, section 3.4, but with the halves
    kept). The last [[A]], [[B]] or [[C]] of a reply is its verdict. Without one the judge is asked for it again, in the
    same conversation, `tries` times. An order that has no verdict after that, or no reply, has failed: the other order's
    verdict stands alone, and without either P is 1/2.

    All that an endpoint replies is kept in `cache`, so an interrupted judge goes on where it was.

    Args:
        base_url, model, cache, api_key_env, extra: see endpoint.Endpoint.
        prompt: what the judge reads, with {conversation}, {answer_a}, {answer_b} and, if wanted, {reference}, which is
            the data's own answer.
        temperature: None leaves it to the server.
        max_tokens: of a reply; None leaves it to the server.
        tries: how often a missing verdict is asked for.
        concurrency, timeout, retries: see endpoint.Endpoint; they decide no judgement.
        notify: told once, in a line, that orders have failed, and that kept replies are damaged.
        field: where the recipe speaks of this oracle.
        final: whether a pair that got no reply stays as it was counted, as a game that learns from it needs; else it is
            in `undecided` until it is judged again.

    Raises:
        InputError: the address is none, or the prompt lacks a place.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        cache: Path,
        notify: Callable[[str], None],
        api_key_env: str | None = None,
        prompt: str = PROMPT,
        temperature: float | None = 0.0,
        max_tokens: int | None = 1024,
        extra: Mapping[str, Any] | None = None,
        tries: int = 2,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        field: str = "game.oracle",
        final: bool = True,
    ) -> None:
        missing = {"conversation", "answer_a", "answer_b"} - set(PLACES.findall(prompt))
        if missing:
            raise InputError(f"{subfield(field, 'prompt')}: it has no {{{min(missing)}}}, so the judge would not see it")
        self.field, self.prompt, self.tries, self.notify = field, prompt, tries, notify
        self.temperature, self.max_tokens = temperature, max_tokens
        self.endpoint = Endpoint(base_url, model, cache, field, api_key_env, extra, concurrency, timeout, retries, notify)
        self.orders = self.failed = self.unjudged = 0  # orders asked, those that failed, and pairs whose both orders did
        self.silent = 0  # orders without a reply
        self.undecided: Collection[int] = ()
        self._final = final
        self._cause = ""
        self._reported = False
        self._silent: set[str] = set()  # prompts of the last `prefer` that got no reply
        self._lock = threading.Lock()

    @classmethod
    def from_recipe(cls, section: JudgeOracle, context: OracleContext, **given: Any) -> Self:
        """See base.Oracle; `given` are further arguments of the class. What the section leaves open is the class's own."""
        longest = {} if section.max_tokens is None else {"max_tokens": section.max_tokens}
        options = {"api_key_env": section.api_key_env, "concurrency": section.concurrency, "extra": section.extra_body}
        return cls(section.base_url, section.model, context.cache, context.notify, **{**options, **longest, **given})

    def spec(self) -> dict[str, Any]:
        """The judge's name and how it is asked. Not its address: a server may move, and a name is what was asked for."""
        sampling = {"temperature": self.temperature, "max_tokens": self.max_tokens, "extra": self.endpoint.extra}
        prompt = digest([self.prompt, AGAIN])
        return {"oracle": "judge", "model": self.endpoint.model, "prompt": prompt, "tries": self.tries, **sampling}

    def located(self) -> dict[str, Any]:
        """See base.Oracle: an address is the same from everywhere."""
        return {}

    def close(self) -> None:
        """Let go of the connections."""
        self.endpoint.close()

    @property
    def failure_rate(self) -> float:
        """The share of orders that failed so far."""
        return self.failed / self.orders if self.orders else 0.0

    def prefer(self, questions: Sequence[Comparison]) -> list[np.ndarray]:
        """P for each question; see base.Oracle.

        Raises:
            InputError: more than a fifth of all orders so far have failed (of the first 20, while they are fewer; in
                the middle of a call, where failures may have come first, of the first 50), or every one.
        """
        prompt_of = self._orders(questions)
        prompts, self._silent = list(dict.fromkeys(prompt_of.values())), set()
        verdicts = dict(zip(prompts, self.endpoint.each(self._judge, prompts), strict=True))
        self.undecided = (
            set() if self._final else {number for (number, _, _), prompt in prompt_of.items() if prompt in self._silent}
        )
        self._stop_if_hopeless(1 if self.failed == self.orders else ENOUGH)

        def wins(number: int, one: str, other: str) -> float:
            forth, back = verdicts[prompt_of[number, one, other]], verdicts[prompt_of[number, other, one]]
            shares = [share for share in (forth, None if back is None else 1 - back) if share is not None]
            self.unjudged += not shares
            return sum(shares) / len(shares) if shares else 0.5

        matrices = [
            of_pairs(question.answers, lambda one, other, number=number: wins(number, one, other))
            for number, question in enumerate(questions)
        ]
        self._report()
        return matrices

    def _orders(self, questions: Sequence[Comparison]) -> dict[tuple[int, str, str], str]:
        """{(question, the answer shown as A, the other): prompt}"""
        return {
            (number, one, other): self._ask(question, one, other)
            for number, question in enumerate(questions)
            for one, other in permutations(dict.fromkeys(question.answers), 2)
        }

    def failures(self, questions: Sequence[Comparison]) -> tuple[int, int]:
        """(orders without a verdict in all that the judge replied, orders), whichever process asked."""
        prompts = set(self._orders(questions).values())
        return sum(map(self._has_none, prompts)), len(prompts)

    def _has_none(self, prompt: str) -> bool:
        messages = [{"role": "user", "content": prompt}]
        for _ in range(self.tries + 1):
            reply = self.endpoint.kept(messages, self.temperature, self.max_tokens)
            if reply is None or VERDICT.search(reply):
                return False
            messages += _once_more(reply)
        return True

    def _ask(self, question: Comparison, first: str, second: str) -> str:
        """The prompt that shows `first` as A."""
        turns = "\n\n".join(f"{message['role']}: {message['content']}" for message in question.messages)
        fields = {"conversation": turns, "answer_a": first, "answer_b": second, "reference": question.reference}
        return PLACES.sub(lambda match: fields[match[1]], self.prompt)

    def _judge(self, prompt: str) -> float | None:
        """What the answer shown as A gets; None if this order failed."""
        messages = [{"role": "user", "content": prompt}]
        cause = ""
        verdict = None
        try:
            for _ in range(self.tries + 1):
                reply = self.endpoint.ask(messages, self.temperature, self.max_tokens)
                letters = VERDICT.findall(reply)
                if letters:
                    verdict = VERDICTS[letters[-1]]
                    break
                cause = f"model: no verdict in {reply[-80:]!r}"
                messages += _once_more(reply)
        except NoReplyError as error:
            cause = f"base_url: {error}"
            with self._lock:
                self.silent += 1
                self._silent.add(prompt)
        with self._lock:
            self.orders += 1
            if verdict is None:
                self.failed += 1
                self._cause = cause
                self._stop_if_hopeless(EARLY)
        return verdict

    def _stop_if_hopeless(self, least: int) -> None:
        if self.failed > BOUND * max(self.orders, least):
            subject, _, cause = self._cause.partition(": ")
            count = f"{self.failed} of {self.orders} judgements failed"
            raise InputError(f"{subfield(self.field, subject)}: {count}, at most {BOUND:.0%} may; the last: {cause}")

    def _report(self) -> None:
        if self.failed and not self._reported:
            self._reported = True
            _, _, cause = self._cause.partition(": ")
            self.notify(
                f"{self.field}: {self.failed} of {self.orders} judgements failed ({self.failure_rate:.1%}), and "
                f"{self.unjudged} pairs without any count as 1/2; the last: {cause}"
            )


def _once_more(reply: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": reply or "..."}, {"role": "user", "content": AGAIN}]
