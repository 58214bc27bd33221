"""The theory of one iteration, on sequence spaces small enough to enumerate."""

import math

import pytest
import torch

from helpers.references import SEQUENCES, random_policy
from lowmem_spin.algorithm.game import reference
from lowmem_spin.algorithm.losses import dpo


def expected_loss(logits: torch.Tensor, ref: torch.Tensor, data: torch.Tensor, opponent: torch.Tensor, beta: float):
    """The exact game loss: every (chosen, rejected) pair, weighted by its probability under data and opponent."""
    policy = logits.log_softmax(0)
    chosen, rejected = (grid.reshape(-1) for grid in torch.meshgrid(*[torch.arange(SEQUENCES)] * 2, indexing="ij"))
    weights = (data[chosen] + opponent[rejected]).exp()
    return (weights * dpo(policy[chosen], policy[rejected], ref[chosen], ref[rejected], beta)).sum()


def geometric(alpha: float, previous: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """The reference as the runner computes it: a weighted sum of log-probs, not normalised."""
    logps = {"previous": previous, "base": base}
    return sum((w * logps[policy] for policy, w in reference("previous", "base", alpha).items()), torch.zeros(SEQUENCES))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.95, 1.0])
def test_one_exact_iteration_lands_on_the_closed_form(alpha: float) -> None:
    data, opponent, previous, base = (random_policy(seed) for seed in range(4))
    ref, beta = geometric(alpha, previous, base), 0.7
    logits = torch.zeros(SEQUENCES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=2000, tolerance_grad=1e-13, tolerance_change=0)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = expected_loss(logits, ref, data, opponent, beta)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    exact = (ref + (data - opponent) / beta).log_softmax(0)  # pi_t ∝ ref * (d / m)^(1/beta)
    torch.testing.assert_close(logits.detach().log_softmax(0).exp(), exact.exp(), atol=1e-6, rtol=0)


def test_the_normaliser_of_the_geometric_mixture_cancels() -> None:
    data, opponent, previous, base = (random_policy(seed) for seed in range(4))
    ref, policy = geometric(0.6, previous, base), random_policy(9)
    assert abs(ref.logsumexp(0)) > 0.01  # the mixture is not normalised
    normalised = ref.log_softmax(0)
    loose, exact = (expected_loss(policy, choice, data, opponent, 0.5) for choice in (ref, normalised))
    assert loose.item() == pytest.approx(exact.item(), abs=1e-12)


def test_kl_to_both_policies_is_kl_to_the_mixture_less_its_log_normaliser() -> None:
    policy, previous, base = (random_policy(seed) for seed in (5, 6, 7))
    for alpha in (0.0, 0.4, 1.0):
        ref = geometric(alpha, previous, base)
        log_z = ref.logsumexp(0)

        def kl(other: torch.Tensor) -> torch.Tensor:
            return (policy.exp() * (policy - other)).sum()

        both = alpha * kl(previous) + (1 - alpha) * kl(base)
        assert both.item() == pytest.approx((kl(ref - log_z) - log_z).item(), abs=1e-12)
        assert log_z <= 1e-12
        assert (abs(log_z) < 1e-12) == (alpha in (0.0, 1.0))


def test_a_policy_equal_to_its_reference_has_loss_log_2() -> None:
    policy = random_policy(3)
    losses = dpo(policy, policy.flip(0), policy, policy.flip(0), 0.1)
    torch.testing.assert_close(losses, torch.full_like(losses, math.log(2)))


def test_when_the_opponent_is_the_data_the_reference_is_the_minimum() -> None:
    data, ref = random_policy(0), random_policy(1)
    at_ref = expected_loss(ref, ref, data, data, 0.3)
    assert at_ref.item() == pytest.approx(math.log(2), abs=1e-12)
    assert all(expected_loss(random_policy(seed), ref, data, data, 0.3) > at_ref for seed in range(10, 20))
