"""What is asked of the store's tables, row by row: prompts to answer, answers, rows to score, answers to compare."""

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lowmem_spin.algorithm.preferences import Comparison
from lowmem_spin.common.files import Tokens
from lowmem_spin.common.parquet import token_arrays
from lowmem_spin.store.table import Table


def fingerprint(tokens: Tokens) -> str:
    """Hash of a completion's tokens."""
    return hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).hexdigest()[:16]


class Prompt(NamedTuple):
    """What one completion is asked of."""

    id: str
    tokens: Tokens
    sample: int = 0  # of several answers to one prompt

    @property
    def name(self) -> tuple[str, int]:
        return self.id, self.sample


@dataclass(frozen=True)
class Answer:
    """One stored completion."""

    tokens: Tokens
    text: str
    finish_reason: str
    logp: float  # as the generator saw it
    table: str  # key of the completions table it is in
    sample: int = 0

    @property
    def name(self) -> str:
        """How the log-probs tables call it."""
        return f"{self.table}/{self.sample}"


@dataclass(frozen=True)
class Scored:
    """A row to score: a prompt of the data with the data's answer or a generated one."""

    prompt_id: str
    prompt: Tokens
    completion: str  # "chosen" or Answer.name
    tokens: Tokens

    @property
    def name(self) -> tuple[str, str, str]:
        """Its place in a log-probs table. The content is a part of it only so that the log-probs of a completion
        that was lost and came out differently are never taken for the new one's."""
        return self.prompt_id, self.completion, fingerprint(self.tokens)

    @property
    def side(self) -> str:
        """Which answers it is one of: "chosen", or the key of a completions table."""
        return self.completion.partition("/")[0]


@dataclass(frozen=True)
class Compared:
    """Answers to one prompt, for an oracle."""

    prompt_id: str
    question: Comparison
    tokens: Sequence[Tokens]  # of the answers, in the question's order

    @property
    def name(self) -> tuple[str, str]:
        """Its place in a judgements table, with the content for the reason that Scored.name has."""
        return self.prompt_id, fingerprint([-1, *(token for tokens in self.tokens for token in (*tokens, -1))])


def answers_in(table: Table, prompts: Set[str]) -> dict[tuple[str, int], Answer]:
    """The answers of a completions or mixtures table to prompts of these ids, by (prompt id, sample)."""
    rows = table.read(prompts)
    columns = (rows[name].to_pylist() for name in ("prompt_id", "text", "finish_reason", "logp", "sample"))
    answers = {}
    for prompt_id, text, reason, logp, sample, tokens in zip(*columns, token_arrays(rows["tokens"]), strict=True):
        answers[prompt_id, sample] = Answer(tokens, text, reason, logp, table.key, sample)
    return answers


def logps_in(table: Table, prompts: Set[str]) -> dict[tuple[str, str, str], float]:
    """The log-probs of a table for prompts of these ids, by Scored.name."""
    rows = table.read(prompts)
    names = zip(*(rows[name].to_pylist() for name in ("prompt_id", "completion", "content")), strict=True)
    return dict(zip(names, rows["logp"].to_pylist(), strict=True))


def preferences_in(table: Table) -> dict[tuple[str, str], np.ndarray]:
    """The preferences (K, K) of a judgements table, by Compared.name."""
    rows = table.read()
    names = zip(rows["prompt_id"].to_pylist(), rows["content"].to_pylist(), strict=True)
    flat = [np.array(values, np.float64) for values in rows["preferences"].to_pylist()]
    return {name: values.reshape(round(len(values) ** 0.5), -1) for name, values in zip(names, flat, strict=True)}
