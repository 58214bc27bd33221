"""Recipes: every shipped one is valid, and a wrong one gets one line that names field, value and remedy."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lowmem_spin.recipe import InputError, Recipe
from lowmem_spin.recipe_file import find, load

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
QUICKSTART = find("quickstart")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_survive_being_written_out(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    copy = tmp_path / "resolved.yaml"
    copy.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load(copy) == recipe


def test_the_table_of_recipes_has_every_one_once_with_a_command_for_it() -> None:
    table = (RECIPES[0].parent / "README.md").read_text()
    assert sorted(re.findall(r"^\| `lowmem-spin (?:run|sweep) ([\w.]+)", table, re.MULTILINE)) == [
        path.stem for path in RECIPES
    ]


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = load(find("gemma2b_alpha"))
    game, training = recipe.game, recipe.training
    assert (game.alpha, game.history, game.iterations, game.pairs) == (0.95, 2, 3, [50000, 100000, 100000])
    assert (training.lora.r, training.lora.dropout, training.num_train_epochs) == (16, 0.05, 4)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("game.alfa=0.9", "game.alfa: unknown field; did you mean alpha?"),
        ("gmae.alpha=0.9", "gmae: unknown field; did you mean game?"),
        ("training.lora.rank=4", "training.lora.rank: unknown field; known here: r, lora_alpha, dropout, target_modules"),
        ("game.alpha=1.5", "game.alpha: 1.5 cannot be used: Input should be less than or equal to 1"),
        ("game.history=0", "game.history: 0 cannot be used"),
        ("game.history=ever", "game.history: 'ever' cannot be used"),
        ("game.alpha=lots", "game.alpha: 'lots' cannot be used: Input should be a valid number"),
        ("game.pairs=[1, 2]", "game.pairs: has 2 numbers for 3 iterations; give one each"),
        ("game.loss.beta=.nan", "game.loss.beta: nan cannot be used: Input should be a finite number"),
        ("model=null", "model: None cannot be used"),
        (
            "generation.weights=shared",
            "generation.weights: 'shared' cannot be used: so far vllm can only hold the base dequantized",
        ),
        ("evaluation.path=null", "evaluation.metric: exact_match needs held-out rows; give evaluation.path"),
        ("alpha", "--set 'alpha': write it as field=value"),
        ("seed.value=3", "--set 'seed.value=3': seed has no fields of its own"),
        ("game.alpha=[", "--set 'game.alpha=[': the value is not valid YAML"),
    ],
)
def test_wrong_values_get_one_line(override: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        load(QUICKSTART, ["seed=1", override])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_overrides_reach_nested_fields_and_yaml_reads_infinity_either_way() -> None:
    changed = load(QUICKSTART, ["game.alpha=0.5", "game.history=.inf", "training.lora.r=4", "training.learning_rate=1e-4"])
    assert (changed.game.alpha, changed.game.window, changed.training.lora.r) == (0.5, None, 4)
    assert changed.training.learning_rate == 1e-4  # which YAML 1.1 reads as text
    assert load(QUICKSTART, ["game.history=inf"]).game == load(QUICKSTART, ["game.history=.inf"]).game


def test_files_that_are_no_recipe_are_named(tmp_path: Path) -> None:
    for content, line in (("a: [1\nb: 2", "not valid YAML"), ("- a", "not list"), ("", "not NoneType"), ("model: x", "model:")):
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(InputError, match=line):
            load(tmp_path / "r.yaml")
    with pytest.raises(InputError, match="is a folder"):
        find(str(tmp_path))
    with pytest.raises(InputError, match="no such file"):
        find("nowhere.yaml")


def fields(section: object, prefix: str = "") -> list[str]:
    if not isinstance(section, dict):
        return [prefix.removesuffix(".")]
    return [name for key, value in section.items() for name in fields(value, f"{prefix}{key}.")]


FIELDS = fields(load(QUICKSTART).model_dump(mode="json"))
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 5), st.floats(), st.text(max_size=8),
    st.lists(st.integers(-1, 3), max_size=3), st.sampled_from(["hf", "nf4", "inf", "split", "1e-3", "first"]),
    st.dictionaries(st.text(max_size=4), st.none(), max_size=2),
)  # fmt: skip


@settings(max_examples=3000, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=3), st.data())
def test_mutated_recipes_are_valid_or_refused_in_one_line(changes: list[tuple[str, object]], data: st.DataObject) -> None:
    content = load(QUICKSTART).model_dump(mode="json")
    for field, value in changes:
        *parents, last = field.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        if data.draw(st.integers(0, 9)) == 0:
            last += data.draw(st.text(max_size=2))
        section[last] = value
    path = Path(tempfile.gettempdir()) / f"lowmem-spin-mutated-{os.getpid()}.yaml"
    path.write_text(yaml.safe_dump(content))
    try:
        assert isinstance(load(path), Recipe)
    except InputError as error:
        assert len(str(error).splitlines()) == 1


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lowmem_spin.cli", *arguments], capture_output=True, text=True, check=False)


def test_schema_documents_every_field() -> None:
    schema = json.loads(cli("recipe", "--schema").stdout)
    sections = schema["$defs"]
    missing = [
        f"{section}.{name}"
        for section, content in sections.items()
        for name, field in content["properties"].items()
        if "description" not in field and "$ref" not in field
    ]
    assert missing == []


def test_bad_input_exits_with_2_and_without_a_traceback() -> None:
    for arguments in (
        ["run", "nowhere.yaml"],
        ["run", str(QUICKSTART), "--set", "game.alfa=1"],
        ["run", str(QUICKSTART.parent)],
    ):
        result = cli(*arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1


def test_without_a_hub_the_papers_recipe_says_what_is_missing(tmp_path: Path) -> None:
    result = cli("run", "gemma2b_alpha", "--set", f"output.store={tmp_path}", "--set", f"output.dir={tmp_path}/run")
    assert result.returncode == 2
    assert (
        "model.name_or_path: 'google/gemma-2b' is not here as a path or in the hub cache, and offline mode is on"
        in result.stderr
    )
    assert len(result.stderr.splitlines()) == 1
