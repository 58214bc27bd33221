"""Values that have one number for each iteration: keys, plans, sweeps and what is trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import call
from helpers.games import played, tiny
from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Inputs, Train
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.grid import sweep_axes, sweep_points
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.loss_choices import in_words
from lowmem_spin.report.results import plain_value
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.planning import plan as planning

QUICKSTART = find_recipe("quickstart")
INPUTS = Inputs("b", "data", {"engine": "hf", "dtype": "float32"}, {"engine": "hf", "dtype": "float32"})
RATE, EPOCHS, BETA = "training.learning_rate", "training.num_train_epochs", "game.loss.beta"


def keys(*overrides: str, role: Role = Role.ITERATE) -> list[str]:
    stages = play(load_recipe(QUICKSTART, overrides), INPUTS)
    return [stage.policy for stage in stages if isinstance(stage, Train) and stage.role is role]


@pytest.mark.parametrize(("field", "one", "other"), [(RATE, "1e-4", "1e-5"), (EPOCHS, "2", "1"), (BETA, "0.1", "5")])
def test_an_iteration_has_the_key_of_a_game_with_its_number(field: str, one: str, other: str) -> None:
    changing = keys(f"{field}=[{one}, {one}, {other}]")
    assert changing[:2] == keys(f"{field}={one}")[:2]
    assert changing[2] not in keys(f"{field}={one}") + keys(f"{field}={other}")  # it comes after other iterates
    assert keys(f"{field}=[{one}, {one}, {one}]") == keys(f"{field}={one}")
    # Where no iterate depends on an earlier one, the third is that of a game with the third's number throughout.
    alone = ["game.algorithm=offline", "game.alpha=0", "game.init=base"]
    assert keys(*alone, f"{field}=[{one}, {one}, {other}]") == [
        *keys(*alone, f"{field}={one}")[:2],
        keys(*alone, f"{field}={other}")[2],
    ]


def test_plain_sft_has_the_numbers_of_its_iteration_and_a_warm_start_its_own() -> None:
    both = ["evaluation.compare_sft=true", "warm_start={rows: 8, learning_rate: 1e-3}"]
    changing = [f"{RATE}=[1e-4, 1e-5, 1e-6]", f"{EPOCHS}=[1, 2, 3]", f"{BETA}=[0.1, 1, 5]"]
    assert keys(*both, *changing, role=Role.WARM_START) == keys(*both, role=Role.WARM_START)
    stages = [stage for stage in play(load_recipe(QUICKSTART, [*both, *changing]), INPUTS) if isinstance(stage, Train)]
    found = {stage.name: (stage.settings["learning_rate"], stage.settings["num_train_epochs"]) for stage in stages}
    each = [(1e-4, 1), (1e-5, 2), (1e-6, 3)]
    assert found == {
        "warm start": (1e-3, 1),
        **{f"{kind} {t}": values for kind in ("iterate", "SFT") for t, values in enumerate(each)},
    }
    assert [stage.loss["beta"] for stage in stages if stage.role is Role.ITERATE] == [0.1, 1, 5]


@pytest.mark.parametrize("field", ["game.pairs", RATE, EPOCHS, BETA])
def test_a_list_of_another_length_is_one_line(field: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(QUICKSTART, [f"{field}=[1, 2]"])
    assert str(error.value).endswith(f"{field}: 2 numbers for 3 iterations; give one per iteration")


LATER: dict[str, str] = {
    "optim_args": "{momentum: 0.9}",
    "adam_beta1": "0.8",
    "adam_beta2": "0.99",
    "adam_epsilon": "1e-6",
    "lr_scheduler_kwargs": "{num_cycles: 2}",
    "disable_dropout": "true",
}


@pytest.mark.parametrize("field", LATER)
def test_a_later_field_is_in_keys_when_it_says_something(field: str) -> None:
    """That those of before it existed still hold is in tests/algorithm/test_game.py."""
    default = load_recipe(QUICKSTART).model_dump()["training"][field]
    assert keys(f"training.{field}={json.dumps(default)}") == keys()
    assert not set(keys(f"training.{field}={LATER[field]}")) & set(keys())


def test_a_sweep_over_lists_has_a_point_for_each() -> None:
    axes = sweep_axes(QUICKSTART, None, None, [f"{RATE}=[5e-7, 5e-7, 1e-7],1e-4", f"{BETA}=[0.1, 0.1, 5],[1, 1, 1]"])
    points = sweep_points(QUICKSTART, [], axes, 1)
    found = [(point.recipe.training.learning_rate, point.recipe.game.loss.model_dump()["beta"]) for point in points]
    lists = [[0.1, 0.1, 5], [1, 1, 1]]
    assert found == [(rate, beta) for rate in ([5e-7, 5e-7, 1e-7], 1e-4) for beta in lists]
    assert len({point.name for point in points}) == 4


def train_seconds(tmp_path: Path, *overrides: str) -> dict[str, float]:
    path = find_recipe("quickstart")
    (point,) = sweep_points(path, tiny(tmp_path, *overrides), {}, 1)
    lines = planning.plan([point], tmp_path).lines
    return {line.label: line.seconds for line in lines if line.unit.side == "pairs"}


def test_a_plan_counts_the_epochs_of_each_iteration(tmp_path: Path) -> None:
    warm = "warm_start={rows: 12, num_train_epochs: 1}"
    once, each = train_seconds(tmp_path, warm), train_seconds(tmp_path, warm, f"{EPOCHS}=[1, 3]")
    assert each["iterate 0"] == once["iterate 0"] == once["iterate 1"]
    assert each["iterate 1"] == pytest.approx(3 * once["iterate 1"], rel=1e-3)
    assert each["warm start"] == once["warm start"]


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> OpenGame:
    """SPIN's settings, each other in its second iteration."""
    folder = tmp_path_factory.mktemp("each")
    lists = [f"{RATE}=[5e-2, 1e-2]", f"{EPOCHS}=[1, 2]", f"{BETA}=[0.1, 5]", "game.alpha=1"]
    steady = ["training.lr_scheduler_type=constant", "training.warmup_ratio=0"]
    return played(folder, *lists, *steady, "evaluation={health_prompts: 4, compare_sft: true}")


def test_what_is_trained_has_the_numbers_of_its_iteration(game: OpenGame) -> None:
    found: dict[str, Any] = {}
    for stage in game.stages:
        if isinstance(stage, Train):
            metrics = game.store.manifest(stage.policy)["metrics"]
            found[stage.name] = ([record["learning_rate"] for record in metrics], metrics)
    assert {name: rates for name, (rates, _) in found.items()} == {
        **{"iterate 0": [5e-2], "iterate 1": [1e-2, 1e-2]},
        **{"SFT 0": [5e-2], "SFT 1": [1e-2, 1e-2]},
    }
    first, second = found["iterate 1"][1]  # its first step is taken at the reference itself, the previous iterate
    moved = second["logps/chosen"] - first["logps/chosen"]
    assert second["rewards/chosen"] == pytest.approx(5 * moved, rel=1e-3) and abs(moved) > 0.01
    assert load_recipe(game.folder / "recipe.yaml").training.learning_rate == [5e-2, 1e-2]


def test_lists_are_shown_in_words(game: OpenGame) -> None:
    assert in_words({"name": "dpo", "beta": [0.1, 0.1, 5.0]}) == "dpo, beta 0.1 then 0.1 then 5.0"
    assert plain_value(["5e-7", 0.1]) == "[5e-7, 0.1]"  # as a sweep's report names a point: text is what YAML made of it
    result = call("report", game.folder)
    assert result.returncode == 0, result.stderr
    assert "dpo, beta 0.1 then 5.0" in (game.folder / "report.html").read_text()
