"""Samplers of the geometric mixture, against every sequence that there is.

Three tokens and a cap of three make 15 sequences: 7 that end, 8 that are cut.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.games import make_micro_base, open_hf, save_slot, shake_slot
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.algorithm.samplers.mixture import SAMPLERS, MixtureSample, Target, sampler, sampling_summary
from lowmem_spin.common.errors import InputError
from lowmem_spin.engines.base import Request
from lowmem_spin.engines.hf import HF

END, CAP, ALPHA, DRAWS = 0, 3, 0.6, 50_000
PLAIN = Sampling(1.0, 1.0, None, CAP, 0, {})
TARGET = Target(ALPHA, PLAIN, frozenset({END}))
State = tuple[int, ...]


def sequences(tokens: Sequence[int], end: int, cap: int) -> list[State]:
    """Everything of at most `cap` tokens that ends in `end` or is cut at the cap."""
    others = [token for token in tokens if token != end]
    ended = [(*body, end) for size in range(cap) for body in product(others, repeat=size)]
    return ended + list(product(others, repeat=cap))


SPACE: list[State] = sequences(range(3), END, CAP)


class World:
    """Two policies written down as tables: next-token log-probs (3,) of every prefix.

    Both like to begin with 1, and after it they fall out, so that weights differ and particles are resampled.
    """

    def __init__(self) -> None:
        self.prefixes: list[State] = [prefix for size in range(CAP) for prefix in product((1, 2), repeat=size)]
        self.place = {prefix: index for index, prefix in enumerate(self.prefixes)}
        raw = np.random.default_rng(1).normal(size=(2, len(self.prefixes), 3))
        raw[:, self.place[()], 1] += 1
        raw[0, self.place[1,], 1] += 5
        raw[1, self.place[1,], 2] += 5
        self.tables = torch.tensor(raw).log_softmax(-1)

    def __call__(self, states: Sequence[State]) -> list[torch.Tensor]:
        """The first token of a state is its prompt; the tables swap their tokens where it is odd."""
        rows = torch.tensor([self.place[state[1:]] for state in states])
        odd = torch.tensor([state[0] % 2 for state in states])[:, None].bool()
        return [torch.where(odd, table[rows][:, [0, 2, 1]], table[rows]) for table in self.tables]

    def mixed(self, prefix: State) -> np.ndarray:
        log_p, log_b = self.tables[:, self.place[prefix]].numpy()
        return ALPHA * log_p + (1 - ALPHA) * log_b

    def log_r(self) -> np.ndarray:
        """log R of every sequence of SPACE, by its definition; R is not normalised."""
        return np.array([sum(self.mixed(y[:step])[y[step]] for step in range(len(y))) for y in SPACE])

    def log_weights(self) -> np.ndarray:
        """log of the product of C over the steps of every sequence of SPACE."""
        log_c = {prefix: math.log(np.exp(self.mixed(prefix)).sum()) for prefix in self.prefixes}
        return np.array([sum(log_c[y[:step]] for step in range(len(y))) for y in SPACE])


def p_value(draws: Sequence[State], space: Sequence[State], probabilities: np.ndarray) -> float:
    """Chi-square test that the draws have these probabilities; cells that expect fewer than 5 are pooled."""
    counts = Counter(draws)
    assert set(counts) <= set(space)
    observed, expected = np.array([counts[y] for y in space], float), probabilities / probabilities.sum() * len(draws)
    rare = expected < 5
    if rare.any():
        observed, expected = (np.append(values[~rare], values[rare].sum()) for values in (observed, expected))
    return float(stats.chisquare(observed, expected).pvalue)


def tokens(draws: Sequence[MixtureSample]) -> list[State]:
    return [tuple(draw.tokens) for draw in draws if draw.tokens is not None]


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[MixtureSample]]:
    """Draws of every sampler from the world, each with a seed of its own; of few proposals, for a bias to show."""
    proposals = {"token_level": 1, "rejection": 100, "snis": 4, "smc": 4}
    return {
        name: sampler(name)(World(), [[0]] * DRAWS, range(DRAWS), TARGET, proposals=count, batch=4 * DRAWS)
        for name, count in proposals.items()
    }


def normalised(log_r: np.ndarray) -> np.ndarray:
    return np.exp(log_r) / np.exp(log_r).sum()


def test_the_capped_policies_are_distributions_over_the_sequences_there_are() -> None:
    world = World()
    for table in world.tables.exp().numpy():
        every = [math.prod(table[world.place[y[:step]]][y[step]] for step in range(len(y))) for y in SPACE]
        assert sum(every) == pytest.approx(1, abs=1e-12)


def test_rejections_draws_are_the_mixtures(drawn: dict[str, list[MixtureSample]]) -> None:
    assert len(tokens(drawn["rejection"])) == DRAWS
    assert p_value(tokens(drawn["rejection"]), SPACE, normalised(World().log_r())) > 1e-3


@pytest.mark.parametrize("name", ["snis", "smc"])
def test_draws_of_many_proposals_are_the_mixtures(name: str) -> None:
    """128 of them: the bias that is left adds 0.2 to a chi-square whose mean is 14, and uncorrected draws would add 4,000."""
    draws = sampler(name)(World(), [[0]] * 2500, range(2500), TARGET, proposals=128, batch=128 * 2500)
    assert p_value(tokens(draws), SPACE, normalised(World().log_r())) > 1e-3


@pytest.mark.parametrize("name", ["snis", "smc"])
def test_weighted_draws_have_no_bias_however_few_the_proposals(drawn: dict[str, list[MixtureSample]], name: str) -> None:
    """E[estimate of Z * 1(draw is y)] = R(y) for every y: the 15 means against R, in units of their own covariance."""
    weighted = np.zeros((DRAWS, len(SPACE)))
    for row, draw in enumerate(drawn[name]):
        assert draw.tokens is not None and draw.log_z is not None
        weighted[row, SPACE.index(tuple(draw.tokens))] = math.exp(draw.log_z)
    off = weighted.mean(0) - np.exp(World().log_r())
    statistic = DRAWS * off @ np.linalg.solve(np.cov(weighted.T), off)
    assert stats.chi2.sf(statistic, len(SPACE)) > 1e-3
    assert p_value(tokens(drawn[name]), SPACE, normalised(World().log_r())) < 1e-6  # unweighted, four are too few


def test_token_level_draws_are_its_own_and_not_the_mixtures(drawn: dict[str, list[MixtureSample]]) -> None:
    world, draws = World(), tokens(drawn["token_level"])
    assert p_value(draws, SPACE, np.exp(world.log_r() - world.log_weights())) > 1e-3
    assert p_value(draws, SPACE, normalised(world.log_r())) < 1e-100  # this many draws do tell the two apart


def test_a_draw_knows_its_weight(drawn: dict[str, list[MixtureSample]]) -> None:
    weights = dict(zip(SPACE, World().log_weights(), strict=True))
    for draws in drawn.values():
        for draw in draws[:300]:
            assert draw.tokens is not None
            assert draw.finish_reason == ("stop" if draw.tokens[-1] == END else "length")
            assert len(draw.log_c) == len(draw.tokens)
            assert sum(draw.log_c) == pytest.approx(weights[tuple(draw.tokens)], abs=1e-12)


def test_the_mean_weight_and_the_acceptance_are_z(drawn: dict[str, list[MixtureSample]]) -> None:
    z = np.exp(World().log_r()).sum()
    for name, draws in drawn.items():
        found = sampling_summary(name, TARGET.alpha, draws)
        assert found.prompts == DRAWS and found.rejected == 0
        if name == "rejection":
            assert found.acceptance == pytest.approx(z, abs=4 * z * math.sqrt((1 - z) / DRAWS))
        else:
            each = np.exp([draw.log_z for draw in draws if draw.log_z is not None])
            assert found.acceptance is None
            assert each.mean() == pytest.approx(z, abs=4 * each.std() / math.sqrt(DRAWS))
        assert found.log_z == pytest.approx(math.log(z), abs=0.02)


def test_over_unlike_prompts_log_z_is_about_the_mean_of_z_and_the_acceptance_about_the_cost(
    drawn: dict[str, list[MixtureSample]],
) -> None:
    z = np.exp(World().log_r()).sum()
    easy = sampler("rejection")(World(), [[0]] * 2000, range(2000), Target(1.0, PLAIN, frozenset({END})))  # where Z is 1
    found = sampling_summary("rejection", TARGET.alpha, [*drawn["rejection"][:2000], *easy])
    assert math.exp(found.log_z) == pytest.approx((z + 1) / 2, abs=0.03)
    assert found.acceptance == pytest.approx(2 / (1 / z + 1), abs=0.03)
    assert (z + 1) / 2 - 2 / (1 / z + 1) > 0.1


def test_the_effective_sample_size_is_that_of_the_weights(drawn: dict[str, list[MixtureSample]]) -> None:
    """Of many proposals it tends to N / (1 + relative variance of the weights), here known exactly."""
    world = World()
    log_q, weights = world.log_r() - world.log_weights(), np.exp(world.log_weights())
    spread = np.exp(log_q) @ weights**2 / np.exp(world.log_r()).sum() ** 2
    (draw,) = sampler("snis")(world, [[0]], [7], TARGET, proposals=DRAWS)
    assert draw.ess == pytest.approx(DRAWS / spread, rel=0.01)
    assert sum(draw.ess < 2 for draw in drawn["smc"]) > DRAWS / 10  # many populations are resampled in these tests


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_prompts_draw_does_not_depend_on_the_others(name: str) -> None:
    prompts, seeds = [[index] for index in range(60)], [1000 + index for index in range(60)]
    draw = sampler(name)
    together = draw(World(), prompts, seeds, TARGET, proposals=9, batch=600)
    assert len(set(tokens(together))) > 8
    assert draw(World(), prompts, seeds, TARGET, proposals=9, batch=7) == together
    assert draw(World(), prompts[::-1], seeds[::-1], TARGET, proposals=9, batch=40)[::-1] == together
    assert [
        one for p, s in zip(prompts, seeds, strict=True) for one in draw(World(), [p], [s], TARGET, proposals=9)
    ] == together
    assert draw(World(), prompts, [seed + 1 for seed in seeds], TARGET, proposals=9) != together


def test_a_prompt_whose_tries_run_out_has_no_sample_and_the_others_are_still_exact() -> None:
    world = World()
    draws = sampler("rejection")(world, [[0]] * DRAWS, range(DRAWS), TARGET, proposals=1, batch=DRAWS)
    without = [draw for draw in draws if draw.tokens is None]
    z = np.exp(world.log_r()).sum()
    assert len(without) / DRAWS == pytest.approx(1 - z, abs=4 * math.sqrt(z * (1 - z) / DRAWS))
    assert {draw.finish_reason for draw in without} == {"rejected"}
    assert sampling_summary("rejection", TARGET.alpha, draws).rejected == len(without)
    assert p_value(tokens(draws), SPACE, normalised(world.log_r())) > 1e-3


def test_rejected_proposals_are_not_carried_on() -> None:
    """Policies without a common token have nothing to accept: one step each, and no number that is not one."""
    far = torch.log(torch.eye(3))
    seen: list[int] = []

    def opposed(states: Sequence[State]) -> list[torch.Tensor]:
        seen.append(len(states))
        return [far[1].expand(len(states), 3), far[2].expand(len(states), 3)]

    open_ended = replace(TARGET, ends=frozenset())
    draws = sampler("rejection")(opposed, [[0]] * 4, range(4), open_ended, proposals=5, batch=8)
    assert sum(seen) == 20 and all(draw.tokens is None and draw.proposals == 5 for draw in draws)
    assert sampling_summary("rejection", TARGET.alpha, draws).log_z == -math.inf
    for name in ("snis", "smc"):
        with pytest.raises(ValueError, match="no proposal has any probability"):
            sampler(name)(opposed, [[0]], [1], TARGET)


@pytest.mark.parametrize(("field", "value"), [("temperature", 0.7), ("top_p", 0.9), ("top_k", 40)])
def test_a_policy_that_is_not_itself_is_refused(field: str, value: float) -> None:
    changed: dict[str, Any] = {field: value}
    with pytest.raises(InputError, match=rf"^generation\.{field}: {value}, but"):
        Target(ALPHA, replace(PLAIN, **changed), frozenset({END}))


# The same on a model: two policies on one base, with seven tokens and a cap of two, 43 sequences.

PROMPT, MICRO_END = (1, 3, 4), 2
MICRO = Target(ALPHA, replace(PLAIN, max_new_tokens=2), frozenset({MICRO_END}))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HF:
    return open_hf(make_micro_base(tmp_path_factory.mktemp("micro")), quantization="none")


@pytest.fixture(scope="module")
def adapters(engine: HF, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for seed in range(2):
        shake_slot(engine, seed, scale=0.3)
        folders.append(save_slot(engine, tmp_path_factory.mktemp("adapters") / str(seed)))
        engine.slot.holds = None
    return folders


def test_next_token_log_probs_are_the_differences_of_scores(engine: HF, adapters: list[Path]) -> None:
    """Of ragged states; then of continuations of some of them, twice, in another order; then of none of them."""
    begun = [(1, 3, 4), (1, 5), (1, 6, 6, 3, 5), (1, 3, 4)]
    longer = [(*begun[2], 4), (*begun[0], 3), (*begun[2], 6)]
    longest = [(*longer[2], 3), (*longer[1], 5)]
    policies = [adapters[0], None, adapters[1]]
    lookahead = engine.next_token_logps(policies)
    for states in (begun, longer, longest, begun[:2]):
        found = lookahead(states)
        for policy, logps in zip(policies, found, strict=True):
            rows = [([1], [*state[1:], token]) for state in states for token in range(7)]
            whole = np.array(engine.score(policy, rows)).reshape(len(states), 7)
            before = np.array([engine.score(policy, [([1], list(state[1:]))])[0] for state in states])
            np.testing.assert_allclose(logps.numpy(), whole - before[:, None], atol=2e-5)
    spread = [(a - b).abs().max() for a, b in (found[:2], found[1:])]
    assert min(spread) > 0.1  # three policies, not one


def test_each_step_reads_one_token_of_each_sequence(engine: HF, adapters: list[Path]) -> None:
    fed: list[tuple[int, ...]] = []
    decoder: Any = engine.model.get_base_model().get_decoder()  # type: ignore[operator]

    def note(module: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        fed.append(tuple(kwargs["input_ids"].shape))

    handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
    target = replace(MICRO, sampling=replace(PLAIN, max_new_tokens=5))
    sampler("smc")(engine.next_token_logps([adapters[0], None]), [PROMPT], [1], target, proposals=16)
    handle.remove()
    assert fed[:2] == [(16, 3), (16, 3)]  # the prompt once for each policy, then a token at a time
    assert len(fed) == 10 and {length for _, length in fed[2:]} == {1}


@pytest.mark.parametrize("name", ["rejection", "smc"])
def test_a_models_draws_are_the_enumerated_mixtures(engine: HF, adapters: list[Path], name: str) -> None:
    space = sequences(range(7), MICRO_END, 2)
    rows = [(PROMPT, y) for y in space]
    log_p, log_b = (np.array(engine.score(policy, rows)) for policy in (adapters[0], None))
    log_r = ALPHA * log_p + (1 - ALPHA) * log_b
    z = np.exp(log_r).sum()
    count, proposals = 6000, 16
    logps = engine.next_token_logps([adapters[0], None])
    draws = sampler(name)(logps, [PROMPT] * count, range(count), MICRO, proposals=proposals, batch=count)
    assert p_value(tokens(draws), space, normalised(log_r)) > 1e-3
    assert sampling_summary(name, MICRO.alpha, draws).log_z == pytest.approx(math.log(z), abs=0.05)
    assert p_value(tokens(draws), space, np.exp(log_p)) < 1e-6 > p_value(tokens(draws), space, np.exp(log_b))


@pytest.mark.parametrize("name", ["token_level", "rejection"])
def test_at_the_ends_of_alpha_a_policy_draws_what_it_generates(engine: HF, adapters: list[Path], name: str) -> None:
    sampling = replace(PLAIN, max_new_tokens=6)
    ends = frozenset(engine.ends)
    for alpha, policy in ((1.0, adapters[0]), (0.0, None)):
        generated = engine.generate([Request(policy, PROMPT, seed) for seed in range(50)], sampling)
        logps = engine.next_token_logps([adapters[0], None])
        draws = sampler(name)(logps, [PROMPT] * 50, range(50), Target(alpha, sampling, ends), proposals=1)
        assert [draw.tokens for draw in draws] == [completion.tokens for completion in generated]
        assert [draw.finish_reason for draw in draws] == [completion.finish_reason for completion in generated]
