"""`plan --measure`: what is counted while a base is timed, and that a plan's times are then these and no others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from helpers.games import data_rows, opened, tiny
from lowmem_spin.cli.recipe_commands import plan as command
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.grid import SweepPoint
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.runner.planning import measuring
from lowmem_spin.runner.planning.calibration import Measurement, load_calibration, record_measurements
from lowmem_spin.runner.planning.estimates import shapes
from lowmem_spin.runner.planning.plan import PlannedWork, plan

ASKED = ("game.iterations=1", "runtime.generation_batch_size=1000")  # all rows at once
Timed = tuple[Path, dict[str, Measurement]]


def planned(folder: Path, *overrides: str) -> PlannedWork:
    recipe = load_recipe(find_recipe("quickstart"), tiny(folder, *ASKED, *overrides))
    return plan([SweepPoint("one", {}, recipe)], folder)


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Timed:
    folder = tmp_path_factory.mktemp("timed")
    game = opened(folder, *ASKED)
    (folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "LEAST", 0.0)  # a single time will do: no seconds are asserted
        found = measuring.measure_rates(game, Display(Console(quiet=True)), folder / "work")
    game.engines.pool.close()
    record_measurements(folder / "store", *found)
    return folder, {one.kind: one for one in found}


def test_what_is_counted_is_what_plans_count(timed: Timed) -> None:
    folder, found = timed
    rows = data_rows(folder / "store").values()
    prompts, chosen = (sum(len(row[side]) for row in rows) for side in ("prompt", "chosen"))
    assert found.keys() == {"generate", "prefill", "score", "score alone", "train"}
    assert found["prefill"].tokens == prompts and found["prefill"].rows == found["generate"].rows == len(rows)
    assert found["score alone"].tokens == prompts + chosen
    assert found["score"].tokens == prompts + chosen + found["generate"].tokens  # each prompt once
    assert (found["score"].rows, found["score alone"].rows) == (2 * len(rows), len(rows))
    assert found["train"].tokens / found["train"].rows == pytest.approx(found["score"].tokens / len(rows), abs=0.5)
    assert all(one.seconds > 0 for one in found.values())
    assert 1 < found["generate"].tokens / found["generate"].rows <= 8  # max_new_tokens


def test_nothing_but_the_rows_and_the_rates_are_kept(timed: Timed) -> None:
    kept = {path.name for path in (timed[0] / "store").iterdir()}
    assert not kept & {"completions", "logps", "adapters", "work"} and {"data", "bench.json"} <= kept
    assert not (timed[0] / "run").exists()


def test_a_plans_times_are_the_measured_ones(timed: Timed) -> None:
    folder, found = timed
    made = planned(folder)
    assert made.exact and all(line.measured for line in made.lines)
    rows = data_rows(folder / "store").values()
    prompt, chosen = (float(np.mean([len(row[side]) for row in rows])) for side in ("prompt", "chosen"))
    answer = found["generate"].tokens / found["generate"].rows  # and not max_new_tokens

    def expected(kind: str, tokens: float) -> float:
        return round(tokens) * found[kind].seconds / found[kind].tokens

    for line in made.lines:
        count, side = line.to_do, line.unit.side
        if side == "completions":
            assert line.seconds == pytest.approx(count * found["generate"].seconds / found["generate"].rows, rel=0.02)
        elif side == "pairs":
            assert line.seconds == pytest.approx(expected("train", count * (prompt + chosen + answer)))
        else:
            shared, kind = (2, "score") if line.unit.kind == "score" else (1, "score alone")
            said = chosen if side == "chosen" else answer
            assert line.seconds == pytest.approx(expected(kind, count * (prompt / shared + said)))


def test_rates_of_other_lengths_are_not_taken_as_they_are(timed: Timed) -> None:
    folder, found = timed
    longer = planned(folder, "generation.max_new_tokens=16")
    known, here = load_calibration(folder / "store"), found["generate"]
    assert known.of_shapes("generate", here.device, here.engine, shapes(planned(folder).found)) == here
    assert known.of_shapes("generate", here.device, here.engine, shapes(longer.found)) is None
    line = next(line for line in longer.lines if line.unit.side == "completions")
    assert line.measured  # by its FLOP, of answers as long as they may be
    assert line.seconds == pytest.approx(line.to_do * 16 * here.seconds / here.tokens)


@pytest.mark.parametrize(("tokens", "together"), [(1000, 10), (8000, 16), (100, 4)])  # 16 a step, and 4 by the recipe
def test_a_training_is_timed_on_as_many_pairs_as_go_through_the_model_at_once(tokens: int, together: int) -> None:
    class Fake:
        def train(self, init: Any, pairs: Any, loss: Any, settings: dict[str, Any], work: Path, advance: Any) -> None:
            self.batch = settings["batch_size"]
            for _ in range(len(pairs) // self.batch):
                advance(self.batch)

    learner: Any = Fake()
    recipe = load_recipe(find_recipe("gemma2b_alpha"))
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"tokens_per_batch": tokens})})
    pairs = [(range(40), range(30), range(30))] * 8  # of 100 tokens
    measuring._training(learner, None, pairs, {"batch_size": 16}, recipe, Path())
    assert learner.batch == together


def test_another_card_cannot_be_timed_here() -> None:
    with pytest.raises(InputError, match=r"--measure: it times this machine, and --gpu 4090 plans for another"):
        command("quickstart", gpu="4090", measured=True)
