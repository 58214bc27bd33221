"""What a plan comes to: its first line, in --json too, whether it fits a card, and whether a run could begin here."""

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from helpers.commands import call
from lowmem_spin.cli.main import doctor as examine
from lowmem_spin.common.display import Display
from lowmem_spin.config.grid import planned_points
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.engines import doctor, machine
from lowmem_spin.engines.memory import peak, planned_shape, vllm_memory
from lowmem_spin.runner.open import SharedResources, open_game
from lowmem_spin.runner.planning import calibration
from lowmem_spin.runner.planning.plan import PlannedWork, plan
from lowmem_spin.runner.planning.total import CARDS


def planned(folder: Path, name: str, *overrides: str, gpu: str | None = None) -> PlannedWork:
    path = find_recipe(name)
    points = planned_points(path, [f"output.store={folder}", f"output.dir={folder / 'run'}", *overrides], {}, 1)
    return plan(points, path.parent, gpu)


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_capability", lambda: None)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_every_card_has_a_name_and_a_memory() -> None:
    assert CARDS.keys() == calibration.PEAK.keys()


ALONE = ["evaluation.path=null", "evaluation.metric=none"]


@pytest.mark.parametrize("overrides", [[], ALONE, [*ALONE, "data.path=few.jsonl"]])
def test_held_out_rows_are_counted_before_the_data_is_prepared(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as the game measures on: of a file of their own all, else what is asked for, or a tenth of few."""
    rows = (find_recipe("quickstart").parent / "quickstart" / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(rows[:200]))
    monkeypatch.chdir(tmp_path)
    pairs = ["game.pairs=100", "game.iterations=1", *overrides]
    before = planned(tmp_path, "quickstart", *pairs)
    path = find_recipe("quickstart")
    recipe = load_recipe(path, [*pairs, f"output.store={tmp_path}", f"output.dir={tmp_path / 'run'}"])
    game = open_game(recipe, path.parent, Display(Console(quiet=True)), SharedResources())
    after = planned(tmp_path, "quickstart", *pairs)
    assert not before.exact and after.exact
    assert before.totals()["evaluate"]["shared"] == after.totals()["evaluate"]["shared"]
    chosen = sum(line.unit.side == "chosen" for line in after.lines)
    assert chosen and {line.to_do for line in before.lines if line.unit.side == "chosen"} >= {len(game.rows.held.scored)}
    assert not any("assumed" in note for note in before.notes)


def test_a_plan_for_a_card_begins_with_hours_and_memory(tmp_path: Path) -> None:
    made = planned(tmp_path, "gemma2b_taste", gpu="4090")
    total, shape = made.total(), planned_shape(made.found.model)
    assert shape is not None
    assert total.seconds == pytest.approx(sum(line.seconds for line in made.lines)) and 1800 < total.seconds < 7200
    most = peak(vllm_memory(made.found.recipe, shape, "bfloat16"))
    assert total.memory == pytest.approx(most)
    minutes = round(total.seconds / 60)
    assert total.line() == f"Total: about {minutes} min on an RTX 4090, peak {most / 1e9:.1f} of 24 GB: fits"
    words = ["--gpu", "4090", "--set", f"output.store={tmp_path}", "--set", f"output.dir={tmp_path / 'run'}"]
    said = call("plan", "gemma2b_taste", *words).stdout
    assert said.startswith(total.line() + "\n") and said.endswith("Times are computed.\n"), "another card is not timed here"
    told = json.loads(call("plan", "gemma2b_taste", *words, "--json").stdout)["total"]
    assert told == {
        **{"seconds": round(total.seconds, 1), "without": [], "on": "4090", "fits": True},
        **{"gpu_memory_bytes": round(most, 1), "gpu_limit_bytes": 24e9},
    }


def test_a_judges_time_is_not_known_and_what_does_not_fit_is_said(tmp_path: Path) -> None:
    made = planned(tmp_path, "mistral7b_sppo", gpu="T4")
    assert made.totals()["judge"]["seconds"] is None and made.totals()["evaluate"]["seconds"] > 0
    assert made.record()["total"]["without"] == ["judge"] and made.record()["total"]["fits"] is False
    assert 1 < made.total().seconds / 3600 < 1000, "what is known of the time is said"
    assert "on a T4, and the judge on top, peak 22.9 of 15 GB: does not fit" in made.total().line()
    advised = ["generation.engine=hf", "game.oracle.batch_size=14"]  # by the plan's lines
    assert not planned(tmp_path, "mistral7b_sppo", advised[0], gpu="T4").total().fits, "sixteen pairs beside the base"
    smaller = planned(tmp_path, "mistral7b_sppo", *advised, gpu="T4")
    assert smaller.total().fits and not any("the unquantized base is measured" in note for note in smaller.notes)


def test_without_a_gpu_a_plan_is_for_this_cpu(tmp_path: Path) -> None:
    small, large = planned(tmp_path, "quickstart"), planned(tmp_path, "gemma2b_taste")
    assert small.total().line().startswith("No GPU here: about ")
    assert large.total().line().endswith(f"{large.total().seconds / 3600:,.0f} h on this CPU. For a card: --gpu 4090")
    asked = planned(tmp_path, "quickstart", "runtime.device=cpu").total()
    assert asked.line().startswith("Total: about ") and asked.line().endswith("on this CPU")


def test_what_no_measurement_stands_behind_may_be_far_off_and_says_so(tmp_path: Path) -> None:
    said = call("plan", "quickstart", "--set", f"output.store={tmp_path}", "--set", f"output.dir={tmp_path / 'run'}").stdout
    last = "Times are computed, and may be several times too long or too short; --measure times this machine.\n"
    assert said.endswith(last)


def test_whether_a_recipe_can_be_played_here_is_answered(tmp_path: Path) -> None:
    small, large = planned(tmp_path, "quickstart"), planned(tmp_path, "gemma2b_taste")
    assert small.total().answer("quickstart", small.missing) == f"quickstart can run here: {small.total().time}"
    answer = large.total().answer("gemma2b_taste", large.missing)
    assert answer.startswith("gemma2b_taste cannot run here yet: (1) no HF_TOKEN, and google/gemma-2b is gated, (2) ")
    assert answer.endswith(f") no GPU: {large.total().time}") and large.total().seconds > 3600 * 24
    needs_gpu = planned(tmp_path, "quickstart", "training.optim=paged_adamw_8bit")
    assert "(1) training.optim: 'paged_adamw_8bit' needs a GPU" in needs_gpu.total().answer("quickstart", needs_gpu.missing)
    lacks = planned(tmp_path, "quickstart", "generation.engine=vllm")
    assert lacks.missing == [] or lacks.missing == ["vllm is not installed"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("somebody's own")
    taken = planned(tmp_path, "quickstart")
    assert taken.missing and f"a run is refused as it is: {taken.missing[0]}" in taken.notes
    assert "quickstart cannot run here yet: (1) " in taken.total().answer("quickstart", taken.missing)


def test_nothing_left_is_said(tmp_path: Path) -> None:
    total = planned(tmp_path, "quickstart", gpu="3090").total()
    done = type(total)(0, 0.0, False, math.nan, total.machine, False, "3090")
    assert done.line() == "Total: nothing left to compute on an RTX 3090, memory not known"


def test_only_several_games_have_something_to_reuse(tmp_path: Path) -> None:
    words = ["quickstart", "--set", f"output.store={tmp_path}", "--set", f"output.dir={tmp_path / 'run'}"]
    one, two = call("plan", *words).stdout, call("plan", *words, "--alpha", "0.5,1").stdout
    assert "reuse" not in one and "saved" not in one and "reuse" in two and "saved" in two
    assert "By stage, without held-out evaluation and plain SFT" in one
    base = next(line for line in one.splitlines() if line.startswith("frozen base"))
    assert base.split()[2:] == ["<0.01"] * 4  # GB: it has 0.8 MB, which is not nothing


def test_doctor_answers_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the engines' self-tests, which take a minute."""
    monkeypatch.setattr(doctor, "self_tests", lambda names, place: iter(()))
    places = [f"output.store={tmp_path}", f"output.dir={tmp_path / 'run'}"]
    examine("quickstart", store=tmp_path, overrides=places)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.split(maxsplit=1)[0] == "recipe" and "quickstart can run here: about " in first
    assert any("to test the engines: a minute without a GPU" in line for line in rest)
    examine("gemma2b_taste", store=tmp_path, overrides=places)
    assert "gemma2b_taste cannot run here yet: (1) no HF_TOKEN" in capsys.readouterr().out.splitlines()[0]


def test_work_that_is_done_in_a_moment_is_not_said_to_take_none(tmp_path: Path) -> None:
    words = ["plan", "quickstart", "--gpu", "H200", "--set", "game.pairs=8", "--set", "game.iterations=1"]
    result = call(*words, "--set", f"output.store={tmp_path}", "--set", f"output.dir={tmp_path / 'run'}")
    assert result.stdout.startswith("Total: less than a second on an H200")
    rows = [line.split() for line in result.stdout.splitlines() if line.rstrip().endswith(" s")]
    assert len(rows) > 6 and all(row[-3:] == ["<", "1", "s"] for row in rows)
    record = json.loads(call(*words, "--set", f"output.store={tmp_path}", "--json").stdout)
    assert record["total"]["seconds"] > 0 and all(kind["seconds"] > 0 for kind in record["totals"].values() if kind["to_do"])
