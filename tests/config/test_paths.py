"""Paths and names of folders: `~` wherever a path is read, and names that say what was set."""

import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from helpers.commands import assert_one_line, call
from lowmem_spin.cli.main import app
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.grid import sweep_axes, sweep_folder, sweep_points
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.naming import LONGEST, of_settings
from lowmem_spin.config.places import named_twice

FIELDS = ["model.name_or_path", "model.adapter", "data.path", "evaluation.path", "evaluation.mtbench", "evaluation.alpaca"]
FIELDS += ["output.dir", "output.store", "game.oracle.function", "game.oracle.model"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def read(*overrides: str) -> Any:
    return load_recipe(find_recipe("quickstart"), overrides)


@pytest.mark.parametrize("field", FIELDS)
def test_a_recipe_knows_home(field: str, home: Path) -> None:
    kind = {"game.oracle.function": "function", "game.oracle.model": "reward_model"}.get(field)
    oracle = [f"game.oracle.name={kind}"] if kind else []
    found: Any = read(*oracle, f"{field}=~/some/where")
    for name in field.split("."):
        found = getattr(found, name)
    assert found == f"{home}/some/where"


@pytest.mark.parametrize("field", [field for field in FIELDS if not field.startswith("output.")])
def test_of_two_files_of_one_name_it_is_said_which_is_read(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of a shipped file, changed in the working directory, would else be thought to be the one."""
    name = "one:f" if field.endswith("function") else "one"
    *sections, last = field.split(".")
    recipe: dict[str, Any] = {last: name}
    for section in reversed(sections):
        recipe = {section: recipe}
    for folder in ("recipes", "here"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for existing in ("recipes", "here"):
        assert named_twice(recipe, tmp_path / "recipes") == []
        (tmp_path / existing / "one").write_text("")
    (line,) = named_twice(recipe, tmp_path / "recipes")
    taken = f"{field}: one is the one beside the recipe, {tmp_path / 'recipes' / 'one'}"
    assert line == f"{taken}, not the one in the working directory; for that, write its whole path"
    assert named_twice(recipe, tmp_path / "here") == []  # one and the same


def test_a_plan_and_a_game_say_which_of_two_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = find_recipe("quickstart_own").parent / "own.py"
    (tmp_path / "own.py").write_text(shipped.read_text().replace("lam * ", "2 * lam * "))
    monkeypatch.chdir(tmp_path)
    said = f"game.loss.function: own.py is the one beside the recipe, {shipped}, not the one in the working directory"
    assert said in call("plan", "quickstart_own", "--trust").stdout
    assert said in call("run", "quickstart_own", "--trust", "--set=game.pairs=1000000").stdout  # which is refused next
    other = call("plan", "quickstart_own", "--trust", f"--set=game.loss.function={tmp_path / 'own.py'}:loss").stdout
    assert "game.loss.function: own.py" not in other and "game.opponents.function: own.py" in other


def test_the_home_of_nobody_is_refused_before_a_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("run", "quickstart", "--set", "output.dir=~nobody-here/x")
    assert_one_line(result, "output.dir: '~nobody-here/x' cannot be used: no home folder of '~nobody-here' is known here")
    assert_one_line(call("gc", "--store=~nobody-here"), "'~nobody-here': no home folder", "./~nobody-here")
    assert list(tmp_path.iterdir()) == []


def test_every_path_of_the_command_line_knows_home(home: Path) -> None:
    parts = [app, *(group.typer_instance for group in app.registered_groups)]
    commands = [command.callback for part in parts if part is not None for command in part.registered_commands]
    seen = 0
    for command in filter(None, commands):
        for name, hint in typing.get_type_hints(command, include_extras=True).items():
            kinds, *about = typing.get_args(hint) or (hint,)
            if Path in (kinds, *typing.get_args(kinds)):
                assert [one.parser("~/a.png") for one in about] == [home / "a.png"], f"{command.__name__} --{name}"
                seen += 1
    assert len(parts) > 4 and seen >= 12
    assert str(home / "runs") in call("report", "~/runs").stderr
    assert str(home / "store") in call("gc", "--store=~/store").stderr
    assert_one_line(call("recipe", "~/mine.yaml"), "recipe '~/mine.yaml': no such file")
    (home / "mine.yaml").write_text("model: {name_or_path: m}\ndata: {path: d}\n")
    assert "name_or_path: m" in call("recipe", "~/mine.yaml").stdout


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([], "quickstart"),
        (["game.alpha=0.8"], "quickstart-alpha0.8"),
        (["game.alpha=.80"], "quickstart-alpha0.8"),
        (["game.history=inf", "game.alpha=1"], "quickstart-alpha1-history-inf"),
        (["game.loss={name: ipo, tau: 0.1}"], "quickstart-loss-ipo-tau0.1"),
        (["game.pairs=[1,2,3]"], "quickstart-pairs1_2_3"),
        (["data.path=/far/away/mine.jsonl", "evaluation.path=held.jsonl"], "quickstart-data-mine.jsonl-evaluation-held.jsonl"),
        (["output.store=elsewhere", "runtime.device=cpu", "evaluation.benchmarks=[diversity]"], "quickstart"),
        (["model.trust_remote_code=true", "training.gradient_checkpointing=true"], "quickstart"),
    ],
)
def test_a_folder_says_what_was_set(settings: list[str], name: str) -> None:
    assert read(*settings).output.dir == f"runs/{name}"


def test_a_folder_that_was_named_keeps_its_name(tmp_path: Path) -> None:
    assert read("output.dir=runs/mine", "game.alpha=0.8").output.dir == "runs/mine"
    assert read("output={dir: runs/mine}", "game.alpha=0.8").output.dir == "runs/mine"
    assert read("game.alpha=0.8", "output={store: s}").output.dir == "runs/quickstart-alpha0.8"
    own = tmp_path / "own.yaml"
    own.write_text("model: {name_or_path: m}\ndata: {path: d}\n")
    assert load_recipe(own).output.dir == "runs/own"
    assert load_recipe(own, ["seed=3"]).output.dir == "runs/own-seed3"


def test_a_sweep_says_what_was_set_and_its_points_what_varies() -> None:
    path, settings = find_recipe("quickstart"), ["training.learning_rate=0.001"]
    points = sweep_points(path, settings, sweep_axes(path, "0.5,1,1.0", None, []), 1)
    folder = "runs/quickstart-learning_rate0.001-sweep"
    assert sweep_folder(read(*settings)) == Path(folder)
    assert [point.recipe.output.dir for point in points] == [f"{folder}/points/alpha-{a}_seed-42" for a in ("0.5", "1")]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@hypothesis_settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["game.alpha", "game.loss", "data.path", "seed", "a.path", "b.c.d"]), VALUES, max_size=4)
)
def test_any_setting_is_a_name_that_a_file_may_have(settings: dict[str, Any]) -> None:
    name = of_settings(settings)
    assert len(name.encode()) <= LONGEST and bool(name) == bool(settings)
    assert all(character.isalnum() or character in "-_.+" for character in name)
    assert name == of_settings(dict(reversed(settings.items())))


def test_settings_that_make_long_names_are_told_apart() -> None:
    fields = [f"training.a_rather_long_name_{number}" for number in range(9)]
    one, other = (dict.fromkeys(fields, value) for value in (1, 2))
    assert of_settings(one) != of_settings(other) and len(of_settings(one)) == 9


def test_an_unknown_field_is_still_refused() -> None:
    with pytest.raises(InputError, match="did you mean alpha"):
        read("game.alhpa=1")
