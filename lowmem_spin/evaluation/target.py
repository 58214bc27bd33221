"""A game that was played, ready to be measured: its policies, what the store has of them, and what they answer with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

from lowmem_spin.algorithm.game import sampling_params
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Evaluate
from lowmem_spin.common.checked import set_aside
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import DamagedError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.oracles.base import Oracle
from lowmem_spin.engines.passes import tokens_scored_together
from lowmem_spin.engines.pool import EngineChoices, EnginePool, GameEngines, choose_engines
from lowmem_spin.engines.registry import PORTABLE
from lowmem_spin.evaluation.benchmark_records import FILE, keep_results
from lowmem_spin.runner import gc, run_folder
from lowmem_spin.runner.game_rows import split_rows
from lowmem_spin.runner.health import HeldOut
from lowmem_spin.runner.open import OpenGame, SharedResources, read_prepared_rows
from lowmem_spin.runner.run_folder import RunFolder
from lowmem_spin.store.memo import Tables
from lowmem_spin.store.store import Store


@dataclass(frozen=True, kw_only=True)
class Answering:
    """What a game's policies answer with."""

    tables: Tables
    held: HeldOut
    sampling: Sampling  # of the game


class Answers(Protocol):
    """Opens what a game's policies answer with; called only if it is needed."""

    def __call__(self, room: tuple[int, int] | None = None, oracle: Oracle | None = None) -> Answering:
        """`room` is the tokens of the longest prompt and answer, where those are not the recipe's."""
        ...


@dataclass(frozen=True, kw_only=True)
class EvaluationTarget:
    """A game of which policies are measured."""

    folder: Path
    recipe: Recipe
    model: Source
    machine: Machine
    store: Store
    base: str
    base_adapter: Path | None
    policies: dict[str, str]  # name -> key: all that a report may show
    wanted: list[str]  # names of those to measure, trained all
    pool: EnginePool
    answering: Answers

    @classmethod
    def from_run(cls, run: RunFolder, iterate: str, shared: SharedResources, display: Display) -> Self:
        """A run's folder. `iterate` is a policy's number or name, or "all": the base and the iterates trained so far.

        Raises:
            InputError: its store or base is not here, or there is no such policy.
        """
        store = run_folder.open_store(run, lambda line: display.log(line, "yellow"))
        recipe, adapter = run.recipe, run.recipe.model.adapter
        model = run_folder.find_trusted_base(run, store, shared.trust, lambda line: display.log(line, "yellow"))
        store.users.note(run.folder, gc.keys_of(run), more=True)
        names = ["base", *run_folder.trained_iterates(run, store)] if iterate == "all" else [iterate]
        base_adapter = Path(adapter) if adapter else None

        def answering(room: tuple[int, int] | None = None, oracle: Oracle | None = None) -> Answering:
            held = _held(run, store)
            choices = choose_engines(recipe, store.root, display)
            inputs = replace(run.inputs, generator=choices.specs(recipe)[0])  # of this machine
            engines = GameEngines(
                recipe=with_lengths(recipe, room),
                model=model,
                choices=choices,
                weights_dir=store.root / "weights",
                display=display,
                pool=shared.engines,
                judge=oracle,
            )
            tables = Tables(
                store=store,
                base=inputs.base,
                base_adapter=base_adapter,
                learner=inputs.learner,
                engines=engines,
                progress=display,
                generation_batch=recipe.runtime.generation_batch_size,
                scoring_tokens=tokens_scored_together(recipe, choices.machine.device),
                opened={},
            )
            return Answering(tables=tables, held=held, sampling=sampling_params(recipe, inputs))

        return cls(
            folder=run.folder,
            recipe=recipe,
            model=model,
            machine=run_folder.machine_of(run),
            store=store,
            base=run.inputs.base,
            base_adapter=base_adapter,
            policies=run.policies,
            wanted=[run_folder.find_policy(run, store, name).name for name in names],
            pool=shared.engines,
            answering=answering,
        )

    @classmethod
    def from_game(cls, game: OpenGame) -> Self:
        """A game that this process has played."""
        planned = {stage.name: stage for stage in game.stages if isinstance(stage, Evaluate)}
        every = {name: stage.policy for name, stage in planned.items() if stage.role is not Role.UNQUANTIZED}
        policies = run_folder.as_far_as_played(every, run_folder.read_run_folder(game.folder).record)
        trained = {name for name, key in policies.items() if planned[name].role is Role.ITERATE and game.store.adapter(key)}

        def answering(room: tuple[int, int] | None = None, oracle: Oracle | None = None) -> Answering:
            engines = replace(game.engines, recipe=with_lengths(game.recipe, room), judge=oracle or game.engines.judge)
            return Answering(
                tables=replace(game.tables, engines=engines),
                held=game.rows.held,
                sampling=sampling_params(game.recipe, game.inputs),
            )

        return cls(
            folder=game.folder,
            recipe=game.recipe,
            model=game.resolved.model,
            machine=game.resolved.choices.machine,
            store=game.store,
            base=game.inputs.base,
            base_adapter=game.tables.base_adapter,
            policies=policies,
            wanted=[name for name in policies if planned[name].role is Role.BASE or name in trained],
            pool=game.engines.pool,
            answering=answering,
        )

    def adapter(self, name: str) -> Path | None:
        """The policy's adapter folder; None is the frozen base as it is."""
        key = self.policies[name]
        if key == self.base:
            return self.base_adapter
        folder = self.store.adapter(key)
        if folder is None:
            raise RuntimeError(f"{name} is measured before it is trained")
        return folder

    def result(self, spec: dict[str, Any]) -> dict[str, Any] | None:
        """The stored result that this names."""
        key = spec["policy"]
        if key != self.base and self.store.adapter(key) is None:
            return None
        return self.store.result(key, digest(spec), self._adapter_sha256(key))

    def lacks(self, spec: dict[str, Any], answers: str | None = None) -> bool:
        """Whether the store has no result, or one in which replies of a judge are missing, or of other answers than these:
        answers that were lost may have come out differently."""
        result = self.result(spec)
        if result is None or result.get("unanswered", 0) > 0:
            return True
        return answers is not None and result.get("answers") != answers

    def ensure(self, spec: dict[str, Any], measure: Callable[[], dict[str, Any]], answers: str | None = None) -> None:
        """Make sure that the store has the result that `spec` names; `answers` is the digest of those it is to be of."""
        if not self.lacks(spec, answers):
            return
        key, policy = digest(spec), spec["policy"]
        with self.store.writing(key):
            if self.lacks(spec, answers):
                known = {} if answers is None else {"answers": answers}
                self.store.commit_result(
                    policy, key, {"asked": spec, "maker": self._adapter_sha256(policy), **known, **measure()}
                )

    def keep(self, suite: str, task: str, limit: int | None, asks: Callable[[str], dict[str, Any]]) -> None:
        """Write what is stored of a task for all policies to the game's folder; `asks` names it by the policy's key."""
        records = {name: self.result(asks(key)) for name, key in self.policies.items()}
        try:
            keep_results(self.folder, self.policies, records, suite, task, limit)
        except DamagedError as error:
            others = "written again; tasks that are not asked for now come back from the store with `lowmem-spin evaluate`"
            set_aside(self.folder / FILE, self.store.root, str(error), others, self.store.notice, self.folder)
            keep_results(self.folder, self.policies, records, suite, task, limit)

    def _adapter_sha256(self, key: str) -> str:
        return "base" if key == self.base else self.store.adapter_sha256(key)

    def portable_engines(self, display: Display) -> GameEngines:
        """transformers on the base, whatever the game was played with."""
        return GameEngines(
            recipe=self.recipe,
            model=self.model,
            choices=EngineChoices(self.machine, PORTABLE, PORTABLE),
            weights_dir=self.store.root / "weights",
            display=display,
            pool=self.pool,
        )

    def renderer(self) -> Renderer:
        """Conversations to prompts, as the game's rows were rendered."""
        from lowmem_spin.engines.loading import load_tokenizer

        return Renderer.of(load_tokenizer(self.model, self.recipe.model.trust_remote_code), self.recipe)


def with_lengths(recipe: Recipe, room: tuple[int, int] | None) -> Recipe:
    """The recipe with engines that take prompts and answers so long."""
    if room is None:
        return recipe
    prompt, answer = room
    data = recipe.data.model_copy(update={"max_prompt_length": prompt})
    return recipe.model_copy(
        update={"data": data, "generation": recipe.generation.model_copy(update={"max_new_tokens": answer})}
    )


def _held(run: RunFolder, store: Store) -> HeldOut:
    """The run's held-out rows, as they were prepared for it."""
    stored = [read_prepared_rows(store, store.data(name)) for name in run.record.get("data", [])]
    present = [rows for rows in stored if rows is not None]
    if not present or len(present) < len(stored):
        again = f"`lowmem-spin run {run.folder / 'recipe.yaml'}`"
        raise InputError(f"run {str(run.folder)!r}: its held-out rows are not in {store.root}; {again} prepares them again")
    return split_rows(run.recipe, *present)[1]
