"""Games with somebody's own loss, opponents and reference: what they compute, what they share, and who runs their Python."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from helpers.commands import SMALL, assert_one_line, call
from helpers.games import QUICKSTART, opened, played, stored
from lowmem_spin.algorithm.stages import Train
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.grid import sweep_axes, sweep_points
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.naming import of_settings
from lowmem_spin.engines.own_function import OwnFunction
from lowmem_spin.engines.training.own_loss import _sides, try_loss
from lowmem_spin.report.results import plain_value
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.run_folder import read_run_folder

OWN = """import torch.nn.functional as F

def loss(sides, beta):
    return -F.logsigmoid(beta * ((sides.chosen - sides.ref_chosen) - (sides.rejected - sides.ref_rejected)))

def opponents(iterates, base):
    return {base: 2, iterates[-1]: 2}

def reference(iterates, base):
    return {base: 1 - 0.95, iterates[-1]: 0.95}
"""
MARK = "import os\nopen(os.environ['RAN'], 'w').close()\n"
LOSS = "game.loss={{name: function, function: {file}:loss, options: {{beta: 0.1}}}}"
RULES = ["game.opponents={{function: {file}:opponents}}", "game.reference={{name: function, function: {file}:reference}}"]


@pytest.fixture(autouse=True)
def untrusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trusted when a test begins, and what ran leaves a mark."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))


def ran() -> bool:
    return Path(os.environ["RAN"]).exists()


def named(file: Path, *overrides: str) -> list[str]:
    return [override.format(file=file) for override in overrides]


def trained(game: OpenGame) -> list[Train]:
    return [stage for stage in game.stages if isinstance(stage, Train)]


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, OpenGame], dict[str, dict[str, int]]]:
    """(folder, games of one store, rows stored after each): the built-in loss, an own one of its formula, the same edited."""
    folder = tmp_path_factory.mktemp("own")
    found, rows = {}, {}
    for name, source in (("built_in", None), ("own", OWN), ("edited", OWN.replace("beta *", "2 * beta *"))):
        file = folder / f"{name}.py"
        file.write_text(source or "")
        overrides = [] if source is None else named(file, LOSS)
        found[name] = played(folder, *overrides, "game.iterations=1", f"output.dir={folder / name}")
        kinds = ("completions", "logps")
        rows[name] = {kind: sum(len(table) for _, table in stored(folder / "store", kind).values()) for kind in kinds}
    return folder, found, rows


def test_an_own_loss_of_dpos_formula_makes_its_adapter_under_another_key(games: Any) -> None:
    _, found, _ = games
    built_in, own, edited = (trained(found[name])[0] for name in ("built_in", "own", "edited"))
    store = found["own"].store
    assert len({built_in.policy, own.policy, edited.policy}) == 3
    assert store.adapter_sha256(own.policy) == store.adapter_sha256(built_in.policy) != store.adapter_sha256(edited.policy)


def test_an_edited_loss_computes_only_trainings_again_and_what_comes_of_them(games: Any) -> None:
    """The base's answers and log-probs are there already; each new policy then answers and scores for itself."""
    folder, found, _ = games
    assert [stage.pairs.spec() for name in found for stage in trained(found[name])].count(
        trained(found["own"])[0].pairs.spec()
    ) == 3
    asked = [spec["policy"] for spec, _ in stored(folder / "store", "completions").values()]
    base = found["own"].inputs.base
    assert asked.count(base) == 1 and len(asked) == 4  # the base once, and the three that were trained
    rows = {spec["policy"]: len(table) for spec, table in stored(folder / "store", "completions").values()}
    assert len({rows[trained(game)[0].policy] for game in found.values()}) == 1


def test_the_source_is_kept_beside_the_results_and_what_is_no_more_it_is_written_again(games: Any) -> None:
    folder, found, _ = games
    kept = {path.read_text() for path in (folder / "store" / "code").glob("*.py")}
    assert kept == {OWN, OWN.replace("beta *", "2 * beta *")}
    loss, said = found["own"].resolved.own.loss, []
    path = folder / "store" / "code" / f"{loss.content}.py"
    path.write_text("spoiled")
    found["own"].store.notice, before = said.append, found["own"].store.notice
    found["own"].store.keep_code(loss.content, loss.source)
    found["own"].store.notice = before
    assert path.read_text() == OWN and len(said) == 1 and "does not have the source that its name says" in said[0]


def test_own_rules_that_say_what_the_built_in_ones_say_are_the_very_game(games: Any, tmp_path: Path) -> None:
    folder, _, _ = games
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "train.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
    own = opened(tmp_path, *named(tmp_path / "mine.py", *RULES))
    assert own.stages == opened(tmp_path).stages
    assert own.inputs.opponents == [{"base": 1.0}, {"iterate 0": 0.5, "base": 0.5}]


def test_a_run_goes_on_from_its_folder_and_says_which_file_is_missing(games: Any, tmp_path: Path) -> None:
    folder, _, _ = games
    moved = Path(shutil.copytree(folder, tmp_path / "moved", symlinks=True))
    recipe = load_recipe(moved / "own" / "recipe.yaml")
    assert recipe.game.loss.function == f"{(moved / 'own.py').resolve()}:loss"  # type: ignore[union-attr]
    assert_one_line(
        call("run", moved / "own" / "recipe.yaml"), "game.loss.function: the code in '", "own.py:loss' (", "--trust"
    )
    result = call("run", moved / "own" / "recipe.yaml", "--trust")
    assert result.returncode == 0, result.stderr
    assert read_run_folder(moved / "own").policies == read_run_folder(folder / "own").policies
    for file in (moved / "own.py", folder / "own.py"):
        file.rename(file.with_suffix(".gone"))
    line = f"game.loss.function: no file '{moved / 'own.py'}', neither next to the recipe nor in the working directory"
    again = call("run", moved / "own" / "recipe.yaml")
    (folder / "own.gone").rename(folder / "own.py")
    assert_one_line(again, line)


@pytest.fixture(scope="module")
def whole_own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished game with all three functions, in whose file something hostile is now."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "mine.py").write_text(OWN)
    played(folder, *named(folder / "mine.py", LOSS, *RULES), "game.iterations=2")
    (folder / "mine.py").write_text(f"{MARK}{OWN}")
    return folder


def test_no_look_at_a_finished_run_runs_any_of_it(whole_own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where a comparison draws its picture
    run, store = whole_own / "run", whole_own / "store"
    for words in (
        ["report", run],
        ["gc", "--store", store, "--runs", whole_own],
        ["runs", whole_own],
        ["compare", run, run],
        ["export", run, "--to", tmp_path / "out"],
    ):
        result = call(*words)
        assert result.returncode == 0, (words, result.stderr)
        assert "nothing is unused" in result.stdout or words[0] != "gc"
    card = (tmp_path / "out" / "README.md").read_text()
    rules = "reference mine.py:reference, combine geometric, opponents mine.py:opponents"
    assert f"{rules}, mine.py:loss, beta 0.1" in card.replace("\\", "") and str(whole_own) not in card
    assert f"mine.py:loss, beta 0.1, {rules}, iterations 2" in (run / "report.html").read_text()
    assert not ran()


def test_a_recipe_that_was_made_to_name_functions_since_is_refused_in_one_line(whole_own: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole_own, tmp_path / "copy", symlinks=True))
    record = json.loads((copy / "run" / "run.json").read_text())
    del record["inputs"]["opponents"], record["checksum"]
    (copy / "run" / "run.json").write_text(json.dumps(record))
    line = "run.json: inputs.opponents does not say what game.opponents gives in each iteration; run the recipe again"
    assert_one_line(call("gc", "--store", copy / "store", "--runs", copy), line)


def test_a_copy_of_the_example_brings_its_python_and_overwrites_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("copy", "quickstart_own", "mine.yaml")
    assert result.stdout.splitlines()[-1].endswith("play it with `lowmem-spin run mine.yaml --trust`")
    shipped = find_recipe("quickstart_own").parent / "own.py"
    assert (tmp_path / "own.py").read_bytes() == shipped.read_bytes()
    assert call("plan", "mine.yaml", "--trust").returncode == 0
    assert call("copy", "quickstart_own", "second.yaml").returncode == 0  # the file beside it is the same
    (tmp_path / "own.py").write_text(OWN)
    refused = call("copy", "quickstart_own", "third.yaml")
    assert_one_line(refused, "own.py': is there already with another content; copy the recipe into another folder")
    assert (tmp_path / "own.py").read_text() == OWN and not (tmp_path / "third.yaml").exists()


def test_the_example_is_one_that_can_be_played_with() -> None:
    """Its loss against the paper's formula by hand, its mixtures against a table."""
    found = {name: OwnFunction.find("f", f"own.py:{name}", QUICKSTART.parent) for name in ("loss", "opponents", "reference")}
    try_loss(found["loss"], {"beta": 0.1, "lam": 5.0}, ["reference"], normalised=True)
    sides = _sides([1])  # -60 and -25 under the policy, -28 and -31 under the reference
    margin = (-60 + 28) - (-25 + 31) - 5.0 * (-28 + 60)
    assert found["loss"].call(sides, beta=0.1, lam=5.0).item() == pytest.approx(np.log1p(np.exp(-0.1 * margin)), rel=1e-6)
    names = ["iterate 0", "iterate 1", "iterate 2"]
    assert found["opponents"].call(names, "base") == {"iterate 2": 0.5, "iterate 1": 0.25, "iterate 0": 0.125, "base": 0.125}
    assert found["reference"].call(names, "base") == dict.fromkeys(["base", "iterate 1", "iterate 2"], 1 / 3)


def test_folders_are_named_for_the_function_and_its_options() -> None:
    loss = {"name": "function", "function": "/home/me/mine.py:loss", "options": {"beta": 0.5, "lam": 2}}
    assert of_settings({"game.loss": loss, "game.alpha": 0.5}) == "-alpha0.5-loss-mine.py_loss-beta0.5-lam2"
    assert of_settings({"game.opponents": {"function": "mine.py:f"}}) == "-opponents-mine.py_f"
    judge = {"name": "function", "function": "mine.py:f"}  # as it was before there were others
    assert of_settings({"game.oracle": judge}) == "-oracle-function-function-mine.py_f"
    grid = ["game.loss={name: function, function: mine.py:loss, options: {beta: 1}},ipo"]
    recipe = find_recipe("quickstart")
    points = sweep_points(recipe, [], sweep_axes(recipe, None, None, grid), 1)
    assert [point.name for point in points] == ["loss-mine.py_loss-beta1_seed-42", "loss-ipo_seed-42"]
    assert plain_value(loss) == "mine.py:loss, beta 0.5, lam 2" and plain_value({"a": 1}) == '{"a": 1}'


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """RECIPE and options of a game whose Python leaves a mark, and which asks for more rows than there are."""
    (tmp_path / "mine.py").write_text(f"{MARK}{OWN}")
    changes = {**SMALL, "output.store": tmp_path / "store", "output.dir": tmp_path / "run", "game.pairs": 10**6}
    changes |= {"model.name_or_path": QUICKSTART / "base", "data.path": QUICKSTART / "train.jsonl"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"game": {}, "model": {}, "data": {}}))
    return [str(tmp_path / "mine.yaml"), *(word for name, value in changes.items() for word in ("--set", f"{name}={value}"))]


def sets(*overrides: str) -> list[str]:
    return [word for override in named(Path("mine.py"), *overrides) for word in ("--set", override)]


def test_a_plan_runs_no_loss_and_rules_only_when_they_are_trusted(words: list[str]) -> None:
    fits = [*words, "--set", "game.pairs=32"]
    assert call("plan", *fits, *sets(LOSS)).returncode == 0 and not ran()
    rules = "game.opponents.function, game.reference.function: the code in '"
    for command in (["plan"], ["plan", "--alpha", "0.95"]):
        assert_one_line(call(*command, *fits, *sets(LOSS, *RULES)), rules, "mine.py' (", "read it, then add --trust")
    assert not ran()
    assert call("plan", *fits, *sets(LOSS, *RULES), "--trust").returncode == 0 and ran()
    assert call("plan", *fits, *sets(LOSS, *RULES)).returncode == 0  # it is remembered


@pytest.mark.parametrize("command", [["run"], ["sweep", "--grid=training.learning_rate=1e-4"]])
def test_a_game_runs_them_after_trust_and_what_one_file_has_is_asked_for_once(command: list[str], words: list[str]) -> None:
    asked = "game.loss.function, game.opponents.function, game.reference.function: the code in '"
    refused = call(*command, *words, *sets(LOSS, *RULES))
    assert_one_line(refused, asked, "mine.py' (", "read it, then add --trust")
    assert refused.stderr.count("mine.py") == 1 and not ran()
    result = call(*command, *words, *sets(LOSS, *RULES), "--trust")
    assert result.returncode == 2 and "game.pairs: 1000000 prompts are needed" in result.stderr and ran()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("iterates[-1]: 2}", "iterates[-1]: -2}", "mine.py:opponents gave iterate 0 the weight -2; give a finite number"),
        ("iterates[-1]: 2}", "'iterate 1': 2}", "gave a weight to 'iterate 1'; the policies are base, iterate 0 (iteration 1)"),
        ("iterates[-1]: 2}", "iterates[-2]: 2}", "mine.py:opponents failed in line 9: IndexError: list index out of range"),
        ("opponents(iterates, base)", "opponents(base)", "takes (base), but is called with (iterates, base): too many"),
        ("{base: 1 - 0.95, iterates[-1]: 0.95}", "None", "mine.py:reference gave None; return {policy: weight} (iteration 1)"),
        ("loss(sides, beta)", "loss(sides)", "mine.py:loss takes (sides), but is called with (sides, beta=0.1): "),
        ("-F.logsigmoid(", "F.nothing(", "mine.py:loss failed in line 6: AttributeError: "),
    ],
)
def test_a_function_that_cannot_be_played_with_is_one_line_before_anything_is_computed(
    old: str, new: str, line: str, words: list[str], tmp_path: Path
) -> None:
    source = (tmp_path / "mine.py").read_text()
    assert source.count(old) == 1
    (tmp_path / "mine.py").write_text(source.replace(old, new))
    assert_one_line(call("run", *words, *sets(LOSS, *RULES), "--trust"), line)
    assert not (tmp_path / "run").exists() and not list((tmp_path / "store").glob("*/*"))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["game.pairing=concatenate", "game.opponents={{function: {file}:uneven}}"], "mine.py:uneven gives unequal weights"),
        (["game.loss=ipo_length_normalized", RULES[1]], "game.loss ipo_length_normalized needs a normalised reference, and"),
        (["game.loss={{name: function, function: {file}:free}}", RULES[1]], "has no effect, as "),
        (["game.loss={{name: function, function: {file}:free, beta: 1}}"], "takes it in options: {beta: ...}"),
        (["game.loss={{function: {file}:free}}"], "write game.loss as {name: function, function: file.py:loss}"),
        (["game.reference={{name: function}}"], "game.reference.function: missing; add it"),
        (
            ["game.reference=geometry"],
            "game.reference: 'geometry' cannot be used: write 'geometric', 'arithmetic' or",
        ),
        (["game.reference={{function: f.py:f, combine: ema}}"], "game.reference.combine: 'ema' cannot be used"),
        (["game.opponents={{function: {file}:uneven, name: x}}"], "game.opponents.name: unknown field"),
        (["game.loss={{name: function, function: {file}:squared}}"], "mine.py:squared needs a normalised reference"),
    ],
)
def test_what_does_not_go_together_is_one_line(overrides: list[str], line: str, tmp_path: Path) -> None:
    more = "def uneven(iterates, base):\n    return {base: 1, iterates[-1]: 2}\n\ndef free(sides):\n    return -sides.chosen\n"
    more += "\ndef squared(sides):\n    return (sides.chosen - sides.ref_chosen) ** 2\n"
    (tmp_path / "mine.py").write_text(
        more + OWN.partition("\n\n")[2].replace(OWN[OWN.index("def loss") : OWN.index("def opp")], "")
    )
    with pytest.raises(InputError) as error:
        opened(tmp_path, *named(tmp_path / "mine.py", *overrides))
    assert line in str(error.value) and "\n" not in str(error.value)
