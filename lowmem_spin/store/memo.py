"""Ask for completions, log-probs and preferences; what the store lacks is computed by an engine and committed."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_spin.algorithm.pair_sources import Sampling, logps_spec
from lowmem_spin.algorithm.samplers.mixture import MixtureSample
from lowmem_spin.common.keys import digest, number
from lowmem_spin.engines.base import Completion, MixtureSampler, Request, sampling_mixtures
from lowmem_spin.engines.mixtures import draw_mixture
from lowmem_spin.engines.own_function import OwnFunction
from lowmem_spin.store.batches import in_batches, prompts_to_answer, rows_by_prompt, scoring_batches, tokens_of
from lowmem_spin.store.claims import Claims, Share
from lowmem_spin.store.contracts import Engines, Progress
from lowmem_spin.store.rows import Answer, Compared, Prompt, Scored, answers_in, logps_in, preferences_in
from lowmem_spin.store.store import MERGING, Store
from lowmem_spin.store.table import Table


@dataclass(kw_only=True)
class Tables:
    """The memo tables of one base: every question is answered from the store if it can be."""

    store: Store
    base: str
    base_adapter: Path | None  # folder of the adapter that the base policy has, if it has one
    learner: dict[str, Any]  # its spec
    engines: Engines  # opened on first use, so that a finished game loads no model
    progress: Progress
    generation_batch: int
    scoring_tokens: int  # that go through the model at once
    opened: dict[str, Table]  # by key; all games of a sweep hold them in memory once
    own_loss: OwnFunction | None = None  # what the recipe's loss computes with, if it is a person's own
    share: Share = Share.ALL

    def adapter(self, policy: str) -> Path | None:
        """The policy's adapter folder; None is the frozen base as it is."""
        if policy == self.base:
            return self.base_adapter
        folder = self.store.adapter(policy)
        if folder is None:
            raise RuntimeError(f"policy {policy} is used before it is trained")
        return folder

    def _table(self, kind: str, spec: dict[str, Any], policy: str) -> Table:
        key = digest(spec)
        if key not in self.opened:
            adapter_sha256 = "base" if policy == self.base else self.store.adapter_sha256(policy)
            self.opened[key] = self.store.table(kind, key, spec, adapter_sha256)
        return self.opened[key]

    def answers(
        self, prompts_by_policy: Sequence[tuple[str, Sequence[Prompt]]], sampling: Sampling, label: str
    ) -> list[list[Answer]]:
        """For each (policy, prompts), the policy's completion of each prompt, in order."""
        tables: dict[str, Table] = {}
        for policy, _ in prompts_by_policy:
            kind = "mixtures" if sampling.mixes(policy) else "completions"
            tables[policy] = self._table(kind, sampling.spec(policy), policy)

        prompt_ids = {prompt.id for _, prompts in prompts_by_policy for prompt in prompts}

        def answered() -> dict[str, dict[tuple[str, int], Answer]]:
            stored = {}
            for policy, table in tables.items():
                with self._merging(table.key):
                    stored[policy] = answers_in(table, prompt_ids)
            return stored

        def whole(stored: dict[str, dict[tuple[str, int], Answer]]) -> bool:
            return all(prompt.name in stored[policy] for policy, prompts in prompts_by_policy for prompt in prompts)

        if not whole(stored := answered()):
            with ExitStack() as locks:
                for key in sorted(table.key for table in tables.values()):  # in one order, so that no two wait for each other
                    locks.enter_context(self._writing(key))
                if not whole(stored := answered()):  # nobody else has given them meanwhile
                    self._generate(prompts_by_policy, sampling, tables, stored, answered, label)
                    for table in tables.values() if self.share is not Share.HELP else ():
                        with self._merging(table.key):
                            table.merge()
                    stored = answered()
        return [[stored[policy][prompt.name] for prompt in prompts] for policy, prompts in prompts_by_policy]

    def _generate(
        self,
        prompts_by_policy: Sequence[tuple[str, Sequence[Prompt]]],
        sampling: Sampling,
        tables: dict[str, Table],
        stored: dict[str, dict[tuple[str, int], Answer]],
        answered: Callable[[], dict[str, dict[tuple[str, int], Answer]]],
        label: str,
    ) -> None:
        # Batches are cut from the stage's whole list, so an interrupted stage goes on with the same ones.
        groups = [[(policy, prompt) for prompt in prompts_to_answer(prompts)] for policy, prompts in prompts_by_policy]
        generator = self.engines.generator()
        if generator.mixes_policies:
            groups = [[item for group in groups for item in group]]
        size = self.generation_batch * generator.batches_at_once
        batches = [batch for group in groups for batch in in_batches(group, size)]
        of = sorted(table.key for table in tables.values())
        with (
            self.progress.stage("generate", label, sum(map(len, batches))) as meter,
            self._ours(of, batches, lambda: stored.update(answered())) as ours,
        ):
            for batch in ours:
                missing = [(policy, prompt) for policy, prompt in batch if prompt.name not in stored[policy]]
                meter.skip(len(batch) - len(missing))
                if missing:
                    requests = [
                        Request(self.adapter(policy), prompt.tokens, number(tables[policy].key, *prompt.name))
                        for policy, prompt in missing
                    ]
                    if sampling.mixes(missing[0][0]):
                        tokens = self._mix(sampling_mixtures(generator), requests, sampling, tables[missing[0][0]], missing)
                    else:
                        completions = generator.generate(requests, sampling)
                        _append(tables, missing, completions)
                        tokens = sum(len(completion.tokens) for completion in completions)
                    meter.advance(len(missing), tokens)
                    meter.saved()

    def _mix(
        self,
        generator: MixtureSampler,
        requests: Sequence[Request],
        sampling: Sampling,
        table: Table,
        rows: Sequence[tuple[str, Prompt]],
    ) -> int:
        """One batch of one policy's mixture with the base; the number of tokens."""
        mixed = sampling.mixture or {}
        draws = draw_mixture(generator, self.adapter(mixed["base"]), requests, sampling, self.generation_batch)
        completions = [generator.completion(draw.tokens or [], math.nan) for draw in draws]
        columns = _columns([prompt for _, prompt in rows], completions)
        columns["finish_reason"] = [draw.finish_reason for draw in draws]
        for name in ("proposals", "ess", "log_z"):
            columns[name] = [getattr(draw, name) for draw in draws]
        table.append(columns)
        return sum(len(completion.tokens) for completion in completions)

    @contextmanager
    def _writing(self, key: str, part: str | None = None) -> Iterator[None]:
        """The right to write, which who helps has of the process that it helps."""
        if self.share is Share.HELP:
            yield
        else:
            with self.store.writing(key, part):
                yield

    def _merging(self, key: str) -> AbstractContextManager[None]:
        """While those that share a stage read and merge its tables: a shard that is gone is then in what it was merged into."""
        return nullcontext() if self.share is Share.ALL else self.store.writing(key, "merging", patience=MERGING)

    @contextmanager
    def _ours(self, of: Sequence[str], batches: Sequence[Any], refresh: Callable[[], None]) -> Iterator[Iterable[Any]]:
        """What of a stage's batches this process is to look through; `of` names the stage."""
        if self.share is Share.ALL:
            yield batches
            return
        claims = Claims(self.store.path("locks", digest(list(of))), batches, backwards=self.share is Share.HELP)
        with closing(claims.taken(refresh)) as ours:
            yield ours
        claims.remove()

    def draws(self, policy: str, sampling: Sampling, prompts: Sequence[tuple[str, int]]) -> list[MixtureSample]:
        """How a policy's stored mixture answers, by (prompt id, sample), were drawn, their steps' weights left out."""
        rows = self._table("mixtures", sampling.spec(policy), policy).read()
        columns = (rows[name].to_pylist() for name in ("prompt_id", "sample", "finish_reason", "proposals", "ess", "log_z"))
        stored = {
            (prompt_id, sample): MixtureSample(None if reason == "rejected" else [], reason, [], count, ess, log_z)
            for prompt_id, sample, reason, count, ess, log_z in zip(*columns, strict=True)
        }
        return [stored[name] for name in prompts]

    def logps(self, policy: str, rows: Sequence[Scored], label: str) -> np.ndarray:
        """The policy's summed log-prob of each row, in order, float64."""
        table = self._table("logps", logps_spec(policy, self.learner), policy)
        prompt_ids = {row.prompt_id for row in rows}
        stored = logps_in(table, prompt_ids)
        if any(row.name not in stored for row in rows):
            with ExitStack() as locks:
                for side in sorted({row.side for row in rows}):  # several may score at once, but not the same answers
                    locks.enter_context(self._writing(table.key, side))
                with self.store.writing(table.key, patience=MERGING):  # not while another process merges
                    stored = logps_in(table, prompt_ids)
                if any(row.name not in stored for row in rows):
                    self._score(policy, table, rows, stored, label)
                    with self.store.writing(table.key, patience=MERGING):
                        if self.share is not Share.HELP:
                            table.merge()
                        stored = logps_in(table, prompt_ids)
        return np.array([stored[row.name] for row in rows])

    def _score(
        self, policy: str, table: Table, rows: Sequence[Scored], stored: dict[tuple[str, str, str], float], label: str
    ) -> None:
        batches = scoring_batches(rows, self.scoring_tokens)
        learner = self.engines.learner()

        def refresh() -> None:
            with self.store.writing(table.key, patience=MERGING):
                stored.update(logps_in(table, {row.prompt_id for row in rows}))

        of, shards = [table.key, *sorted({row.side for row in rows})], in_batches(batches, 16)
        with (
            self.progress.stage("score", label, sum(map(len, batches))) as meter,
            self._ours(of, shards, refresh) as ours,
        ):
            for shard in ours:
                scored: list[Scored] = []
                logps: list[float] = []
                for batch in shard:
                    missing = [row for row in batch if row.name not in stored]
                    meter.skip(len(batch) - len(missing))
                    if missing:
                        logps += learner.score(self.adapter(policy), [(row.prompt, row.tokens) for row in missing])
                        scored += missing
                        meter.advance(len(missing), sum(map(tokens_of, rows_by_prompt(missing))))
                if scored:
                    columns = {
                        "prompt_id": [row.prompt_id for row in scored],
                        "completion": [row.completion for row in scored],
                        "content": [row.name[2] for row in scored],
                        "logp": logps,
                        "tokens": [len(row.tokens) for row in scored],
                    }
                    table.append(columns)
                    meter.saved()

    def preferences(self, spec: dict[str, Any], rows: Sequence[Compared], label: str) -> list[np.ndarray]:
        """The oracle's preferences (K, K) between the answers of each row; `spec` is stages.judgement_spec's.

        Those that the oracle leaves open are not kept.
        """
        key = digest(spec)
        if key not in self.opened:
            self.opened[key] = self.store.table("judgements", key, spec, digest(spec["oracle"]))
        table = self.opened[key]
        stored = preferences_in(table)
        if any(row.name not in stored for row in rows):
            with self.store.writing(key):
                stored = preferences_in(table)
                if any(row.name not in stored for row in rows):
                    passing = self._judge(table, list({row.name: row for row in rows}.values()), stored, label)
                    table.merge()
                    stored = {**passing, **preferences_in(table)}
        return [stored[row.name] for row in rows]

    def _judge(
        self, table: Table, rows: Sequence[Compared], stored: dict[tuple[str, str], np.ndarray], label: str
    ) -> dict[tuple[str, str], np.ndarray]:
        """Keep what the oracle decides; the rest is returned."""
        oracle, passing = self.engines.oracle(), {}
        with self.progress.stage("judge", label, len(rows)) as meter:
            for shard in in_batches(rows, self.generation_batch):
                missing = [row for row in shard if row.name not in stored]
                meter.skip(len(shard) - len(missing))
                if missing:
                    preferences = oracle.prefer([row.question for row in missing])
                    passing |= {missing[number].name: preferences[number] for number in oracle.undecided}
                    decided = [number for number in range(len(missing)) if number not in oracle.undecided]
                    columns = {
                        "prompt_id": [missing[number].prompt_id for number in decided],
                        "content": [missing[number].name[1] for number in decided],
                        "preferences": [preferences[number].ravel().tolist() for number in decided],
                    }
                    if decided:
                        table.append(columns)
                    meter.advance(len(missing))
                    meter.saved()
        return passing


def _append(tables: dict[str, Table], rows: Sequence[tuple[str, Prompt]], completions: Sequence[Completion]) -> None:
    """Commit one batch of completions, a shard for each policy in it."""
    for policy in dict.fromkeys(policy for policy, _ in rows):
        of_policy = [number for number, (by, _) in enumerate(rows) if by == policy]
        prompts, answers = [rows[number][1] for number in of_policy], [completions[number] for number in of_policy]
        tables[policy].append(_columns(prompts, answers))


def _columns(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, list[Any]]:
    """Rows of a completions table."""
    return {
        "prompt_id": [prompt.id for prompt in prompts],
        "sample": [prompt.sample for prompt in prompts],
        "tokens": [completion.tokens for completion in completions],
        "text": [completion.text for completion in completions],
        "finish_reason": [completion.finish_reason for completion in completions],
        "logp": [completion.logp for completion in completions],
    }
