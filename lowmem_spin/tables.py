"""Ask for completions, log-probs and adapters; what the store lacks is computed by an engine and committed."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from lowmem_spin.engines import Completion, Generator, Learner, Request
from lowmem_spin.game import Sampling, Train, logps_asked
from lowmem_spin.keys import digest, number
from lowmem_spin.store import Store, Table, Tokens, token_arrays

ROOM = 2**20  # bytes: a disk with less is full


class Prompt(NamedTuple):
    """What one completion is asked of."""

    id: str
    tokens: Tokens
    sample: int = 0  # of several answers to one prompt

    @property
    def name(self) -> tuple[str, int]:
        return self.id, self.sample


class Meter(Protocol):
    """One stage's progress bar."""

    def advance(self, rows: int, tokens: int = 0) -> None: ...

    def saved(self) -> None:
        """All that was computed so far is stored: a good moment to stop."""
        ...


class Engines(Protocol):
    """The game's engines, opened when first asked for."""

    def generator(self) -> Generator: ...

    def learner(self) -> Learner: ...


class Progress(Protocol):
    """What a long stage tells whoever watches; see display.py."""

    def stage(self, kind: str, label: str, rows: int) -> AbstractContextManager[Meter]: ...


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
        return self.prompt_id, self.completion, hashlib.sha256(np.asarray(self.tokens, np.int32).tobytes()).hexdigest()[:16]


class Tables:
    """The memo tables of one base: every question is answered from the store if it can be.

    Args:
        base_adapter: folder of the adapter that the base policy has, if it has one.
        engines: opened on first use, so that a finished game loads no model.
        opened: tables by key, which all games of a sweep hold in memory once.
    """

    def __init__(
        self,
        store: Store,
        base: str,
        base_adapter: Path | None,
        learner: dict[str, Any],
        engines: Engines,
        progress: Progress,
        generation_batch: int,
        scoring_batch: int,
        opened: dict[str, Table],
    ) -> None:
        self.store, self.base, self.base_adapter, self.learner_identity = store, base, base_adapter, learner
        self.engines, self.progress = engines, progress
        self.generation_batch, self.scoring_batch = generation_batch, scoring_batch
        self._open = opened

    def adapter(self, policy: str) -> Path | None:
        """The policy's adapter folder; None is the frozen base as it is."""
        if policy == self.base:
            return self.base_adapter
        folder = self.store.adapter(policy)
        if folder is None:
            raise RuntimeError(f"policy {policy} is used before it is trained")
        return folder

    def _table(self, kind: str, key: str, asked: dict[str, Any], policy: str) -> Table:
        if key not in self._open:
            maker = "base" if policy == self.base else self.store.maker(policy)
            self._open[key] = self.store.table(kind, key, asked, maker)
        return self._open[key]

    def answers(self, asked: Sequence[tuple[str, Sequence[Prompt]]], sampling: Sampling, label: str) -> list[list[Answer]]:
        """For each (policy, prompts), the policy's completion of each prompt, in order."""
        tables: dict[str, Table] = {}
        for policy, _ in asked:
            names = sampling.asked(policy)
            tables[policy] = self._table("completions", digest(names), names, policy)
        stored = {policy: _answers(table) for policy, table in tables.items()}
        if any(prompt.name not in stored[policy] for policy, prompts in asked for prompt in prompts):
            with ExitStack() as held:
                for key in sorted(table.key for table in tables.values()):  # in one order, so that no two wait for each other
                    held.enter_context(self.store.writing(key))
                stored = {policy: _answers(table) for policy, table in tables.items()}
                self._generate(asked, sampling, tables, stored, label)
                for table in tables.values():
                    table.merge()
                stored = {policy: _answers(table) for policy, table in tables.items()}
        return [[stored[policy][prompt.name] for prompt in prompts] for policy, prompts in asked]

    def _generate(
        self,
        asked: Sequence[tuple[str, Sequence[Prompt]]],
        sampling: Sampling,
        tables: dict[str, Table],
        stored: dict[str, dict[tuple[str, int], Answer]],
        label: str,
    ) -> None:
        # Batches are cut from the stage's whole list, so an interrupted stage goes on with the same ones. The longest
        # come first: a batch that does not fit in memory fails at once and not after hours.
        groups = [
            [(policy, prompt) for prompt in sorted(_once(prompts), key=lambda prompt: (-len(prompt.tokens), prompt.name))]
            for policy, prompts in asked
        ]
        generator = self.engines.generator()
        if generator.mixes_policies:
            groups = [[item for group in groups for item in group]]
        batches = [batch for group in groups for batch in _batches(group, self.generation_batch)]
        with self.progress.stage("generate", label, sum(map(len, batches))) as meter:
            for batch in batches:
                missing = [(policy, prompt) for policy, prompt in batch if prompt.name not in stored[policy]]
                meter.advance(len(batch) - len(missing))
                if missing:
                    completions = generator.generate(
                        [
                            Request(self.adapter(policy), prompt.tokens, number(tables[policy].key, *prompt.name))
                            for policy, prompt in missing
                        ],
                        sampling,
                    )
                    _append(tables, missing, completions)
                    meter.advance(len(missing), sum(len(completion.tokens) for completion in completions))
                    meter.saved()

    def logps(self, policy: str, rows: Sequence[Scored], label: str) -> np.ndarray:
        """The policy's summed log-prob of each row, in order, float64."""
        asked = logps_asked(policy, self.learner_identity)
        key = digest(asked)
        table = self._table("logps", key, asked, policy)
        stored = _logps(table)
        if any(row.name not in stored for row in rows):
            with self.store.writing(key):
                stored = _logps(table)
                self._score(policy, table, rows, stored, label)
                table.merge()
                stored = _logps(table)
        return np.array([stored[row.name] for row in rows])

    def _score(
        self, policy: str, table: Table, rows: Sequence[Scored], stored: dict[tuple[str, str, str], float], label: str
    ) -> None:
        unique = {row.name: row for row in rows}
        wanted = sorted(unique.items(), key=lambda item: (-len(item[1].prompt) - len(item[1].tokens), item[0]))
        learner = self.engines.learner()
        with self.progress.stage("score", label, len(wanted)) as meter:
            for shard in _batches(wanted, 16 * self.scoring_batch):
                missing = [row for name, row in shard if name not in stored]
                meter.advance(len(shard) - len(missing))
                values: list[float] = []
                for batch in _batches(missing, self.scoring_batch):
                    values += learner.score(self.adapter(policy), [(row.prompt, row.tokens) for row in batch])
                    meter.advance(len(batch), sum(len(row.prompt) + len(row.tokens) for row in batch))
                if missing:
                    table.append(
                        {
                            "prompt_id": [row.prompt_id for row in missing],
                            "completion": [row.completion for row in missing],
                            "content": [row.name[2] for row in missing],
                            "logp": values,
                            "tokens": [len(row.tokens) for row in missing],
                        }
                    )
                    meter.saved()

    def train(self, stage: Train, pairs: Callable[[], Sequence[Any]], label: str) -> Path:
        """The stage's adapter; `pairs` are put together only if it has to be trained."""
        policy = stage.policy
        folder = self.store.adapter(policy)
        if folder is not None:
            return folder
        with self.store.writing(policy):
            folder = self.store.adapter(policy)
            if folder is None:
                folder = self._train(stage, pairs(), label)
        return folder

    def _train(self, stage: Train, pairs: Sequence[Any], label: str) -> Path:
        work = self.store.work(stage.policy)
        work.mkdir(parents=True, exist_ok=True)
        learner = self.engines.learner()
        tokens_per_row = sum(pair.tokens for pair in pairs) / len(pairs)
        rows = len(pairs) * stage.settings["num_train_epochs"]
        with self.progress.stage("train", label, rows) as meter, _naming_a_full_disk(work):
            made, metrics = learner.train(
                self.adapter(stage.init),
                pairs,
                stage.loss,
                stage.settings,
                work,
                lambda rows: meter.advance(rows, round(rows * tokens_per_row)) if rows else meter.saved(),
            )
        manifest = {"kind": "train", "name": stage.name, "asked": stage.asked(), "rows": len(pairs), "metrics": metrics}
        return self.store.commit_adapter(stage.policy, made, manifest)


@contextmanager
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    """torch and safetensors each report a full disk in their own way; say it as the system does."""
    try:
        yield
    except Exception as error:
        if shutil.disk_usage(folder).free < ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _once(prompts: Sequence[Prompt]) -> list[Prompt]:
    return list({prompt.name: prompt for prompt in prompts}.values())


def _append(tables: dict[str, Table], rows: Sequence[tuple[str, Prompt]], completions: Sequence[Completion]) -> None:
    """Commit one batch of completions, a shard for each policy in it."""
    for policy in dict.fromkeys(policy for policy, _ in rows):
        mine = [(row[1], completion) for row, completion in zip(rows, completions, strict=True) if row[0] == policy]
        tables[policy].append(
            {
                "prompt_id": [prompt.id for prompt, _ in mine],
                "sample": [prompt.sample for prompt, _ in mine],
                "tokens": [completion.tokens for _, completion in mine],
                "text": [completion.text for _, completion in mine],
                "finish_reason": [completion.finish_reason for _, completion in mine],
                "logp": [completion.logp for _, completion in mine],
            }
        )


def _answers(table: Table) -> dict[tuple[str, int], Answer]:
    rows = table.read()
    columns = (rows[name].to_pylist() for name in ("prompt_id", "text", "finish_reason", "logp", "sample"))
    answers = {}
    for prompt_id, text, reason, logp, sample, tokens in zip(*columns, token_arrays(rows["tokens"]), strict=True):
        answers[prompt_id, sample] = Answer(tokens, text, reason, logp, table.key, sample)
    return answers


def _logps(table: Table) -> dict[tuple[str, str, str], float]:
    rows = table.read()
    names = zip(*(rows[name].to_pylist() for name in ("prompt_id", "completion", "content")), strict=True)
    return dict(zip(names, rows["logp"].to_pylist(), strict=True))
