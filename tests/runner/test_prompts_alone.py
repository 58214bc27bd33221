"""SPPO on prompts without answers: played, measured by what needs none, and refused where something needs them; and a plan
refuses a file as the game does."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from helpers.games import QUICKSTART, opened, played, tiny
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.grid import SweepPoint
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.report.load import read_run_results
from lowmem_spin.report.page import write_all
from lowmem_spin.report.summary import run_grid, verdict
from lowmem_spin.runner.open import OpenGame, SharedResources, open_game
from lowmem_spin.runner.planning.plan import plan

ORACLE = "def shorter(messages, answers, reference):\n    assert reference == ''\n    return [-len(a) for a in answers]\n"
TRAIN = [json.loads(line) for line in (QUICKSTART / "train.jsonl").read_text().splitlines()[:80]]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contest(folder: Path) -> list[str]:
    (folder / "oracle.py").write_text(ORACLE)
    data = write(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in TRAIN])
    oracle = f"game.oracle={{name: function, function: '{folder / 'oracle.py'}:shorter'}}"
    return [f"data.path={data}", "game.algorithm=sppo", oracle, "game.history=1", "game.iterations=1", "game.samples=3"]


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> OpenGame:
    folder = tmp_path_factory.mktemp("alone")
    return played(folder, *contest(folder), "model.quantization=nf4", "evaluation.compare_unquantized=true")


def test_a_game_on_prompts_alone_is_measured_by_what_needs_no_answer(game: OpenGame) -> None:
    base, unquantized, iterate = (json.loads(line) for line in (game.folder / "metrics.jsonl").read_text().splitlines())
    assert not {"chosen_logp", "sampled_accuracy", "identical"} & (base.keys() | iterate.keys() | unquantized.keys())
    assert not {"gain", "gain_over_unquantized"} & unquantized.keys()  # no oracle has compared its answers
    assert iterate["gain"] == pytest.approx(iterate["win_rate_to_base"] - 0.5)
    run = read_run_results(game.folder)
    assert run.unquantized is None and run.policies[1].name == "unquantized base"
    assert run.scores == ["win_rate_to_base"] and run.base.score.mean == 0.5
    assert run_grid(run).headings[1] == "wins over base, %"
    assert "share of wins over the base, in percent" in verdict(run)[0]
    assert len([path for path in write_all(run) if path.stat().st_size]) > 3


@pytest.mark.parametrize(
    ("override", "needs"),
    [
        ("game.oracle=function", "game.oracle exact_match"),
        ("evaluation.compare_sft=true", "evaluation.compare_sft"),
        ("warm_start={rows: 4}", "warm_start"),
        ("game.stop_when.chosen_logp_falls=1", "game.stop_when.chosen_logp_falls"),
        ("game={pairs: 4}", "game.algorithm alpha-spin"),
    ],
)
def test_what_needs_answers_refuses_prompts_alone(tmp_path: Path, override: str, needs: str) -> None:
    with pytest.raises(InputError, match=f"no answers that are known as such, which {needs} needs"):
        opened(tmp_path, *contest(tmp_path), override)


def test_held_out_prompts_may_be_without_answers_and_exact_match_may_not(tmp_path: Path) -> None:
    held = write(tmp_path / "held.jsonl", [{"prompt": "sort: a"}, {"prompt": TRAIN[0]["prompt"]}])
    asked = [*contest(tmp_path), f"evaluation.path={held}"]
    assert opened(tmp_path, *asked).rows.held.scored == []
    with pytest.raises(InputError, match=r"evaluation\.path: .* which evaluation\.metric exact_match needs"):
        opened(tmp_path, *asked, "evaluation.metric=exact_match")


def said(folder: Path, *overrides: str) -> str:
    out = io.StringIO()
    recipe = load_recipe(find_recipe("quickstart"), tiny(folder, *overrides))
    open_game(recipe, folder, Display(Console(file=out, width=1000)), SharedResources())
    return out.getvalue()


def test_held_out_rows_that_are_learned_from_are_named(tmp_path: Path) -> None:
    held = write(tmp_path / "held.jsonl", [TRAIN[0], {**TRAIN[1], "completion": "other"}, {**TRAIN[2], "prompt": "new"}])
    line = (
        "evaluation.path: warning: 1 of 3 held-out rows are also training rows, and 1 more have the prompt of one, so held-out "
        "scores are too good; give evaluation.path other rows"
    )
    assert line in said(tmp_path, f"evaluation.path={held}")
    assert "held-out rows" not in said(tmp_path, f"evaluation.path={QUICKSTART / 'heldout.jsonl'}", "data.turns=all")
    data = write(tmp_path / "data.jsonl", TRAIN[:8])
    assert "all 8 held-out rows are also training rows, so held-out scores are too good" in said(
        tmp_path, f"data.path={data}", f"evaluation.path={data}", "game.pairs=4"
    )


def test_rows_set_aside_that_occur_again_among_those_to_learn_from_are_named(tmp_path: Path) -> None:
    alone = ["evaluation.path=null", "evaluation.metric=none"]
    twice = write(tmp_path / "twice.jsonl", TRAIN[:40] * 2)
    assert "data.path: warning: 2 of 4 held-out rows are also training rows" in said(tmp_path, f"data.path={twice}", *alone)
    once = write(tmp_path / "once.jsonl", TRAIN[:80])
    found = said(tmp_path, f"data.path={once}", *alone)
    assert "held-out rows" not in found and "data.path: 4 of 80 rows are kept to measure on and not learned from" in found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"text": "t"}\n',
        b'{"prompt": "p", "completion": " "}\n',
        b'no\nno\n{"prompt": "p", "completion": "c"}\n',
        b'{"prompt": "p", "completion": "c"}\n' * 3,
        b'[{"prompt": "p", "completion": "c"}',
    ],
    ids=["empty", "layout", "rows", "format", "few", "array"],
)
def test_a_plan_refuses_a_file_as_the_game_does(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.jsonl").write_bytes(content)
    overrides = tiny(tmp_path, f"data.path={tmp_path / 'd.jsonl'}", "evaluation.health_prompts=4")
    recipe = load_recipe(find_recipe("quickstart"), overrides)
    lines = []
    for refuse in (
        lambda: plan([SweepPoint("", {}, recipe)], tmp_path),
        lambda: open_game(recipe, tmp_path, Display(Console(quiet=True)), SharedResources()),
    ):
        with pytest.raises(InputError) as error:
            refuse()
        lines.append(str(error.value))
    assert lines[0].removesuffix(" (3 rows read; prompt lengths are not checked yet)") == lines[1]


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("warm_start={rows: 81}", "warm_start.rows"),
        ("game.sampler={name: gflownet, prompts: 70, own_prompts: true, samples: 1, batch_size: 2}", "game.sampler.prompts"),
    ],
)
@pytest.mark.parametrize("prepared", ["nothing", "all", "what is learned from"])
def test_whoever_asks_for_too_many_rows_is_named_by_plans_and_runs(
    override: str, field: str, prepared: str, tmp_path: Path
) -> None:
    write(tmp_path / "d.jsonl", TRAIN)
    given = (f"data.path={tmp_path / 'd.jsonl'}", "evaluation.health_prompts=4", "game.iterations=2", "game.alpha=0.5")
    if prepared != "nothing":
        opened(tmp_path, *given)
    if prepared == "what is learned from":
        given += (f"evaluation={{path: {write(tmp_path / 'held.jsonl', TRAIN[:5])}, health_prompts: 4}}",)
    recipe = load_recipe(find_recipe("quickstart"), tiny(tmp_path, *given, override))
    for refuse in (
        lambda: plan([SweepPoint("", {}, recipe)], tmp_path),
        lambda: open_game(recipe, tmp_path, Display(Console(quiet=True)), SharedResources()),
    ):
        others = r", 12 of them for other draws .*," if "own_prompts" in override else ""
        lower = "lower it" if others else r"lower it to \1"  # it has not all rows to itself
        needed = rf"8\d prompts{others} are needed, but there are only (76|80) usable rows; {lower} or give"
        with pytest.raises(InputError, match=f"^{field}: {needed}"):
            refuse()


def test_a_plan_says_what_a_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [*TRAIN, {"prompt": "p", "completion": ""}])
    recipe = load_recipe(find_recipe("quickstart"), tiny(tmp_path, f"data.path={path}"))
    notes = plan([SweepPoint("", {}, recipe)], tmp_path).notes
    said = f"data.path: {path}: read as prompt and completion: 81 rows read, 80 used, before prompt lengths are checked"
    assert {said, "data.path: 1 row with an empty answer, left out (first: line 81)"} <= {*notes}
    recipe = load_recipe(find_recipe("quickstart"), tiny(tmp_path, f"data.path={path}", "game.pairs=81"))
    why = (
        "(81 rows read: 1 row with an empty answer, left out (first: line 81), 4 held out; prompt lengths are not checked yet)"
    )
    with pytest.raises(
        InputError, match=f"^game.pairs: 81 prompts are needed, but there are only 76 usable rows; .* {re.escape(why)}$"
    ):
        plan([SweepPoint("", {}, recipe)], tmp_path)
