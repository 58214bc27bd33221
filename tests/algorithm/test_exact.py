"""Exact play against the closed forms of one iteration, of where games end, and of how fast they get there."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from helpers.commands import call
from lowmem_spin.algorithm.exact import Space, dpo_minimum, lengthened, minimum, play_exactly, six_answers
from lowmem_spin.algorithm.losses import dpo
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.recipe import Recipe

SPACE = six_answers()


def recipe(iterations: int = 3, **game: Any) -> Recipe:
    content = load_recipe(find_recipe("quickstart")).model_dump(mode="json")
    content["game"] |= {"iterations": iterations, "pairs": 100, **game}
    return Recipe.model_validate(content)


def played(asked: Recipe, space: Space = SPACE) -> list[torch.Tensor]:
    return list(play_exactly(asked, space))


def test_the_logistic_loss_has_its_minimum_where_it_is_said_to_be() -> None:
    """Newton's steps on the expected loss itself, pair by pair."""
    opponents, reference = SPACE.base, (SPACE.base + SPACE.data) / 3  # not normalised
    pairs = (SPACE.data[:, None] + opponents[None, :]).exp()

    def loss(logits: torch.Tensor) -> torch.Tensor:
        terms = dpo(logits[:, None], logits[None, :], reference[:, None], reference[None, :], 1.5)
        return (pairs * terms).sum()

    found = minimum(loss, torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(found, dpo_minimum(reference, SPACE.data, opponents, 1.5), atol=1e-8, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.95, 1.0])
def test_a_game_with_history_1_ends_at_its_fixed_point_at_its_rate(alpha: float) -> None:
    """The error of an iterate's log-probs is multiplied by alpha - 1 / beta."""
    beta = 0.9
    share = 1 / (1 + beta * (1 - alpha))
    end = (share * SPACE.data + (1 - share) * SPACE.base).log_softmax(0)
    iterates = played(recipe(200, alpha=alpha, history=1, loss={"name": "dpo", "beta": beta}))
    if abs(alpha - 1 / beta) < 1:
        torch.testing.assert_close(iterates[-1], end, atol=1e-6, rtol=0)
    errors = [one - end - (one - end).mean() for one in iterates[:6]]
    for before, after in itertools.pairwise(errors):
        torch.testing.assert_close(after, (alpha - 1 / beta) * before, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_exact_play_swings_away_where_theory_says_so(alpha: float) -> None:
    """Stable if and only if beta > 1 / (1 + alpha)."""
    for beta, stable in ((1 / (1 + alpha) + 0.05, True), (1 / (1 + alpha) - 0.05, False)):
        iterates = played(recipe(60, alpha=alpha, history=1, loss={"name": "dpo", "beta": beta}))
        steps = [(b - a).abs().max() for a, b in itertools.pairwise(iterates)]
        assert (steps[-1] < steps[2]) == stable


def test_opponents_are_the_mixture_of_the_last_iterates() -> None:
    base, first, second, third = played(recipe(3, alpha=0.7, history=2, loss={"name": "dpo", "beta": 1.0}))
    for previous, before, after in ((first, base, second), (second, first, third)):
        opponents = ((previous.exp() + before.exp()) / 2).log()
        expected = (0.7 * previous + 0.3 * base + SPACE.data - opponents).log_softmax(0)
        torch.testing.assert_close(after, expected)


def test_shares_of_opponents_count() -> None:
    base, first, second = played(recipe(2, alpha=1.0, history=2, weights=[3, 1], loss={"name": "dpo", "beta": 1.0}))
    opponents = (0.75 * first.exp() + 0.25 * base.exp()).log()
    torch.testing.assert_close(second, (first + SPACE.data - opponents).log_softmax(0))


def test_ipo_lands_on_its_closed_form() -> None:
    """h(y) = w(y) / (2 tau E_d[w]) + a constant, w = data / (data + opponents)."""
    base, first = played(recipe(1, loss={"name": "ipo", "tau": 0.4}))
    share = SPACE.data.exp() / (SPACE.data.exp() + base.exp())
    pull = share / (2 * 0.4 * (SPACE.data.exp() * share).sum())
    torch.testing.assert_close(first, (base + pull).log_softmax(0), atol=1e-9, rtol=0)


HEAD_TO_HEAD = {"name": "sppo", "eta": 2.0, "targets": "head_to_head"}


@pytest.mark.parametrize(
    "options", [{"name": "sppo", "eta": 2.0}, HEAD_TO_HEAD, {"name": "ipo", "tau": 1.0}], ids=["sppo", "head to head", "ipo"]
)
def test_judged_samples_are_all_that_can_be_drawn(options: dict[str, Any]) -> None:
    """Three samples, each of the 216 ordered draws by itself, the best against the worst."""
    base, first = played(recipe(1, algorithm="sppo", alpha=1.0, history=1, samples=3, oracle="function", loss=options))

    def loss(logits: torch.Tensor) -> torch.Tensor:
        ratios, total = logits.log_softmax(0) - base, torch.zeros((), dtype=torch.float64)
        for drawn in itertools.product(range(6), repeat=3):
            rates = SPACE.preferences[list(drawn)][:, list(drawn)].mean(1)
            level = [round(float(rate), 9) for rate in rates]
            best, worst = level.index(max(level)), 2 - level[::-1].index(min(level))
            if options == HEAD_TO_HEAD:
                wins = SPACE.preferences[drawn[best], drawn[worst]] - 0.5
                term = ((ratios[drawn[best]] - 2 * wins) ** 2 + (ratios[drawn[worst]] + 2 * wins) ** 2) / 2
            elif options["name"] == "sppo":
                term = sum((ratios[drawn[one]] - 2 * (rates[one] - 0.5)) ** 2 for one in (best, worst)) / 2
            else:
                term = (ratios[drawn[best]] - ratios[drawn[worst]] - 1 / 2) ** 2
            total = total + base[list(drawn)].sum().exp() * term
        return total

    slopes = [torch.func.grad(loss)(where).abs().max() for where in (base, first)]
    assert slopes[0] > 1e-3  # the base is not the minimum
    assert slopes[1] < 1e-9


def test_what_a_recipe_lists_goes_on_with_its_last_number() -> None:
    asked = recipe(3, pairs=[1, 2, 3], loss={"name": "dpo", "beta": [0.1, 0.1, 5.0]})
    longer = lengthened(asked, 5)
    assert (longer.game.iterations, longer.game.pairs) == (5, [1, 2, 3, 3, 3])
    assert longer.game.loss.model_dump()["beta"] == [0.1, 0.1, 5.0, 5.0, 5.0]
    assert lengthened(asked, 2).game.pairs == [1, 2]


def test_the_command_says_where_each_game_leads(tmp_path: Path) -> None:
    picture = tmp_path / "t.png"
    options = ["--alpha", "0.5,1", "--history", "1", "--set", "game.loss.beta=0.6", "--picture", picture]
    done = call("theory", "quickstart", *options)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "alpha 0.5, history 1: does not settle" in words
    assert "alpha 1, history 1: settles: steps shrink to 0.67 of the one before" in words  # 1 / 0.6 - 1
    assert imread(picture).shape[0] > 300 and "mathdefault" not in picture.with_suffix(".svg").read_text()
    far = " ".join(call("theory", "quickstart", "--picture", picture).stdout.split())  # with a beta of 0.1
    verdict = "the recipe: diverges: by iterate 2 some answer has practically no probability; a real training stops earlier; "
    assert verdict + "try a larger game.loss.beta" in far
    online = ["game.algorithm=sppo", "game.samples=2", "game.oracle={name: function, function: mine.py:f}"]
    never = call("theory", "quickstart", *(word for one in online for word in ("--set", one)), "--picture", picture).stdout
    assert "the recipe: diverges at once: after the first training some answer has practically no" in " ".join(never.split())
    gif = call("theory", "quickstart", "--picture", tmp_path / "t.gif")
    assert gif.returncode == 2 and gif.stderr.strip().endswith("t.gif' must end in .png")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["game.loss=slic"], "game.loss.name: exact play cannot handle slic, which many minimise; use dpo, ipo, "),
        (
            ["game.loss={name: function, function: mine.py:loss}"],
            "game.loss.name: exact play cannot handle a loss of your own, whose minimum it does not know; use dpo",
        ),
        (["game.algorithm=offline"], "game.algorithm: exact play has no offline"),
        (
            ["game.opponents={function: mine.py:f}"],
            "game.opponents: exact play calls no functions of your own; leave yours out",
        ),
        (["game.reference={name: function, function: mine.py:f}"], "game.reference: exact play calls no functions of your own"),
    ],
)
def test_what_exact_play_has_not_is_one_line(options: list[str], line: str, tmp_path: Path) -> None:
    done = call("theory", "quickstart", *(word for one in options for word in ("--set", one)), "--picture", tmp_path / "t.png")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {line}")
    assert list(tmp_path.iterdir()) == []


def test_of_a_family_what_can_be_played_is_and_each_kind_by_its_own_aim(tmp_path: Path) -> None:
    """The shipped zoo has games that learn from the data, games that are judged, and losses with more than one minimum."""
    done = call("theory", "zoo", "--iterations", "1", "--picture", tmp_path / "t.png")
    assert done.returncode == 0, done.stderr
    by_data, by_judge = done.stdout.split("win-rate of the best")
    assert re.search(r"^alpha-SPIN +0\.839", by_data, re.MULTILINE) and "RSPO" not in by_data
    assert "RSPO" in by_judge and "SPIN:" not in by_judge
    left_out = [line for line in done.stdout.splitlines() if line.startswith("left out: ")]
    assert [line.split(": ")[1] for line in left_out] == ["hinge", "SLiC"]
    assert left_out[0].endswith("exact play cannot handle hinge, which many minimise")
    assert {path.name for path in tmp_path.glob("*.png")} == {"t.png", "t_judged.png"}
    only = call("theory", "quickstart", "--grid", "game.loss=hinge,slic", "--picture", tmp_path / "none.png")
    assert only.returncode == 2 and "exact play cannot handle slic" in only.stderr
