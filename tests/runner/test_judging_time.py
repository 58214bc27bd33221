"""What an oracle takes in a plan: which questions it is timed on, and hours by rates that were written by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from helpers.commands import assert_one_line, call
from helpers.games import PAIRS, tiny
from lowmem_spin.cli.plan import measure_here
from lowmem_spin.common.display import Display
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.grid import planned_points
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.engines.oracles.judge import LLMJudge
from lowmem_spin.runner.planning import measuring
from lowmem_spin.runner.planning.plan import PlannedWork, plan

RECIPE = find_recipe("quickstart")
HEALTH, ITERATES, ANSWERS = 4, 2, 3
KEEPS_COUNT = """
import json
from pathlib import Path

def longest(messages, answers, reference):
    with Path(__file__).with_name("asked.jsonl").open("a") as file:
        file.write(json.dumps([messages, answers, reference]) + "\\n")
    return [len(answer) for answer in answers]
"""


def changes(folder: Path, *more: str) -> list[str]:
    if not (own := folder / "mine.py").exists():
        own.write_text(KEEPS_COUNT)
    sppo = [
        "game.algorithm=sppo",
        "game.loss=sppo",
        "game.alpha=1",
        f"game.samples={ANSWERS}",
        f"game.oracle={{function: '{own}:longest'}}",
    ]
    return tiny(folder, *sppo, f"game.iterations={ITERATES}", "runtime.generation_batch_size=40", *more)


def planned(folder: Path, *more: str, gpu: str | None = None, workers: str | None = None) -> PlannedWork:
    return plan(planned_points(RECIPE, changes(folder, *more), {}, 1), folder, gpu, workers=workers)


def measured(folder: Path, *more: str) -> list[str]:
    recipe = load_recipe(RECIPE, changes(folder, *more))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "LEAST", 0.0)  # a single time will do: no seconds are asserted
        return measure_here(recipe, folder, Display(Console(quiet=True)), Trust(given=True))


def records(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "store" / "bench.json").read_text())


def judging(folder: Path) -> list[dict[str, Any]]:
    return [one for one in records(folder) if one["kind"] == "judge"]


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("judged")
    return folder, measured(folder)


def test_an_oracle_is_timed_on_answers_of_the_base_and_asked_nothing_twice(timed: tuple[Path, list[str]]) -> None:
    folder, lines = timed
    asked = [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]
    assert {len(answers) for _, answers, _ in asked} == {2, ANSWERS}  # held-out samples, and the game's
    for one, count in zip(judging(folder), (2, ANSWERS), strict=True):
        mine = [question for question in asked if len(question[1]) == count]
        assert one["rows"] == len(mine) - 2 == 6  # of 8 prompts with 5 answers each; one loads, and one sizes
        assert one["tokens"] == count * one["rows"]
        assert len({json.dumps(question) for question in mine}) == len(mine)
    known = {(row["prompt"], row["completion"]) for row in map(json.loads, (folder / "train.jsonl").open())}
    prompts = {(messages[-1]["content"], reference) for messages, _, reference in asked}
    assert prompts <= known and len(prompts) == 8
    assert ", judge " in lines[0] and "answers; kept in" in lines[0]
    assert not (folder / "store" / "judgements").exists()


def at_seconds(folder: Path, game: float, held_out: float) -> None:
    """So many seconds a prompt, by hand, in the game and of two held-out samples."""
    kept = records(folder)
    for one in kept:
        if one["kind"] == "judge":
            one["seconds"] = one["rows"] * (game if one["tokens"] == ANSWERS * one["rows"] else held_out)
    (folder / "store" / "bench.json").write_text(json.dumps(kept))


def test_hours_are_those_of_rates_written_by_hand(timed: tuple[Path, list[str]]) -> None:
    folder, _ = timed
    at_seconds(folder, 1e-9, 1e-9)
    before = planned(folder)
    at_seconds(folder, 1000.0, 100.0)
    made = planned(folder, workers="1")
    total, by_kind = made.total(), made.totals()
    against = 1 + 2  # the first iterate meets the base, the second the base and the first
    game, held_out = ITERATES * PAIRS * 1000.0, against * HEALTH * 100.0
    assert by_kind["judge"]["seconds"] == pytest.approx(game)
    assert by_kind["evaluate"]["seconds"] - before.totals()["evaluate"]["seconds"] == pytest.approx(held_out)
    assert total.seconds - before.total().seconds == pytest.approx(game + held_out)
    assert made.parallel is not None and made.parallel.seconds == pytest.approx(total.seconds)
    assert made.parallel.longest_chain >= game  # one worker judges
    assert made.record()["total"]["without"] == made.parallel.record()["without"] == []
    assert "judge" not in total.time + made.parallel.line() and not any("game.oracle" in note for note in made.notes)
    stages = [line for line in made.record()["stages"] if line["kind"] == "judge"]
    assert [stage["seconds"] for stage in stages] == [PAIRS * 1000.0] * ITERATES and all(line["measured"] for line in stages)
    said = call("plan", "quickstart", *(f"--set={change}" for change in changes(folder))).stdout
    assert "Times are measured on this machine." in said and "judge by base" in said


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (f"game.samples={ANSWERS + 1}", ["game"]),  # two held-out samples are two
        ("game.oracle=function", ["game", "held-out"]),  # exact_match
        ("generation.max_new_tokens=9", ["game", "held-out"]),
    ],
)
def test_a_rate_is_of_one_oracle_and_one_number_of_answers(
    change: str, kinds: list[str], timed: tuple[Path, list[str]]
) -> None:
    made = planned(timed[0], change)
    left = {"judge": "game", "evaluate": "held-out"}
    assert list(dict.fromkeys(left[line.unit.kind] for line in made.lines if line.untimed)) == kinds
    assert made.record()["total"]["without"] == ["judge"] and made.total().time.endswith(", and the judge on top")
    assert made.notes.count("the time that game.oracle takes to judge is not counted; --measure times it") == 1
    assert made.totals()["judge"]["seconds"] is None and made.total().seconds > 0


def test_an_edited_function_is_another_oracle_and_older_rates_still_count(tmp_path: Path) -> None:
    measured(tmp_path)
    assert not any(line.untimed for line in planned(tmp_path).lines)
    own = tmp_path / "mine.py"
    own.write_text(KEEPS_COUNT + "\n# edited\n")
    assert planned(tmp_path).total().untimed
    own.write_text(KEEPS_COUNT)
    assert not planned(tmp_path).total().untimed
    assert planned(tmp_path, gpu="4090").total().untimed, "another machine's oracle was not timed"
    earlier = [one for one in records(tmp_path) if one["kind"] != "judge"]  # as a version that times no oracle left it
    (tmp_path / "store" / "bench.json").write_text(json.dumps(earlier))
    made = planned(tmp_path)
    assert made.total().untimed and all(line.measured for line in made.lines if line.unit.side != "judgements")


def test_an_endpoints_judge_is_asked_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("its calls may cost money")

    monkeypatch.setattr(LLMJudge, "prefer", refuse)
    judge = "game.oracle={name: judge, base_url: 'http://127.0.0.1:9/v1', model: some}"
    lines = measured(tmp_path, judge)
    assert {one["kind"] for one in records(tmp_path)} == {"generate", "prefill", "score", "score alone", "train"}
    assert ", judge " not in lines[0]
    made = planned(tmp_path, judge)
    assert made.total().untimed and "the time that game.oracle takes to judge is not counted" in made.notes


def test_a_function_that_is_not_trusted_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(KEEPS_COUNT + "\nraise SystemExit('it ran')\n")
    result = call("plan", "quickstart", "--measure", *(f"--set={change}" for change in changes(tmp_path)))
    assert_one_line(result, "--trust")
    assert not (tmp_path / "store" / "bench.json").exists()


def test_benchmarks_are_named_with_the_policies_that_they_run_on(tmp_path: Path) -> None:
    asked = [*tiny(tmp_path), "evaluation.compare_sft=true", "evaluation.benchmarks=[gsm8k, diversity]"]
    made = plan(planned_points(RECIPE, asked, {"game.alpha": [0.5, 1.0]}, 1), tmp_path)
    said = "evaluation.benchmarks: gsm8k, diversity, on up to {} policies; their time is not counted"
    assert said.format(1 + 2 * 2 - 1) in made.notes  # the first iterate is the same for both; plain SFT is not measured
    assert not any(
        "evaluation.benchmarks" in note for note in plan(planned_points(RECIPE, tiny(tmp_path), {}, 1), tmp_path).notes
    )
