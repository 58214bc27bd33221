"""What a recipe names, looked up: model, data and engines, all known by their content, and the stages that follow."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.stages import Inputs, Stage
from lowmem_spin.common.keys import digest
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.places import named_twice
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.prepare import prepared_key
from lowmem_spin.data.sources import Source, Sources, base_key
from lowmem_spin.engines.memory import Terms
from lowmem_spin.engines.oracles.base import Oracle, OracleContext, open_oracle
from lowmem_spin.engines.pool import EngineChoices
from lowmem_spin.engines.training.trial import check_optimizer, warmup_note
from lowmem_spin.engines.unquantized import UnquantizedBase, measured_beside
from lowmem_spin.runner.own_functions import OwnFunctions, OwnMixtures, ask_own_functions
from lowmem_spin.runner.task_metrics import TaskMetric


class RowsAsked(TypedDict):
    """What rows have to have, and where on the hub they are: arguments of data.formats.conversations."""

    with_rejected: bool
    needs_answers: str | None
    name: str | None


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe:
    """What a recipe names: model, data and engines, all known by their content; nothing is read yet."""

    recipe: Recipe
    recipe_dir: Path
    model: Source
    adapter: Source | None
    train: Source
    held: Source | None
    choices: EngineChoices
    oracle: Oracle | None
    own: OwnFunctions = field(default_factory=OwnFunctions)
    mixtures: OwnMixtures = field(default_factory=OwnMixtures)  # by its own opponents and reference, as far as they were asked

    @property
    def base(self) -> str:
        """Key of the base policy."""
        return base_key(self.recipe, self.model, self.adapter)

    @cached_property
    def beside(self) -> UnquantizedBase:
        """The unquantized base, if it is measured beside the one that plays."""
        return measured_beside(self.recipe, self.model, self.choices)

    @property
    def unquantized(self) -> "ResolvedRecipe | None":
        """The same on the unquantized base, if that is measured too."""
        return None if self.beside.recipe is None else replace(self, recipe=self.beside.recipe)

    @property
    def oracle_spec(self) -> dict[str, Any] | None:
        """What judges samples, if anything does."""
        return None if self.oracle is None else self.oracle.spec()

    def judging(self, dtype: str) -> Terms:
        """What the oracle takes of a GPU; empty without one, or if that is not known."""
        return {} if self.oracle is None else self.oracle.memory(self.recipe, dtype)

    @property
    def metric(self) -> TaskMetric | None:
        """What scores greedy answers, if it is not exact match."""
        metric = self.recipe.evaluation.metric
        return None if isinstance(metric, str) else TaskMetric(metric, self.own.metric)

    def notes(self) -> list[str]:
        """What a person should know of what the recipe asks for, each in one line."""
        recipe = self.recipe
        twice = named_twice(recipe.model_dump(), self.recipe_dir)
        return [*twice, *self.own.notices(), *recipe.game.notes(), *warmup_note(recipe)]

    def data_sources(self) -> list[tuple[Source, str, str]]:
        """All the data that the game reads: (source, the recipe's field, split). Held-out rows of their own come second."""
        recipe = self.recipe
        held = [] if self.held is None else [(self.held, "evaluation.path", recipe.evaluation.split)]
        return [(self.train, "data.path", recipe.data.split), *held]

    def data_key(self, source: Source, split: str) -> str:
        data, template, needs = self.recipe.data, self.recipe.model.chat_template, self.asked_of(source)
        alone = needs["needs_answers"] is None
        return prepared_key(source, self.model, data, template, split, needs["with_rejected"], alone, needs["name"])

    def asked_of(self, source: Source) -> RowsAsked:
        """What the rows of one of the data sources have to have."""
        recipe, held_out = self.recipe, source is not self.train
        return {
            "with_rejected": recipe.game.algorithm == "offline" and not held_out,
            "needs_answers": recipe.needs_answers(held_out),
            "name": recipe.evaluation.name if held_out else recipe.data.name,
        }

    def file(self, source: Source, split: str) -> str:
        """Name of the store's file with these rows, prepared. Their labels and conversations are in it."""
        return digest([self.data_key(source, split), self.recipe.evaluation.category, "messages"])

    def data_files(self) -> list[str]:
        """Names of the store's data files, one for each of `data_sources`."""
        return self._data_files

    @cached_property
    def prepared_files(self) -> list[Path]:
        """Where the store has them, or will have."""
        return [Path(self.recipe.output.store) / "data" / f"{name}.parquet" for name in self.data_files()]

    @cached_property
    def _data_files(self) -> list[str]:
        return [self.file(source, split) for source, _, split in self.data_sources()]

    def inputs(self, set_aside: int | str) -> Inputs:
        """What the game is played with, when so many of the rows are set aside to measure on."""
        key = self.data_key(self.train, self.recipe.data.split)
        if self.held is None:
            key = digest({"rows": key, "set aside": set_aside})
        own = {"loss": self.own.loss_identity(), "opponents": self.mixtures.opponents, "reference": self.mixtures.reference}
        if (unquantized := self.unquantized) is not None:
            generator, learner = self.choices.specs(unquantized.recipe)
            own["unquantized"] = {"base": unquantized.base, "generator": generator, "learner": learner}
        return Inputs(self.base, key, *self.choices.specs(self.recipe), self.oracle_spec, **own)

    def with_own_mixtures(self, trust: Trust, notify: Callable[[str], None]) -> "ResolvedRecipe":
        """The same with what its own opponents and reference say, which decides what the stages are. Only this runs them.

        Raises:
            InputError: they may not run, or what they say cannot be played; one line.
        """
        trust.check(self.own.deciding(), notify)
        return replace(self, mixtures=ask_own_functions(self.own, self.recipe.game))


def resolve(recipe: Recipe, sources: Sources, choices: EngineChoices, notify: Callable[[str], None]) -> ResolvedRecipe:
    """Look up everything that a recipe names.

    Raises:
        InputError: something is not there; one line.
    """
    path = recipe.evaluation.path
    check_optimizer(recipe, choices.machine.device)
    return ResolvedRecipe(
        recipe=recipe,
        recipe_dir=sources.recipe_dir,
        model=sources.model(recipe.model.name_or_path, recipe.model.revision),
        adapter=sources.adapter(recipe.model.adapter) if recipe.model.adapter else None,
        train=sources.data(recipe.data.path, recipe.data.revision, "data.path"),
        held=None if path is None else sources.data(path, None, "evaluation.path"),
        choices=choices,
        oracle=open_oracle(
            recipe.game.oracle, OracleContext(sources, choices.machine, sources.memory.parent / "judge", notify)
        ),
        own=OwnFunctions.find(recipe, sources.recipe_dir),
    )


def name_stages(resolved: ResolvedRecipe, set_aside: int | str) -> tuple[Inputs, list[Stage]]:
    """What the game is played with, when so many of the rows are set aside to measure on, and its stages in order."""
    inputs = resolved.inputs(set_aside)
    return inputs, list(play(resolved.recipe, inputs))
