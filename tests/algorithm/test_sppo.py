"""SPPO's and RSPO's terms: expected gradients by enumeration, and the play that they make of rock, paper, scissors."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from helpers.references import ROWS, SEQUENCES, random_policy, sides_of, some_tokens, trls
from lowmem_spin.algorithm.losses import LOSSES, PENALTIES, ipo, rspo_penalties, rspo_penalty, sppo
from lowmem_spin.algorithm.preferences import best_and_worst, compared, win_rates

Tensor = torch.Tensor
RPS = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]], dtype=torch.float64)  # row beats column
UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64).log()


def preferences() -> Tensor:
    """P(row beats column) between all sequences, of no score whatever."""
    raw = torch.rand(SEQUENCES, SEQUENCES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.tril(raw, -1) + torch.triu(1 - raw.T, 1) + 0.5 * torch.eye(SEQUENCES)


def gradient(value: Callable[[Tensor], Tensor], policy: Tensor) -> Tensor:
    """Of a function of log-probs, by the logits, at a policy."""
    logits = policy.clone().requires_grad_()
    value(logits.log_softmax(0)).backward()
    assert logits.grad is not None
    return logits.grad


def test_hard_targets_are_half_of_trls_loss() -> None:
    """Whatever was judged: TRL's `sppo_hard` is the sum of a pair's two squares, SPPO's code and ours their mean."""
    tokens, mask, references = some_tokens()
    ours, theirs = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    judged = torch.rand(2 * ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).chunk(2)
    sides = sides_of((ours * mask).sum(1), references, mask.sum(1), judged)
    hard = LOSSES["sppo"](sides, eta=1 / 0.3, targets="hard").mean()
    expected = trls("sppo_hard", 0.3, theirs * mask, mask, references) / 2
    hard.backward()
    expected.backward()
    torch.testing.assert_close(hard, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (LOSSES["sppo"](sides, eta=1 / 0.3, targets="soft").mean() - hard).abs() > 0.1


def test_a_step_at_the_reference_climbs_the_win_rate_against_it() -> None:
    """grad E_pi_t[sppo] at pi_t is -2 eta grad P(pi > pi_t)."""
    wins, policy, eta = preferences(), random_policy(0), 7.0
    step = gradient(lambda logps: (policy.exp() * sppo(logps, policy, wins @ policy.exp(), eta)).sum(), policy)
    climb = gradient(lambda logps: logps.exp() @ wins @ policy.exp(), policy)
    torch.testing.assert_close(step, -2 * eta * climb)
    assert climb.abs().max() > 0.01


def smoothed(ratio: Tensor) -> Tensor:
    """The f of chi2_smoothed."""
    return (1 + ratio).log() + 1 / (1 + ratio)


# What the expected gradients are said to be the gradients of, exactly.
EXACT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "reverse_kl": lambda pi, mu: 2 * (pi.exp() * (pi - mu)).sum(),
    "forward_kl": lambda pi, mu: (mu.exp() * (mu - pi)).sum(),
    "chi2": lambda pi, mu: ((pi.exp() - mu.exp()) ** 2 / mu.exp()).sum() / 2,
    "chi2_smoothed": lambda pi, mu: (mu.exp() * smoothed((pi - mu).exp())).sum(),
    "reverse_kl_no_entropy": lambda pi, mu: -(pi.exp() * mu).sum(),
    "entropy": lambda pi, mu: 2 * (pi.exp() * pi).sum(),
}


@pytest.mark.parametrize("kind", PENALTIES)
def test_penalties_have_the_gradients_of_their_divergences(kind: str) -> None:
    """With y from the policy itself; from the last iterate only when corrected."""
    policy, base, sampler = random_policy(0), random_policy(1), random_policy(2)
    exact = gradient(lambda logps: EXACT[kind](logps, base), policy)

    def expected(drawn: Tensor, importance: Tensor | None) -> Tensor:
        return gradient(lambda logps: (drawn.exp() * rspo_penalty(kind, logps, base, None, importance)).sum(), policy)

    torch.testing.assert_close(expected(policy, None), exact)
    torch.testing.assert_close(expected(sampler, sampler), exact)
    assert (expected(sampler, None) - exact).abs().max() > 0.1 * exact.abs().max()


def test_penalties_add_up() -> None:
    policy, base, sampler = random_policy(0), random_policy(1), random_policy(2)
    weights = {"forward_kl": 0.1, "reverse_kl": 0.5}
    exact = gradient(lambda logps: sum((w * EXACT[kind](logps, base) for kind, w in weights.items()), torch.zeros(())), policy)
    corrected = lambda logps: (sampler.exp() * rspo_penalties(weights, logps, base, None, sampler)).sum()  # noqa: E731
    torch.testing.assert_close(gradient(corrected, policy), exact)
    assert rspo_penalties({}, policy, base).equal(torch.zeros_like(policy))
    with pytest.raises(ValueError, match="'kl' is no penalty; known: reverse_kl, forward_kl"):
        rspo_penalties({"kl": 1.0}, policy, base)


# Each as RSPO's code writes it, of a log-ratio d and of log-probs p and m; names are that code's.
IN_CODE: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "sppo_reversekl": ("reverse_kl", lambda p, m: (p - m) ** 2),
    "sppo_forwardimportance10": ("forward_kl", lambda p, m: np.exp(np.minimum(-(p - m), 10))),
    "sppo_reverseklnoent": ("reverse_kl_no_entropy", lambda p, m: -(p * m)),
    "sppo_entropy": ("entropy", lambda p, m: p**2),
    "sppo_chisq10": ("chi2", lambda p, m: np.exp(np.minimum(p - m, 10))),
    "sppo_chisqsm1": ("chi2_smoothed", lambda p, m: (r := np.exp(np.minimum(p - m, 10))) / (1 + 1 * r)),
}


@pytest.mark.parametrize("name", IN_CODE)
def test_penalties_are_those_of_rspos_code(name: str) -> None:
    kind, code = IN_CODE[name]
    rng = np.random.default_rng(0)
    p, m = -40 * rng.random(50), -40 * rng.random(50)
    ours = rspo_penalty(kind, torch.tensor(p), torch.tensor(m))
    np.testing.assert_allclose(ours.numpy(), code(p, m), rtol=1e-12)
    assert {kind for kind, _ in IN_CODE.values()} == PENALTIES.keys()


def test_the_smoothed_penalty_lets_go_of_what_is_likelier_than_under_the_base() -> None:
    """Its f curves upwards below a ratio of 1, downwards above."""
    ratios = torch.tensor([0.1, 0.9, 1.1, 9.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(smoothed(ratios).sum(), ratios, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), ratios)
    assert (curvature > 0).tolist() == [True, True, False, False]


def test_head_to_head_targets_are_sppo_single_of_sppos_code() -> None:
    """There `chosen_probs` is how likely the best beats the worst, and the worst's target is minus the best's."""
    tokens, mask, references = some_tokens()
    logps, beta = (tokens * mask).sum(1), 0.3
    probs = 0.5 + 0.5 * torch.rand(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, theirs = logps.clone().requires_grad_(), logps.clone().requires_grad_()
    sides = replace(sides_of(ours, references, mask.sum(1)), head_to_head=probs)
    loss = LOSSES["sppo"](sides, eta=1 / beta, targets="head_to_head")
    ratios = [both - held for both, held in zip(theirs.chunk(2), references.chunk(2), strict=True)]
    expected = ((ratios[0] - (probs - 0.5) / beta) ** 2 + (ratios[1] + (probs - 0.5) / beta) ** 2) / 2
    torch.testing.assert_close(loss, expected)
    loss.mean().backward()
    expected.mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for targets in ("soft", "hard"):
        assert (LOSSES["sppo"](sides, eta=1 / beta, targets=targets) - loss).abs().max() > 0.1


def test_who_beats_whom_head_to_head_is_as_in_sppos_code() -> None:
    """Its scores are a PairRM's mean log-odds; P[i, j] is 1 / (1 + exp(s_j - s_i)), and the pair is argmax against argmin."""
    logits = np.random.default_rng(4).normal(size=(5, 5))
    logits -= logits.T
    scores = logits.mean(1)
    best, worst = scores.argmax(), scores.argmin()
    matrix = 1 / (1 + np.exp(-logits))
    assert best_and_worst(win_rates(matrix, "aggregated")) == (best, worst)
    assert compared(matrix, "aggregated")[best, worst] == pytest.approx(1 / (1 + np.exp(scores[worst] - scores[best])))
    assert compared(matrix, "pairwise")[best, worst] == matrix[best, worst]


@pytest.mark.parametrize(("kind", "far"), [("forward_kl", -50.0), ("chi2", 50.0)])
def test_exponents_end_at_the_clamp(kind: str, far: float) -> None:
    logps = torch.tensor([far, far / 10], requires_grad=True)
    terms = rspo_penalty(kind, logps, torch.zeros(2))
    terms.sum().backward()
    torch.testing.assert_close(terms.detach(), torch.tensor([math.exp(10), math.exp(5)]))
    assert logps.grad is not None
    assert logps.grad[0] == 0 != logps.grad[1]
    torch.testing.assert_close(rspo_penalty(kind, logps, torch.zeros(2), clamp=2.0).detach(), torch.full((2,), math.exp(2)))


def test_weights_end_at_the_clamp_too() -> None:
    """100 nats from the policy that drew the answer, a weight would be infinite, and so the gradient."""
    logps = torch.tensor([0.0, -3.0], requires_grad=True)
    terms = rspo_penalty("reverse_kl", logps, torch.full((2,), -1.0), None, torch.tensor([-100.0, -3.5]))
    torch.testing.assert_close(terms.detach(), torch.tensor([math.exp(10), math.exp(0.5) * 4]))


def exact_iterate(policy: Tensor, wins: Tensor, eta: float, base: Tensor, coefficient: float) -> Tensor:
    """The next policy if every completion's loss is brought to its minimum: one Newton step, as the terms are squares."""
    logps = policy.clone().requires_grad_()
    loss = sppo(logps, policy, wins, eta) + coefficient * rspo_penalty("reverse_kl", logps, base)
    (slope,) = torch.autograd.grad(loss.sum(), logps, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), logps)
    return (logps - slope / curvature).detach().log_softmax(0)


def play(start: Tensor, steps: int, eta: float, base: Tensor = UNIFORM, coefficient: float = 0.0) -> list[Tensor]:
    """Self-play on rock, paper, scissors: start and every iterate."""
    iterates = [start]
    for _ in range(steps):
        iterates.append(exact_iterate(iterates[-1], RPS @ iterates[-1].exp(), eta, base, coefficient))
    return iterates


def gap(wins: Tensor, policy: Tensor) -> float:
    """The duality gap: what the best answer to a policy gains, for both players of the symmetric game."""
    return 2 * ((wins @ policy).max().item() - 0.5)


def bound(start: Tensor, steps: int, eta: float) -> float:
    return 2 * (-start.min().item() / (eta * steps) + eta / 8)


def test_sppos_average_converges_while_its_last_iterate_leaves() -> None:
    steps, eta, start = 1000, 0.2, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    iterates = play(start, steps, eta)
    multiplicative = start.exp() * torch.exp(eta * RPS @ start.exp())  # the update of the paper's section 3
    torch.testing.assert_close(iterates[1].exp(), multiplicative / multiplicative.sum())
    assert gap(RPS, torch.stack(iterates[:-1]).exp().mean(0)) <= bound(start, steps, eta)
    assert gap(RPS, iterates[-1].exp()) > 5 * bound(start, steps, eta)
    from_nash = [(UNIFORM.exp() * (UNIFORM - policy)).sum().item() for policy in iterates]
    assert all(after > before for before, after in pairwise(from_nash))


@pytest.mark.parametrize("coefficient", [0.0, 0.02, 0.1, 0.5])
def test_near_the_equilibrium_the_error_grows_or_falls_at_the_rate_of_theory(coefficient: float) -> None:
    """The game's eigenvalues there are +- i / sqrt(12): an iterate multiplies the error by sqrt(1 + eta^2 / 12) / (1 + c)."""
    eta, start = 1.0, (UNIFORM + 1e-6 * torch.tensor([1.0, -2.0, 1.0])).log_softmax(0)
    sizes = [(policy - UNIFORM).norm().item() for policy in play(start, 30, eta, UNIFORM, coefficient)]
    assert sizes[-1] / sizes[0] == pytest.approx((math.sqrt(1 + eta**2 / 12) / (1 + coefficient)) ** 30, rel=1e-3)
    assert (sizes[-1] < sizes[0]) == (coefficient > 0.05)


def test_with_a_penalty_the_last_iterate_reaches_the_regularised_equilibrium() -> None:
    eta, coefficient = 1.0, 0.3
    base = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()  # not the equilibrium of the plain game
    far, near = (play(base.flip(0), steps, eta, base, coefficient)[-1] for steps in (400, 100))
    forces = eta * RPS @ far.exp() - coefficient * (far - base)  # equal where no answer is worth changing to
    assert (forces - forces.mean()).abs().max() < 1e-10
    assert 0 < (near - far).norm() < 1e-6
    assert gap(RPS, far.exp()) < gap(RPS, base.exp())


def test_inpo_is_ipo_on_judged_samples_with_a_geometric_reference() -> None:
    """INPO (arXiv 2407.00617), eta and tau, as recipes/README.md writes it.

    Its update, from exact minimisation over all pairs of the policy's own answers, is
    log next = alpha log policy + (1 - alpha) log base + win-rates / eta; it ends in the equilibrium that tau holds to the base.
    """
    eta, tau = 1.0, 0.3
    alpha = 1 - tau / eta
    base = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
    policy = base.flip(0)
    for step in range(200):
        both = policy.exp()[:, None] * policy.exp()[None, :] * RPS  # of an ordered pair, and that the first wins

        def loss(logps: Tensor, both: Tensor = both, reference: Tensor = policy * alpha + base * (1 - alpha)) -> Tensor:
            grids = [torch.broadcast_tensors(rows[:, None], rows[None, :]) for rows in (logps, reference)]
            return (both * ipo(*grids[0], *grids[1], tau=eta)).sum()

        slope, curvature = torch.func.grad(loss)(policy), torch.func.hessian(loss)(policy)
        following = (policy - torch.linalg.pinv(curvature) @ slope).log_softmax(0)
        if step == 0:
            update = (alpha * policy + (1 - alpha) * base + RPS @ policy.exp() / eta).log_softmax(0)
            torch.testing.assert_close(following, update)
        policy = following
    forces = RPS @ policy.exp() - tau * (policy - base)  # equal where no answer is worth changing to
    assert (forces - forces.mean()).abs().max() < 1e-10


def test_win_rates_made_of_one_score_each_end_where_another_answer_wins() -> None:
    """SPPO's code turns win-rates into scores s_i and those into sigmoid(s_i - s_j), which can hold no cycle."""
    cycle = torch.tensor([[0.5, 0.4, 0.9], [0.6, 0.5, 0.4], [0.1, 0.6, 0.5]], dtype=torch.float64)
    scores = cycle.logit().mean(1)
    scored = torch.sigmoid(scores[:, None] - scores[None, :])
    steps, eta, ends = 2000, 0.2, {}
    for name, wins in (("pairwise", cycle), ("scored", scored)):
        policy, total = UNIFORM, torch.zeros(3, dtype=torch.float64)
        for _ in range(steps):
            total += policy.exp()
            policy = exact_iterate(policy, wins @ policy.exp(), eta, UNIFORM, 0.0)
        ends[name] = total / steps
    assert gap(cycle, ends["pairwise"]) <= bound(UNIFORM, steps, eta)
    assert ends["scored"][0] > 0.95  # all on the highest score, which the second answer beats at 0.6
    assert gap(cycle, ends["scored"]) > 2 * bound(UNIFORM, steps, eta)
