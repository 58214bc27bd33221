"""The unquantized base beside the one that plays in 4 bits: measured once, as transformers alone does, no part of the game."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from helpers.commands import call
from helpers.games import QUICKSTART, Plain, data_rows, of_policy, opened, played, stored, tiny
from helpers.page import Page, cells
from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Evaluate, Inputs, Train
from lowmem_spin.algorithm.touches import touches
from lowmem_spin.common.display import Display
from lowmem_spin.config.grid import SweepPoint
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import UNRESOLVED, Source
from lowmem_spin.engines import pool
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import Shape
from lowmem_spin.engines.unquantized import measured_beside, proposal, with_own_weights
from lowmem_spin.library.games import load
from lowmem_spin.report.load import read_run_results
from lowmem_spin.report.page import write_all
from lowmem_spin.report.summary import run_grid, terminal_table, verdict
from lowmem_spin.runner import gc
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.planning.plan import plan
from lowmem_spin.runner.steps import numbered

BESIDE = ("model.quantization=nf4", "evaluation={health_prompts: 12, compare_unquantized: true}", "game.iterations=1")
NAME = "unquantized base"


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> OpenGame:
    return played(tmp_path_factory.mktemp("beside"), *BESIDE)


def records(game: OpenGame) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in map(json.loads, (game.folder / "metrics.jsonl").read_text().splitlines())}


def test_the_unquantized_base_has_the_log_probs_that_transformers_alone_gives(game: OpenGame) -> None:
    rows, plain = data_rows(game.store.root), Plain(QUICKSTART / "base")
    found = {
        row["prompt_id"]: row["logp"]
        for row in of_policy(game.store.root, "logps", beside(game))
        if row["completion"] == "chosen"
    }
    assert len(found) == len(game.rows.held.scored) > 5
    expected = {name: plain.logp(rows[name]["prompt"], rows[name]["chosen"]) for name in found}
    assert found == pytest.approx(expected, abs=1e-4)
    assert records(game)[NAME]["chosen_logp"] == pytest.approx(np.mean([*expected.values()]), abs=1e-4)
    assert records(game)["base"]["chosen_logp"] != pytest.approx(records(game)[NAME]["chosen_logp"], abs=1e-4)


def beside(game: OpenGame) -> str:
    assert game.inputs.unquantized is not None
    return game.inputs.unquantized["base"]


def chosen(game: OpenGame, policy: str) -> np.ndarray:
    rows = {
        row["prompt_id"]: row["logp"] for row in of_policy(game.store.root, "logps", policy) if row["completion"] == "chosen"
    }
    names = [game.rows.held.rows.ids[place] for place in game.rows.held.scored]
    return np.array([rows[name] for name in names])


def test_gains_against_both_bases_are_taken_row_by_row(game: OpenGame) -> None:
    found, whole = records(game), chosen(game, beside(game))
    policies = {name: chosen(game, one["policy"]) for name, one in found.items()}
    for name, logps in policies.items():
        for field, other in (("gain", policies["base"]), ("gain_over_unquantized", whole)):
            apart = logps - other
            assert found[name][field] == pytest.approx(apart.mean(), abs=1e-9)
            assert found[name][f"{field}_se"] == pytest.approx(stats.sem(apart), abs=1e-9)
    assert not [name for name in found[NAME] if name.startswith("kl_")]  # its drift is from nothing


def test_the_game_is_the_same_with_and_without_it(game: OpenGame) -> None:
    without = opened(game.folder.parent, *BESIDE, "evaluation.compare_unquantized=false")
    assert without.inputs.unquantized is None and without.stages == game.stages[1:]
    assert json.loads((game.folder / "run.json").read_text())["policies"].keys() == {"base", "iterate 0"}
    assert [stage.name for stage in game.stages if isinstance(stage, Evaluate)] == [NAME, "base", "iterate 0"]


def test_a_game_that_plays_unquantized_has_its_base_measured_already(game: OpenGame) -> None:
    other = opened(game.folder.parent, *BESIDE, "model.quantization=none")
    first = other.stages[0]
    assert isinstance(first, Evaluate) and first.policy == beside(game) and first.role is Role.BASE
    asked = {touch.key for touch in touches(first, other.recipe, other.inputs)}
    assert asked == {touch.key for touch in touches(game.stages[0], game.recipe, game.inputs)}
    assert asked <= {*stored(game.store.root, "completions"), *stored(game.store.root, "logps")}


def test_it_is_measured_once_for_all_games_of_a_store(game: OpenGame, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(game.folder.parent, tmp_path / "again"))
    before = (len(of_policy(folder / "store", kind, beside(game))) for kind in ("completions", "logps"))
    again = played(
        folder,
        *BESIDE,
        "game.loss.beta=0.3",
        f"data.path={game.folder.parent / 'train.jsonl'}",
        f"output.dir={folder / 'other'}",
    )
    assert [len(of_policy(folder / "store", kind, beside(game))) for kind in ("completions", "logps")] == list(before)
    assert records(again)[NAME] == records(game)[NAME] and again.stages[-1] != game.stages[-1]


def test_what_it_was_measured_with_is_in_use(game: OpenGame) -> None:
    listed = gc.unused(game.store.root, gc.used_by([game.folder]))
    assert not [item for item in listed if item.kind in ("completions", "logps")]
    own = {
        key
        for kind in ("completions", "logps")
        for key, (asked, _) in stored(game.store.root, kind).items()
        if asked["policy"] == beside(game)
    }
    run = gc.run_folder.read_run_folder(game.folder)
    without = replace(run, inputs=replace(run.inputs, unquantized=None))
    used = gc.Used()
    used.add(gc.keys_of(without))
    assert {item.path.stem for item in gc.unused(game.store.root, used) if item.kind in ("completions", "logps")} == own


def test_every_table_has_a_row_and_a_column_of_it(game: OpenGame) -> None:
    run = read_run_results(game.folder)
    write_all(run)
    text, found = (game.folder / "report.md").read_text(), records(game)
    headings = cells(text, "policy")
    assert headings[1:4] == ["log-prob of data, nats", "gain, nats", "gain over unquantized, nats"]
    for name, one in found.items():
        row = dict(zip(headings, cells(text, name), strict=True))
        gains = {"base": (None, "gain_over_unquantized"), NAME: ("gain", None)}.get(name, ("gain", "gain_over_unquantized"))
        for heading, field in zip(headings[2:4], gains, strict=True):
            reach = "" if field is None else f"{one[field]:+z.2f} ±{1.96 * one[f'{field}_se']:.2f}"
            assert row[heading] == reach
    assert cells(text, NAME)[4:7] == ["", "", ""]  # KL
    words = Page(game.folder / "report.html").words
    assert "Against the unquantized base, the base in nf4 is at" in words and "Dotted: unquantized base." in words
    out = io.StringIO()
    Console(file=out, width=120).print(terminal_table(run))
    assert "Held-out results, ± 95% interval; scores and KL in nats;" in out.getvalue() and "%, ±" not in out.getvalue()
    frame = load(game.folder).table
    assert frame.loc["iterate 0", "gain_over_unquantized"] == found["iterate 0"]["gain_over_unquantized"]
    assert frame.loc[NAME, "gain"] == -frame.loc["base", "gain_over_unquantized"]
    assert np.isnan(frame.loc[NAME, "kl_to_base"])


def test_a_run_without_it_has_no_word_of_it(game: OpenGame, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(game.folder, tmp_path / "run", symlinks=True))
    kept = [one for name, one in records(game).items() if name != NAME]
    for one in kept:
        for field in ("gain_over_unquantized", "gain_over_unquantized_se"):
            one.pop(field)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
    run = read_run_results(folder)
    assert not [heading for heading in run_grid(run).headings if "unquantized" in heading]
    assert not [line for line in verdict(run) if "unquantized" in line]


def recipe(**sections: dict[str, Any]) -> Recipe:
    content: dict[str, Any] = {"model": {"name_or_path": "m"}, "data": {"path": "d.jsonl"}}
    return Recipe.model_validate(
        {name: {**content.get(name, {}), **sections.get(name, {})} for name in {**content, **sections}}
    )


def choices(limit: float) -> pool.EngineChoices:
    return pool.EngineChoices(Machine("cuda", "bfloat16", limit, limit), "vllm", "unsloth")


def published(name: str) -> Source:
    """A model of a published shape, whose files are not here."""
    return Source(name, UNRESOLVED, name)


def test_auto_measures_bases_that_are_no_toys_where_they_fit() -> None:
    asked, base = recipe(), published("google/gemma-2b")
    found = measured_beside(asked, base, choices(24e9))
    assert found.recipe is not None and found.recipe.model.quantization == "none" and found.why_not is None
    small = measured_beside(asked, base, choices(5e9))  # its weights alone are 5.0 GB in bfloat16
    assert small.recipe is None
    assert small.why_not is not None and "not measured beside the 4-bit one: it needs" in small.why_not
    assert "and 5.0 GB are there; evaluation.compare_unquantized: true measures it all the same" in small.why_not
    told = recipe(evaluation={"compare_unquantized": True})
    assert measured_beside(told, base, choices(5e9)).recipe is not None
    for given in (recipe(evaluation={"compare_unquantized": False}), recipe(model={"quantization": "none"})):
        assert measured_beside(given, base, choices(24e9)) == type(found)()
    unknown = measured_beside(asked, published("somebody/something"), choices(24e9))
    assert unknown.recipe is None and "its size is not known yet" in str(unknown.why_not)


def test_the_shipped_toy_base_is_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    shipped = load_recipe(find_recipe("quickstart"), [f"output.store={tmp_path / 'store'}", f"output.dir={tmp_path / 'run'}"])
    base = Source(str(QUICKSTART / "base"), None, "base")
    cpu = pool.EngineChoices(Machine("cpu", "float32"), "hf", "hf")
    assert shipped.model.quantization == "nf4" and measured_beside(shipped, base, cpu).recipe is None
    assert measured_beside(shipped, base, cpu).why_not is None


def test_a_checkpoint_that_is_stored_in_4_bits_has_no_other_weights(tmp_path: Path) -> None:
    shutil.copytree(QUICKSTART / "base", tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    packed = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | packed))
    told, base = recipe(evaluation={"compare_unquantized": True}), Source(str(tmp_path / "base"), None, "base")
    assert measured_beside(told, base, choices(24e9)).recipe is None
    assert proposal(told, base, "float32") == []


def test_a_small_base_in_4_bits_is_said_what_it_would_take_without() -> None:
    (line,) = proposal(recipe(), published("google/gemma-3-270m"), "bfloat16")
    whole = 268_098_176 * 2 / 1e9  # its published number of parameters, two bytes each
    assert line.startswith(f"model.quantization: none would take {whole:.1f} GB for the base's weights instead of 0.4 GB")
    assert proposal(recipe(), published("google/gemma-2b"), "bfloat16") == []
    assert proposal(with_own_weights(recipe()), published("google/gemma-3-270m"), "bfloat16") == []


def test_a_plan_counts_it_and_proposes_to_play_without_nf4(game: OpenGame, tmp_path: Path) -> None:
    overrides = [*tiny(game.folder.parent, *BESIDE), f"output.store={tmp_path / 'store'}", f"output.dir={tmp_path / 'run'}"]
    made = plan([SweepPoint("one", {}, load_recipe(find_recipe("quickstart"), overrides))], tmp_path)
    (note,) = [note for note in made.notes if "loses nothing to nf4" in note]
    assert "none would take" in note and "MB" in note
    (told,) = [note for note in made.notes if "measured beside the 4-bit one, once for all games of this store: " in note]
    assert re.search(r"takes up to [\d.]+ [MG]B$", told)
    there = plan([SweepPoint("one", {}, load_recipe(find_recipe("quickstart"), tiny(game.folder.parent, *BESIDE)))], tmp_path)
    mine = [line for line in there.lines if line.label == NAME]
    assert mine and all(line.to_do == 0 and line.rows for line in mine)
    without = plan(
        [SweepPoint("one", {}, load_recipe(find_recipe("quickstart"), [*overrides, "evaluation.compare_unquantized=false"]))],
        tmp_path,
    )
    assert not [line for line in without.lines if line.label == NAME] and len(without.lines) < len(made.lines)


def test_in_a_sweep_it_comes_before_everything_else() -> None:
    own = {"base": "whole", "generator": {}, "learner": {}}
    stages = numbered(list(play(recipe(), Inputs("b", "d", {}, {}, unquantized=own))))
    assert stages[0] == (-3, stages[0][1]) and isinstance(stages[0][1], Evaluate) and stages[0][1].role is Role.UNQUANTIZED
    assert [number for number, _ in stages] == sorted(number for number, _ in stages)
    assert [stage for _, stage in stages[1:]] == list(play(recipe(), Inputs("b", "d", {}, {})))
    assert all(not isinstance(stage, Train) or "whole" not in str(stage.spec()) for _, stage in stages)


def test_two_bases_are_never_in_memory_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU and the engines are pretended; who is open is not."""
    held: list[str] = []
    shape = Shape(18, 2048, 16384, 8, 1, 256, 256000, True)

    def open_engine(name: str, recipe: Recipe, *_: Any) -> Any:
        held.append(f"{name} {recipe.model.quantization}")
        assert name != "unsloth" or recipe.scoring_tokens == 8192  # there is room for them beside vllm
        mine = held[-1]
        assert {one.rpartition(" ")[2] for one in held} == {recipe.model.quantization}
        return SimpleNamespace(close=lambda: held.remove(mine), release=lambda: None)

    monkeypatch.setattr(pool, "open_engine", open_engine)
    monkeypatch.setattr(pool, "read_shape", lambda model: shape)
    engines, quiet = pool.EnginePool(), Display(Console(quiet=True))
    playing = pool.GameEngines(
        recipe=recipe(), model=published("m"), choices=choices(64e9), weights_dir=tmp_path, display=quiet, pool=engines
    )
    measuring = replace(playing, recipe=with_own_weights(recipe()))
    for one in (measuring, playing, measuring):
        one.generator()
        one.learner()
        assert len(held) == 2
    assert held == ["vllm none", "unsloth none"]


def test_a_game_with_it_is_exported_with_a_card_that_has_its_row(game: OpenGame, tmp_path: Path) -> None:
    result = call("export", game.folder, "--to", tmp_path / "mine")
    assert result.returncode == 0, result.stderr
    (row,) = [line for line in (tmp_path / "mine" / "README.md").read_text().splitlines() if "unquantized base |" in line]
    assert f"{records(game)['unquantized base']['chosen_logp']:.2f}" in row
