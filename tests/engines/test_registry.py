"""An engine is one entry of the registry: a whole game, its keys and the memory model ask nothing else of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console

from helpers.games import TINY, of_policy, tiny
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.algorithm.stages import Evaluate, Generate
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.recipe import Generation, Recipe
from lowmem_spin.config.section import Section
from lowmem_spin.config.training_config import Training
from lowmem_spin.engines import pool
from lowmem_spin.engines.base import Completion, Request
from lowmem_spin.engines.memory import CONTEXT, FRAGMENTATION, Shape, idle_memory, peak, stage_memory
from lowmem_spin.engines.registry import ENGINES, PORTABLE, ROLES, Engine, gpu_engine, installed, load_attribute, open_engine
from lowmem_spin.engines.residency import plan_residency
from lowmem_spin.runner.open import SharedResources, open_game
from lowmem_spin.runner.run import make

GEMMA_2B = Shape(18, 2048, 16384, 8, 1, 256, 256000, True)
END = 5  # of the quickstart's base


class Toy:
    """A generator that answers every prompt with its own first tokens, and needs no model."""

    mixes_policies = True
    batches_at_once = 2

    def __init__(self, recipe: Recipe, *_: Any) -> None:
        self.asked: list[Request] = []
        self.calls: list[int] = []  # requests in each

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        self.asked += requests
        self.calls.append(len(requests))
        return [Completion([*map(int, request.prompt[:3]), END], "toy", "stop", -1.5) for request in requests]

    def release(self) -> None:
        """It holds nothing."""

    def close(self) -> None:
        """It holds nothing."""


TOY = Engine(
    name="toy",
    roles=("generation",),
    target="test_registry:Toy",
    opened_with=lambda recipe: [],
    memory=lambda recipe, shape, dtype: {"generate": {"frozen base": 3e9}},
    key_fields=lambda recipe: {"toy top_p": recipe.generation.top_p},
)


@pytest.mark.parametrize(("section", "role"), [(Generation, "generation"), (Training, "training")])
def test_a_recipe_may_name_every_engine_of_a_role_and_no_other(section: type[Section], role: str) -> None:
    named = get_args(section.model_fields["engine"].annotation)
    assert sorted(named) == sorted(["auto", *(name for name, engine in ENGINES.items() if role in engine.roles)])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "toy", TOY)


def with_toy(recipe: Recipe) -> Recipe:
    """The recipe's own list of engines is what users may write: it does not know the toy."""
    return recipe.model_copy(update={"generation": recipe.generation.model_copy(update={"engine": "toy"})})


@pytest.mark.usefixtures("toy")
def test_an_engine_that_only_the_registry_knows_plays_a_game(tmp_path: Path) -> None:
    values = tiny(tmp_path, "game.iterations=1", "runtime.generation_batch_size=4")
    recipe = with_toy(load_recipe(find_recipe("quickstart"), values))
    shared, asked = SharedResources(), list[Request]()
    game = open_game(recipe, tmp_path, Display(Console(quiet=True)), shared)
    assert game.inputs.generator == {"engine": "toy", "dtype": "float32", "toy top_p": 1.0}
    assert game.inputs.learner == {"engine": "hf", "dtype": "float32"}
    for stage in game.stages:
        if not isinstance(stage, Evaluate):
            make(game, stage)
        if isinstance(stage, Generate):
            assert [type(engine) for engine in shared.engines.opened.values()] == [Toy]
            asked += shared.engines.opened["toy"].asked
            assert shared.engines.opened["toy"].calls == [8, 4]  # two batches at once
    rows = of_policy(tmp_path / "store", "completions", game.inputs.base)
    assert len(rows) == 12 == len(asked) and {row["text"] for row in rows} == {"toy"}
    assert sorted(row["tokens"] for row in rows) == sorted([*map(int, one.prompt[:3]), END] for one in asked)
    shared.engines.close()


@pytest.mark.usefixtures("toy")
def test_what_an_engine_cannot_do_is_refused_by_its_entry(tmp_path: Path) -> None:
    recipe = with_toy(load_recipe(find_recipe("quickstart"), [*TINY, "game.sampler={name: smc}"]))
    with pytest.raises(InputError, match=r"^generation\.engine: 'toy' cannot sample mixtures \(smc\); use hf$"):
        pool.choose_engines(recipe, tmp_path, None)


@pytest.mark.parametrize(
    ("extra", "command"), [(None, "`pip install no_such_package`"), ("gpu", "in your clone: `pip install -e '.[gpu]'`")]
)
def test_a_package_that_is_missing_is_named(extra: str | None, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Engine("toy", ("training",), "nowhere:Nothing", TOY.opened_with, TOY.memory, package="no_such_package", extra=extra)
    monkeypatch.setitem(ENGINES, "toy", entry)
    rest: Any = (None,) * 5
    with pytest.raises(InputError) as error:
        open_engine("toy", *rest)
    assert str(error.value) == f"training.engine: 'toy' is not installed; {command}, or use hf"


def test_what_an_entry_says_of_its_memory_decides_who_may_stay_on_the_gpu() -> None:
    """Against the inequalities: what gives its memory back while it waits fits beside a learner on a smaller card."""
    recipe = load_recipe(find_recipe("gemma2b_alpha"), ["training.per_device_train_batch_size=1"])
    learner, needed = ENGINES["hf"], peak({"as the toy says": 3e9})
    terms, waiting = stage_memory(recipe, GEMMA_2B, "bfloat16"), idle_memory(recipe, GEMMA_2B, "bfloat16")
    working = max(peak(terms["score"]), peak(terms["train"]))

    def smallest(wanted: str, **traits: bool) -> float | None:
        """The card, in bytes, from which on auto is this."""
        for tenths in range(20, 400):
            try:
                found = plan_residency(recipe, GEMMA_2B, "bfloat16", replace(TOY, **traits), learner, {}, tenths * 1e8)
            except InputError:
                continue
            if found.residency == wanted:
                return tenths * 1e8
        return None

    keeps = {"preallocates": True}
    assert smallest("exit") == pytest.approx(needed, abs=1e8)
    assert smallest("sleep") is None
    assert smallest("sleep", sleeps=True, **keeps) == pytest.approx(max(needed + waiting, working + CONTEXT), abs=1e8)
    assert smallest("resident") == pytest.approx(max(needed + waiting, working + waiting), abs=1e8)
    assert smallest("resident", **keeps) == pytest.approx(needed + working, abs=1e8)
    unpacked = smallest("resident", dequantizes=True)  # waits with all of its base
    assert unpacked == pytest.approx(
        working + CONTEXT + FRAGMENTATION * (GEMMA_2B.weights("none", 2) + GEMMA_2B.lora(16) * 4), abs=1e8
    )


def test_a_recipe_may_name_exactly_the_registered_engines() -> None:
    """config imports no engine, so its list is written out there."""
    for role, section in zip(ROLES, (Generation, Training), strict=True):
        known = {name for name, engine in ENGINES.items() if role in engine.roles}
        assert set(get_args(section.model_fields["engine"].annotation)) == {"auto", *known}


def test_entries_are_filed_by_name_and_their_code_is_there() -> None:
    for name, engine in ENGINES.items():
        assert name == engine.name and set(engine.roles) <= set(ROLES)
        made = load_attribute(engine.target)
        assert hasattr(made, "generate") == ("generation" in engine.roles)
        assert hasattr(made, "score") == hasattr(made, "train") == ("training" in engine.roles)
        assert hasattr(made, "next_token_logps") == engine.samples_mixtures
        assert engine.self_test is None or callable(load_attribute(engine.self_test))
    assert installed(PORTABLE)
    assert [gpu_engine(role).name for role in ROLES] == ["vllm", "unsloth"]
