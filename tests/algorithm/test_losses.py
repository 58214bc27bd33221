"""The losses of pairs: against TRL's code, the papers' formulas, closed forms on enumerable spaces, and a real training."""

from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from helpers.games import GOOD, SETTINGS, open_hf, play, some_pairs
from helpers.references import ROWS, SEQUENCES, random_policy, sides_of, some_tokens, trls
from lowmem_spin.algorithm import game, losses
from lowmem_spin.algorithm.losses import LOSSES, dpo, hinge, ipo, ipo_length_normalized, slic, sppo
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.loss_choices import Loss, OwnLoss
from lowmem_spin.config.recipe import Recipe

OPTIONS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.3},
    "ipo": {"tau": 0.4},
    "ipo_length_normalized": {"tau": 0.7},
    "hinge": {"beta": 0.3},
    "slic": {"delta": 4.0, "lam": 0.6},
}


def hard_sppo(chosen: torch.Tensor, rejected: torch.Tensor, ref: torch.Tensor, ref_rejected: torch.Tensor, beta: float):
    won, lost = torch.ones_like(chosen), torch.zeros_like(rejected)
    return sppo(chosen, ref, won, 1 / beta) + sppo(rejected, ref_rejected, lost, 1 / beta)


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "sppo_hard"])
def test_values_and_gradients_are_trls(name: str) -> None:
    tokens, mask, references = some_tokens()
    theirs, ours = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    sides = sides_of((ours * mask).sum(1), references, mask.sum(1))
    found = {
        "sigmoid": lambda: dpo(*sides.logps, 0.3),
        "hinge": lambda: hinge(*sides.logps, 0.3),
        "ipo": lambda: ipo_length_normalized(*sides.logps, *sides.lengths, 0.3),
        "sppo_hard": lambda: hard_sppo(*sides.logps, 0.3),
    }[name]()
    expected = trls(name, 0.3, theirs * mask, mask, references)
    found.mean().backward()
    expected.backward()
    assert found.shape == (ROWS,)
    torch.testing.assert_close(found.mean(), expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    if name == "hinge":
        assert 0 < (found == 0).sum() < ROWS  # both of its branches


def by_hand(name: str, o: dict[str, Decimal], c: Decimal, r: Decimal, rc: Decimal, rr: Decimal, cl: int, rl: int) -> Decimal:
    """One pair in decimals of 28 digits, from the papers' formulas in probabilities."""
    ratio = (c.exp() / rc.exp()) / (r.exp() / rr.exp())
    if name == "dpo":
        return -(ratio ** o["beta"] / (1 + ratio ** o["beta"])).ln()
    if name == "ipo":
        return (ratio.ln() - 1 / (2 * o["tau"])) ** 2
    if name == "ipo_length_normalized":
        per_token = (c.exp() / rc.exp()) ** (Decimal(1) / cl) / (r.exp() / rr.exp()) ** (Decimal(1) / rl)
        return (per_token.ln() - 1 / (2 * o["tau"])) ** 2
    if name == "hinge":
        return max(Decimal(0), 1 - o["beta"] * ratio.ln())
    return max(Decimal(0), o["delta"] - (c.exp() / r.exp()).ln()) - o["lam"] * c


@pytest.mark.parametrize("name", OPTIONS)
def test_what_a_recipe_can_name_is_the_papers_formula(name: str) -> None:
    tokens, mask, references = some_tokens()
    sides = sides_of(tokens.sum(1), references, mask.sum(1))
    options = {key: Decimal(str(value)) for key, value in OPTIONS[name].items()}
    numbers = zip(*(side.tolist() for side in (*sides.logps, *sides.lengths)), strict=True)
    expected = [float(by_hand(name, options, *map(Decimal, row[:4]), *map(int, row[4:]))) for row in numbers]  # type: ignore[arg-type]
    torch.testing.assert_close(LOSSES[name](sides, **OPTIONS[name]), torch.tensor(expected, dtype=torch.float64))


def test_slics_target_has_its_own_place() -> None:
    one = torch.tensor([-2.0])
    torch.testing.assert_close(slic(one, one - 5, one - 1, delta=1.0, lam=0.5), torch.tensor([1.5]))  # -0.5 * -3


def pairs_of(h: torch.Tensor, data: torch.Tensor, opponent: torch.Tensor, tau: float) -> torch.Tensor:
    """IPO's expected loss over all (chosen, rejected) pairs at log-ratios h to the reference."""
    chosen, rejected = (grid.reshape(-1) for grid in torch.meshgrid(*[torch.arange(SEQUENCES)] * 2, indexing="ij"))
    ref = random_policy(11)
    terms = ipo((ref + h)[chosen], (ref + h)[rejected], ref[chosen], ref[rejected], tau)
    return ((data[chosen] + opponent[rejected]).exp() * terms).sum()


def test_ipos_exact_minimiser() -> None:
    data, opponent, tau = random_policy(0), random_policy(1), 0.3
    w = data.exp() / (data.exp() + opponent.exp())
    best = w / (2 * tau * (data.exp() * w).sum())  # h*(y) = w(y) / (2 tau E_d[w]) + const
    step = 1e-4 * torch.eye(SEQUENCES, dtype=torch.float64)

    def slopes(h: torch.Tensor) -> torch.Tensor:
        return torch.stack([pairs_of(h + e, data, opponent, tau) - pairs_of(h - e, data, opponent, tau) for e in step]) / 2e-4

    assert slopes(best + 3.0).abs().max() < 1e-9
    assert slopes(0.9 * best).abs().max() > 1e-2


@pytest.mark.parametrize("tau", [0.1, 0.12, 0.13, 0.2])
def test_ipo_played_to_its_minimum_is_stable_above_an_eighth(tau: float) -> None:
    """alpha 1, history 1: near the data, each exact iteration multiplies the error by 1 - 1 / (4 tau)."""
    data = random_policy(0)
    policy = (data + 1e-5 * random_policy(4)).log_softmax(0)

    def error() -> torch.Tensor:
        return (policy - data) - (policy - data).mean()

    first = error()
    for _ in range(3):
        before, zero = error(), torch.zeros(SEQUENCES, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(pairs_of(zero, data, policy, tau), zero)
        curvature = torch.autograd.functional.hessian(lambda h: pairs_of(h, data, policy, tau), zero)  # noqa: B023
        policy = (policy - torch.linalg.pinv(curvature) @ slope).log_softmax(0)
        torch.testing.assert_close(error(), (1 - 1 / (4 * tau)) * before, rtol=1e-3, atol=1e-9)
    assert (error().abs().max() < first.abs().max()) == (tau > 1 / 8)


@pytest.fixture(scope="module")
def engine(quickstart: Path) -> Any:
    return open_hf(quickstart / "base", per_device_train_batch_size=2, gradient_accumulation_steps=3)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_real_training_starts_at_the_formula_and_goes_down(name: str, engine: Any, tmp_path: Path) -> None:
    """The first step is on every pair, before any update: what it reports is the loss of the base itself."""
    pairs = some_pairs(6)
    sides = [[engine.score(None, [(pair.prompt, side(pair))])[0] for pair in pairs] for side in (chosen_of, rejected_of)]
    options = {key: Decimal(str(value)) for key, value in OPTIONS[name].items()}
    expected = [
        by_hand(name, options, Decimal(c), Decimal(r), Decimal(-9), Decimal(-8), len(p.chosen), len(rejected_of(p)))
        for c, r, p in zip(*sides, pairs, strict=True)
    ]
    settings = {**SETTINGS, "batch_size": 6, "num_train_epochs": 6, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    _, metrics = engine.train(None, pairs, {"name": name, **OPTIONS[name]}, settings, tmp_path, lambda *told: None)
    assert metrics[0]["loss"] == pytest.approx(float(sum(expected)) / 6, rel=2e-4, abs=1e-4)
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.01
    scale = OPTIONS[name].get("beta", 1.0)
    assert metrics[0]["rewards/chosen"] == pytest.approx(scale * (sum(sides[0]) / 6 + 9), rel=1e-3)


def chosen_of(pair: Any) -> list[int]:
    return pair.chosen


def rejected_of(pair: Any) -> list[int]:
    return pair.rejected


def test_every_loss_that_a_recipe_names_is_one_that_can_be_computed() -> None:
    ones = torch.ones(4)
    sides = sides_of(ones, ones, ones)
    built_in = [section() for section in get_args(Loss) if section is not OwnLoss]  # of which test_own_loss.py is
    for section in built_in:
        options = section.model_dump()
        assert LOSSES[options.pop("name")](sides, **options).shape == (2,)
    assert {section.name for section in built_in} == LOSSES.keys() == {*OPTIONS, "sppo"}  # test_sppo.py has sppo's
    assert all(hasattr(losses, name) for name in LOSSES)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("game.loss.name=ipo", "game.loss.beta: ipo has tau and targets instead (beta belongs to dpo, hinge); set the loss as "
         "a whole: --set 'game.loss={name: ipo, tau: 0.1, targets: hard}'"),
        ("game.loss.tau=0.2", "game.loss.tau: dpo has beta instead (tau belongs to ipo, ipo_length_normalized); set "),
        ("game.loss={name: slic, lamda: 1}", "game.loss.lamda: unknown field; did you mean lam?"),
        ("game.loss={name: slic, delta: -1}", "game.loss.delta: -1 cannot be used: write a number above 0"),
        ("game.loss=ipoo", "game.loss.name: 'ipoo' is unknown; known: dpo, ipo, ipo_length_normalized, hinge, slic"),
        ("game.loss.name=[1]", "game.loss.name: [1] is unknown"),
        ("game.loss=5", "game.loss: 5 cannot be used"),
        ("game.loss=ipo_length_normalized", "game.loss.name: ipo_length_normalized works only with game.alpha 0 or 1, or"),
    ],
)  # fmt: skip
def test_losses_that_are_none_get_one_line(override: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(find_recipe("quickstart"), [override])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_refusals_remedy_works_and_a_name_alone_is_enough() -> None:
    def asked(*overrides: str) -> dict[str, Any]:
        return load_recipe(find_recipe("quickstart"), overrides).game.loss.model_dump()

    assert asked("game.loss={name: ipo, tau: 0.1}") == asked("game.loss=ipo") == {"name": "ipo", "tau": 0.1, "targets": "hard"}
    assert asked("game.loss.name=hinge", "game.loss.beta=0.2") == {"name": "hinge", "beta": 0.2}
    assert asked("game.loss={beta: 0.2}") == {"name": "dpo", "beta": 0.2}  # as before there were others
    assert asked() == {"name": "dpo", "beta": 0.1}  # what the keys of every game so far say
    assert asked("game.loss=ipo_length_normalized", "game.alpha=1")["name"] == "ipo_length_normalized"


def stages(loss: str, alpha: float) -> list[game.Stage]:
    content = {"model": {"name_or_path": "m"}, "data": {"path": "d.jsonl"}, "game": {"alpha": alpha, "loss": loss}}
    engine = {"engine": "hf", "dtype": "float32"}
    return list(game.play(Recipe.model_validate(content), game.Inputs("b", "data", engine, engine)))


def test_without_a_reference_nothing_is_scored_for_one_and_alpha_is_in_no_key() -> None:
    assert not [stage for stage in stages("slic", 0.5) if isinstance(stage, game.Score)]
    assert stages("slic", 0.5) == stages("slic", 0.9)
    assert stages("hinge", 0.5) != stages("hinge", 0.9) != stages("dpo", 0.9)


def test_a_game_without_beta_or_reference_is_played_and_reported(quickstart: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "sort: {n}", "completion": "{GOOD["completion"]}"}}\n' for n in range(40)))
    play(tmp_path, quickstart / "base", rows, game={"loss": {"name": "slic", "delta": 2.0}})
    page = (tmp_path / "run" / "report.html").read_text()
    assert "slic, delta 2.0, lam 0.5" in page
    assert "reward margin" in page
    assert load_recipe(tmp_path / "run" / "recipe.yaml").game.loss.model_dump() == {"name": "slic", "delta": 2.0, "lam": 0.5}
