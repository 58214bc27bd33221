"""INPO, Nash-MD and IPO-MD as the recipes have them: the papers' losses and steps, and the equilibria that exact play ends in.

The game is P_tau(pi beats rho) = P(pi beats rho) - tau KL(pi || base) + tau KL(rho || base), and its equilibrium is the one
policy that no other beats. Here it is solved by scipy, without anything of the package.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import fsolve
from scipy.special import log_softmax, logsumexp

from lowmem_spin.algorithm.exact import Space, lengthened, play_exactly
from lowmem_spin.algorithm.game import play
from lowmem_spin.algorithm.losses import LOSSES, Sides
from lowmem_spin.algorithm.preferences import best_and_worst, win_rates
from lowmem_spin.algorithm.references import REFERENCES
from lowmem_spin.algorithm.stages import Inputs, Train
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.recipe import Recipe

BASE = np.log([0.55, 0.15, 0.2, 0.1])  # likeliest is what loses to all others
WINS = np.array([[0.5, 0.2, 0.1, 0.25], [0.8, 0.5, 0.85, 0.3], [0.9, 0.15, 0.5, 0.75], [0.75, 0.7, 0.25, 0.5]])  # 1 > 2 > 3 > 1
SPACE = Space(torch.tensor(BASE), torch.tensor(BASE), torch.tensor(WINS))
INPO, NASH_MD = "quickstart_inpo", "quickstart_nash_md"
IPO_MD = ("game.alpha=0", "game.mixture_alpha=0.8")  # as the head of NASH_MD's file has it


@cache
def shipped(name: str, *overrides: str) -> Recipe:
    return load_recipe(find_recipe(name), list(overrides))


def played(recipe: Recipe, iterations: int) -> list[np.ndarray]:
    """The base and every iterate, log-probs (4,)."""
    return [table.numpy() for table in play_exactly(lengthened(recipe, iterations), SPACE)]


def mixed(policy: np.ndarray, alpha: float) -> np.ndarray:
    return log_softmax(alpha * policy + (1 - alpha) * BASE)


def best_response(opponent: np.ndarray, tau: float) -> np.ndarray:
    """What maximises P(pi beats opponent) - tau KL(pi || base)."""
    return log_softmax(BASE + WINS @ np.exp(opponent) / tau)


def gain(policy: np.ndarray, tau: float) -> float:
    """How much more the best response gets than the policy itself does, against the policy: 0 at the equilibrium alone."""
    most = tau * logsumexp(BASE + WINS @ np.exp(policy) / tau)
    own = np.exp(policy) @ WINS @ np.exp(policy) - tau * np.exp(policy) @ (policy - BASE)
    return float(most - own)


def equilibrium(tau: float) -> np.ndarray:
    """Log-probs (4,), by Newton's method, followed from where the base is the answer down to tau."""
    policy = BASE
    for strength in np.geomspace(100, tau, 80):
        found = fsolve(lambda logits, s=strength: logits - best_response(log_softmax(logits), s), policy, xtol=1e-13)
        policy = log_softmax(found)
        assert np.abs(policy - best_response(policy, strength)).max() < 1e-10
    assert gain(policy, tau) < 1e-12 < 1e-3 < gain(BASE, tau)
    return policy


def test_the_loss_is_inpos() -> None:
    """Equation by equation in floats: the reference's exponents, the margin, and the mean over whom the oracle prefers.

    The square of what is aimed at is a constant of the pair: P (1 - P) / eta^2 of it is left out.
    """
    recipe = shipped(INPO)
    eta, tau = 0.5, 0.1  # as the head of the file has them
    inputs = Inputs("base", "data", {}, {}, {"oracle": "exact"})
    stage = [stage for stage in play(recipe, inputs) if isinstance(stage, Train)][1]
    options = {name: value for name, value in stage.loss.items() if name != "name"}
    for seed in range(20):
        numbers = np.random.default_rng(seed)
        policy, before, base = numbers.normal(-5, 2, (3, 2))  # log-probs of two answers, any two
        prefers = numbers.uniform()  # how likely the first is preferred

        def h(y: int, other: int, policy: Any = policy, before: Any = before, base: Any = base) -> float:
            to_base, to_before = base[y] - base[other], before[y] - before[other]
            return policy[y] - policy[other] - tau / eta * to_base - (eta - tau) / eta * to_before

        expected = prefers * (h(0, 1) - 1 / (2 * eta)) ** 2 + (1 - prefers) * (h(1, 0) - 1 / (2 * eta)) ** 2

        rates = win_rates(np.array([[0.5, prefers], [1 - prefers, 0.5]]), recipe.game.win_rates)
        chosen, rejected = best_and_worst(rates)
        reference = REFERENCES[stage.combine](list(stage.reference.values()), [before, base])
        one = {"chosen": chosen, "rejected": rejected}
        ends = {name: torch.tensor([policy[y]]) for name, y in one.items()}
        ends |= {f"ref_{name}": torch.tensor([reference[y]]) for name, y in one.items()}
        ends |= {f"{name}_win_rates": torch.tensor([rates[y]]) for name, y in one.items()}
        found = LOSSES[stage.loss["name"]](
            Sides(**ends, chosen_lengths=torch.ones(1), rejected_lengths=torch.ones(1)), **options
        )
        assert found.item() + prefers * (1 - prefers) / eta**2 == pytest.approx(expected, rel=1e-12)


def test_inpo_ends_in_the_equilibrium() -> None:
    """Its last iterate, not an average; each step is mirror descent's."""
    iterates, (eta, tau) = played(shipped(INPO), 60), (0.5, 0.1)
    step = log_softmax((1 - tau / eta) * iterates[3] + tau / eta * BASE + WINS @ np.exp(iterates[3]) / eta)
    np.testing.assert_allclose(iterates[4], step, atol=1e-9)
    off = [np.abs(iterate - equilibrium(tau)).max() for iterate in iterates[::20]]
    assert off[3] < 1e-4 < off[0]
    assert off[3] < 0.1 * off[2] < 0.01 * off[1]  # geometrically, and not yet at the end


def test_with_sure_winners_it_ends_elsewhere() -> None:
    """An oracle that is not sure has to be believed: a toss by the larger probability is another game."""
    hard = played(shipped(INPO, "game.loss.targets=hard"), 30)[-1]
    assert np.abs(hard - equilibrium(0.1)).max() > 0.5


def test_more_samples_end_nearby_but_not_there() -> None:
    """The best against the worst of four are no two draws of the policy."""
    far = np.abs(played(shipped(INPO, "game.samples=4"), 60)[-1] - equilibrium(0.1)).max()
    assert 0.01 < far < 1


def test_nash_mds_mixture_ends_in_an_equilibrium() -> None:
    """A step is to exp(eta P(beats the mixture)) times the mixture; where it ends, the mixture is the equilibrium of
    tau / alpha and the iterate the best response to it: near the equilibrium of tau, the nearer the smaller the steps."""
    recipe = shipped(NASH_MD)
    (eta, alpha), tau = (1 / 0.5, 0.8), 0.1  # the paper's eta is the inverse of INPO's
    iterates = played(recipe, 60)
    opponent = mixed(iterates[3], 1 - eta * tau)
    np.testing.assert_allclose(iterates[4], log_softmax(opponent + eta * WINS @ np.exp(opponent)), atol=1e-9)
    np.testing.assert_allclose(mixed(iterates[-1], alpha), equilibrium(tau / alpha), atol=1e-5)
    np.testing.assert_allclose(iterates[-1], best_response(equilibrium(tau / alpha), tau), atol=1e-4)

    smaller = played(shipped(NASH_MD, "game.alpha=0.9", "game.loss={name: ipo, tau: 1, targets: soft}"), 100)[-1]
    apart = [np.abs(end - equilibrium(tau)).max() for end in (iterates[-1], smaller)]
    assert 1e-2 < apart[1] < 0.6 * apart[0]


def test_ipo_mds_mixture_ends_in_the_equilibrium_of_its_paper() -> None:
    """With beta 0.2, both answers from the mixture and held to the base alone (arXiv 2403.08635, proposition 5.2)."""
    tau, beta = 0.5, 0.2
    iterates = played(shipped(NASH_MD, *IPO_MD), 60)
    np.testing.assert_allclose(iterates[4], best_response(mixed(iterates[3], 1 - beta), tau), atol=1e-9)
    np.testing.assert_allclose(mixed(iterates[-1], 1 - beta), equilibrium(tau / (1 - beta)), atol=1e-9)
    own = played(shipped(NASH_MD, "game.alpha=0", "game.mixture_alpha=1"), 60)[-1]  # beta 0, which is online IPO
    np.testing.assert_allclose(own, equilibrium(tau), atol=1e-9)


@pytest.mark.parametrize("options", [(), IPO_MD], ids=["Nash-MD", "IPO-MD"])
def test_an_amortised_mixture_is_the_same_game(options: tuple[str, ...]) -> None:
    one, other = (played(shipped(NASH_MD, *options, f"game.sampler={name}"), 4)[-1] for name in ("rejection", "gflownet"))
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_the_mixture_has_an_alpha_of_its_own_in_the_keys() -> None:
    inputs = Inputs("base", "data", {"engine": "hf"}, {"engine": "hf"}, {"oracle": "exact"})

    def keys(*overrides: str) -> list[str]:
        return [stage.policy for stage in play(shipped(NASH_MD, *overrides), inputs) if isinstance(stage, Train)]

    plain = keys()
    assert keys("game.mixture_alpha=0.8") == plain
    other = keys("game.mixture_alpha=0.7")
    assert other[0] == plain[0] and not set(other[1:]) & set(plain)  # at t = 0 the base answers
    assert keys("game.sampler=none") == [
        stage.policy for stage in play(shipped(INPO), inputs) if isinstance(stage, Train)
    ]  # the recipes differ in nothing else
    assert math.isclose(shipped(INPO).game.alpha, 1 - 0.1 / 0.5)
