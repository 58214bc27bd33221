"""Sub-trajectory balance, and adapters trained with it, against every sequence that there is."""

import functools
import json
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.games import make_micro_base, open_hf, save_slot, shake_slot
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.algorithm.subtb import StepLogps, subtb_loss, weighted_count
from lowmem_spin.common.errors import InputError
from lowmem_spin.engines.base import Completion, Request
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.training import gflownet

State = tuple[int, ...]
ALPHA = 0.5


def sequences(others: Sequence[int], ends: Sequence[int], cap: int) -> list[State]:
    """Everything of at most `cap` tokens that ends in one of `ends` or is cut at the cap."""
    ended = [(*body, end) for size in range(cap) for body in product(others, repeat=size) for end in ends]
    return ended + list(product(others, repeat=cap))


class Tree:
    """Policies as tables (prefixes, vocabulary) of next-token log-probs, float64; prefixes at the cap have a row too."""

    def __init__(self, others: Sequence[int], ends: Sequence[int], cap: int) -> None:
        self.others, self.ends, self.cap, self.size = others, list(ends), cap, len(others) + len(ends)
        self.space = sequences(others, ends, cap)
        self.paths = list(product(others, repeat=cap))  # together they pass through every prefix
        self.prefixes: list[State] = [prefix for size in range(cap + 1) for prefix in product(others, repeat=size)]
        self.place = {prefix: index for index, prefix in enumerate(self.prefixes)}

    def table(self, seed: int) -> torch.Tensor:
        raw = np.random.default_rng(seed).normal(scale=1.5, size=(len(self.prefixes), self.size))
        return torch.tensor(raw).log_softmax(-1)

    def logps(self, table: torch.Tensor) -> np.ndarray:
        """Of every sequence there is, by definition."""
        rows = table.detach().numpy()
        return np.array([sum(rows[self.place[y[:step]], y[step]] for step in range(len(y))) for y in self.space])

    def off(self, table: torch.Tensor, log_r: np.ndarray) -> float:
        """Total variation between the policy and R."""
        return 0.5 * np.abs(np.exp(self.logps(table)) - np.exp(log_r) / np.exp(log_r).sum()).sum()

    def exact(self, log_r: np.ndarray) -> torch.Tensor:
        """The policy that samples R: of each prefix the share of R's mass that goes on with each token."""
        table = self.table(99)  # its rows at the cap mean nothing, and stay random
        for prefix in self.prefixes:
            if len(prefix) < self.cap:
                mass = [
                    sum(np.exp(r) for y, r in zip(self.space, log_r, strict=True) if y[: len(prefix) + 1] == (*prefix, v))
                    for v in range(self.size)
                ]
                table[self.place[prefix]] = torch.tensor(np.log(np.array(mass) / sum(mass)))
        return table

    def steps(self, table: torch.Tensor, rows: Sequence[State]) -> StepLogps:
        """A batch of rows, padded with what would spoil it if it were read."""
        where, taken, inside = self.places(tuple(rows))
        ends = table[:, self.ends][where]
        spoilt = 7 * table[0, 0]  # another number in every table
        return StepLogps(torch.where(inside, table[where, taken], spoilt), torch.where(inside[..., None], ends, spoilt))

    @functools.cache  # noqa: B019
    def places(self, rows: tuple[State, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every step its prefix and its token, and which steps there are."""
        width = max(len(y) for y in rows) + 2
        where = [[self.place[y[:step]] for step in range(len(y))] + [0] * (width - len(y)) for y in rows]
        taken = [[*y, *[0] * (width - len(y))] for y in rows]
        return torch.tensor(where), torch.tensor(taken), torch.arange(width) < self.shape(rows)[0][:, None]

    def shape(self, rows: Sequence[State]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([len(y) for y in rows]), torch.tensor([y[-1] not in self.ends for y in rows])

    def loss(self, policy: torch.Tensor, reward: torch.Tensor, rows: Sequence[State], lam: float = 1.0) -> torch.Tensor:
        return subtb_loss(self.steps(policy, rows), self.steps(reward, rows), *self.shape(rows), lam)


ONE_END = Tree((1, 2, 3), (0,), 4)
TWO_ENDS = Tree((1, 2), (0, 3), 3)


def mixture(tree: Tree) -> torch.Tensor:
    """The factors of R: alpha log p + (1 - alpha) log b, token by token."""
    return ALPHA * tree.table(0) + (1 - ALPHA) * tree.table(1)


def published(tree: Tree, policy: torch.Tensor, reward: torch.Tensor, y: State, lam: float) -> tuple[float, float]:
    """The loss of one row and the count of its sub-trajectories, added up from deltas as the papers write them."""

    def log_r(size: int, end: int) -> float:
        steps = [*zip([y[:step] for step in range(size)], y, strict=False)]
        steps += [] if size == tree.cap else [(y[:size], end)]
        return sum(float(reward[tree.place[prefix], token]) for prefix, token in steps)

    def log_stop(size: int, end: int) -> float:
        return 0.0 if size == tree.cap else float(policy[tree.place[y[:size]], end])

    def share(size: int, end: int) -> float:
        row = reward[tree.place[y[:size]], tree.ends].exp()
        return float(row[tree.ends.index(end)] / row.sum())

    def delta(size: int, end: int, after: int) -> float:
        taken = float(policy[tree.place[y[:size]], y[size]])
        return log_r(size, end) + taken + log_stop(size + 1, after) - log_r(size + 1, after) - log_stop(size, end)

    last = len(y) if y[-1] not in tree.ends else len(y) - 1
    total, count = 0.0, 0.0
    for begin in range(last):
        for stop in range(begin + 1, last + 1):
            weight = lam ** (stop - begin - 1)
            count += weight
            for end, after in product(tree.ends, repeat=2):
                deltas = [delta(size, end, after if size + 1 == stop else end) for size in range(begin, stop)]
                total += weight * share(begin, end) * share(stop, after) * sum(deltas) ** 2
    return total, count


@pytest.mark.parametrize("tree", [ONE_END, TWO_ENDS])
@pytest.mark.parametrize("lam", [1.0, 0.7])
def test_the_loss_is_the_published_sum_over_sub_trajectories(tree: Tree, lam: float) -> None:
    rows = tree.space[:: len(tree.space) // 20]
    policy, reward = tree.table(5), mixture(tree)
    expected = [published(tree, policy, reward, y, lam) for y in rows]
    np.testing.assert_allclose(tree.loss(policy, reward, rows, lam), [loss for loss, _ in expected], rtol=1e-10)
    np.testing.assert_allclose(weighted_count(*tree.shape(rows), lam), [count for _, count in expected], rtol=1e-6)


@pytest.mark.parametrize("tree", [ONE_END, TWO_ENDS])
def test_the_loss_is_zero_where_the_policy_samples_the_reward_and_nowhere_else(tree: Tree) -> None:
    reward = mixture(tree)
    log_r = tree.logps(reward)
    exact = tree.exact(log_r)
    assert tree.off(exact, log_r) < 1e-12
    assert tree.loss(exact, reward, tree.space).abs().max() < 1e-20
    for place, prefix in enumerate(tree.prefixes):
        for token in range(tree.size):
            other = exact.clone()
            other[place, token] += 0.1
            other = other.log_softmax(-1).requires_grad_()
            loss = tree.loss(other, reward, tree.space).sum()
            (gradient,) = torch.autograd.grad(loss, other)
            at_cap = len(prefix) == tree.cap  # where the policy stops, whatever it thinks
            assert (loss > 1e-4) == (gradient.abs().max() > 1e-3) == (not at_cap), (prefix, token)


def train(tree: Tree, reward: torch.Tensor, rows: Sequence[State], shape: tuple[torch.Tensor, torch.Tensor]) -> Any:
    """The table that starts as p and is trained on all rows at once, and its last mean loss."""
    logits = tree.table(0).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    target, count = tree.steps(reward, rows), weighted_count(*shape, 1.0).sum()
    loss = torch.tensor(torch.inf)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        loss = subtb_loss(tree.steps(logits.log_softmax(-1), rows), target, *shape, 1.0).sum() / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logits.detach().log_softmax(-1), loss.item()


@pytest.mark.parametrize("tree", [ONE_END, TWO_ENDS])
def test_a_table_learns_to_sample_the_reward(tree: Tree) -> None:
    reward = mixture(tree)
    log_r = tree.logps(reward)
    assert tree.off(tree.table(0), log_r) > 0.25
    learnt, _ = train(tree, reward, tree.paths, tree.shape(tree.paths))
    assert tree.off(learnt, log_r) < 0.02


def test_with_an_end_token_at_the_cap_the_loss_vanishes_and_the_policy_is_wrong() -> None:
    """What the loss would be without its case for the cap: as if every path were ended by a choice of the policy."""
    tree = ONE_END
    assert len(tree.space) == 121
    reward = mixture(tree)
    rows = [(*path, 0) for path in tree.paths]
    learnt, loss = train(tree, reward, rows, tree.shape(rows))
    assert loss < 1e-6
    assert tree.off(learnt, tree.logps(reward)) > 0.1


def test_gradients_of_long_rows_are_finite() -> None:
    torch.manual_seed(0)
    tokens, ends = torch.randn(2, 400, requires_grad=True), torch.randn(2, 400, 2, requires_grad=True)
    reward = StepLogps(torch.randn(2, 400), torch.randn(2, 400, 2))
    shape = torch.tensor([400, 3]), torch.tensor([True, False])
    loss = subtb_loss(StepLogps(tokens, ends), reward, *shape, lam=0.5).sum()
    for gradient in torch.autograd.grad(loss, (tokens, ends)):
        assert torch.isfinite(gradient).all() and gradient[0].any() and not gradient[1, 3:].any()


# The same on a model: seven tokens, two of which end, and a cap of two: 37 sequences.

PROMPT, ENDS, CAP = (1, 3, 4), [2, 5], 2
PROMPTS = [PROMPT, (1, 5), (1, 6, 6, 3)]
SPACE = sequences([0, 1, 3, 4, 6], ENDS, CAP)
SETTINGS = {
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "warmup_ratio": 0.05,
    "max_grad_norm": 1.0,
    "lam": 1.0,
    "buffer": 2,
    "replay": 0.5,
    "explore": 0.666,
    "temperatures": [0.5, 2.0],
    "reward_temperature": 1.5,
    "anneal": 0.5,
    "seed": 1,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_micro_base(tmp_path_factory.mktemp("micro"))


def open_micro(base: Path, checkpoint_steps: int = 1000, **training: Any) -> HF:
    engine = open_hf(base, quantization="none", dropout=0.3, **training)  # dropout has to be asleep in all of this
    runtime = engine.recipe.runtime.model_copy(update={"checkpoint_steps": checkpoint_steps, "generation_batch_size": 64})
    engine.recipe = engine.recipe.model_copy(update={"runtime": runtime})
    engine.ends = ENDS
    return engine


@pytest.fixture(scope="module")
def previous(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine = open_micro(base)
    shake_slot(engine, 0, scale=0.15)
    return save_slot(engine, tmp_path_factory.mktemp("previous"))


class Told(list[int]):
    """Rows that were told of; breaks off when the checkpoint to stop at is written."""

    def __init__(self, stop: Path | None = None) -> None:
        self.stop = stop

    def __call__(self, rows: int, loss: float | None = None, resumed: bool = False, record: Any = None, /) -> None:
        self.append(rows)
        if self.stop is not None and rows == 0 and self.stop.exists():
            raise StoppedError


class StoppedError(Exception):
    pass


def train_sampler(
    engine: HF,
    previous: Path,
    work: Path,
    prompts: Sequence[State],
    told: Told | None = None,
    base: Path | None = None,
    **changes: Any,
) -> tuple[Path, list[dict[str, float]]]:
    settings = {**SETTINGS, **changes}
    trainer = gflownet.GFlowNetTrainer(engine, previous, base, prompts, ALPHA, CAP, settings, work)
    return trainer.run(Told() if told is None else told)


def weights(adapter: Path) -> bytes:
    return (adapter / "adapter_model.safetensors").read_bytes()


def enumerated(engine: HF, policy: Path | None) -> np.ndarray:
    """Log-probs of all sequences after PROMPT."""
    return np.array(engine.score(policy, [(PROMPT, y) for y in SPACE]))


def test_the_adapter_samples_the_mixture(base: Path, previous: Path, tmp_path: Path) -> None:
    engine = open_micro(base, per_device_train_batch_size=32)
    assert len(SPACE) == 37
    log_p, log_b = enumerated(engine, previous), enumerated(engine, None)
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-5)
    mixed = np.exp(ALPHA * log_p + (1 - ALPHA) * log_b)

    def off(logps: np.ndarray) -> float:
        return 0.5 * np.abs(np.exp(logps) - mixed / mixed.sum()).sum()

    adapter, metrics = train_sampler(engine, previous, tmp_path, [PROMPT] * 128, epochs=60, batch_size=64)
    assert min(off(log_p), off(log_b)) > 0.5
    assert off(enumerated(engine, adapter)) < 0.02
    last = np.mean([record["log_ratio"] for record in metrics[-10:] if "log_ratio" in record])
    assert last == pytest.approx(-np.log(mixed.sum()), abs=0.02)
    assert [metrics[place]["reward_temperature"] for place in (0, -1)] == [pytest.approx(1.5, abs=0.02), 1.0]
    assert enumerated(engine, previous).tolist() == log_p.tolist()  # p is back where it was


@pytest.fixture(scope="module")
def first_steps(
    base: Path, previous: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HF, dict[str, Any], dict[str, Any]]:
    """Metrics and sequences of one step over 1,024 prompts: drawn from p itself, and from p near temperature 0."""
    engine, found = open_micro(base, checkpoint_steps=1, per_device_train_batch_size=512), []
    once = {"epochs": 1, "batch_size": 1024, "temperatures": [0.01, 0.01]}
    for explore in (0.0, 1.0):
        work = tmp_path_factory.mktemp("first")
        (record,) = train_sampler(engine, previous, work, [PROMPT] * 1024, explore=explore, **once)[1]
        buffer = json.loads((work / "checkpoint-1" / "trainer_state.json").read_text())["buffer"]
        found.append({**record, "drawn": [tuple(y) for (y,) in buffer]})
    return engine, found[0], found[1]


def test_the_policy_draws_by_itself_unless_it_explores(first_steps: Any, previous: Path) -> None:
    """At first it is p, whose mean of log p(y) - log R(y) is (1 - alpha) KL(p || b)."""
    engine, own, cold = first_steps
    log_p, log_b = enumerated(engine, previous), enumerated(engine, None)
    ratios = (1 - ALPHA) * (log_p - log_b)
    mean = np.exp(log_p) @ ratios
    error = float(np.sqrt(np.exp(log_p) @ (ratios - mean) ** 2 / 1024))
    assert own["log_ratio"] == pytest.approx(mean, abs=4 * error)
    assert len(set(own["drawn"])) > 10
    likeliest = engine.generate([Request(previous, PROMPT, 0)], Sampling(0.0, 1.0, None, CAP, 0, {}))[0].tokens
    assert set(cold["drawn"]) == {tuple(likeliest)}
    assert "log_ratio" not in cold


def test_several_samples_of_a_prompt_are_several_draws_of_the_policy(
    base: Path, previous: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 1,024 sequences over 256 prompts: their mean log-ratio is p's, by enumeration, and no draw is made twice."""
    engine, asked = open_micro(base, per_device_train_batch_size=512), []
    sample = engine.sample

    def noting(policy: Any, draws: Sequence[Any], sampling: Sampling) -> list[Completion]:
        asked.extend(draws)
        return sample(policy, draws, sampling)

    monkeypatch.setattr(engine, "sample", noting)
    once: dict[str, Any] = {"epochs": 1, "batch_size": 1024, "explore": 0.0, "samples": 4}
    told = Told()
    _, (record,) = train_sampler(engine, previous, tmp_path, [PROMPT] * 256, told, **once)
    log_p, log_b = enumerated(engine, previous), enumerated(engine, None)
    ratios = (1 - ALPHA) * (log_p - log_b)
    mean = np.exp(log_p) @ ratios
    error = float(np.sqrt(np.exp(log_p) @ (ratios - mean) ** 2 / 1024))
    assert record["log_ratio"] == pytest.approx(mean, abs=4 * error)
    assert len({seed for _, seed in asked}) == 1024 == sum(told)


def noted_draws(engine: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The prompts that an engine is asked to sample from, call by call."""
    drawn, sample = list[list[Any]](), engine.sample

    def noting(policy: Any, draws: Sequence[Any], sampling: Sampling) -> list[Completion]:
        drawn.append([prompt for prompt, _ in draws])
        return sample(policy, draws, sampling)

    monkeypatch.setattr(engine, "sample", noting)
    return drawn


def test_a_step_has_all_the_samples_of_its_prompts(
    base: Path, previous: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_micro(base)
    drawn = noted_draws(engine, monkeypatch)
    prompts = [(1, first, second) for first in (3, 4, 6) for second in (3, 4, 6)]
    train_sampler(engine, previous, tmp_path, prompts, replay=0.0, epochs=2, batch_size=8, samples=2)
    assert [len(each) for each in drawn] == [8, 8, 2, 8, 8, 2]
    for step in drawn:
        assert all(step.count(prompt) == 2 for prompt in step)
    for epoch in (drawn[:3], drawn[3:]):
        assert sorted(prompt for step in epoch for prompt in step) == sorted(2 * prompts)


def test_the_base_may_be_an_adapter_too(base: Path, previous: Path, tmp_path: Path) -> None:
    engine = open_micro(base, per_device_train_batch_size=512)
    shake_slot(engine, 2, scale=0.2)
    other, engine.slot.holds = save_slot(engine, tmp_path / "other"), None
    once = {"epochs": 1, "batch_size": 1024, "explore": 0.0}
    _, (record,) = train_sampler(engine, previous, tmp_path / "work", [PROMPT] * 1024, base=other, **once)
    log_p, log_b, bare = (enumerated(engine, policy) for policy in (previous, other, None))
    mean, without = ((1 - ALPHA) * np.exp(log_p) @ (log_p - logps) for logps in (log_b, bare))
    assert record["log_ratio"] == pytest.approx(mean, abs=0.1) and abs(mean - without) > 0.3


def test_the_loss_that_is_told_is_that_of_whole_sequences_scores(first_steps: Any, previous: Path) -> None:
    """It is the mean square between log-ratios of all sequences that leave the rows, R at its temperature."""
    engine, *both = first_steps
    log_p, log_b = (dict(zip(SPACE, enumerated(engine, policy), strict=True)) for policy in (previous, None))
    log_r = {y: (ALPHA * log_p[y] + (1 - ALPHA) * log_b[y]) / SETTINGS["reward_temperature"] for y in SPACE}
    for step in both:
        total, count = 0.0, 0
        for y in step["drawn"]:
            last = len(y) - (y[-1] in ENDS)
            leaving = [[y] if size == CAP else [(*y[:size], end) for end in ENDS] for size in range(last + 1)]
            shares = [np.exp([log_r[z] for z in group]) for group in leaving]
            for (first, v), (second, w) in combinations(zip(leaving, shares, strict=True), 2):
                squares = [[(log_p[z] - log_r[z] - log_p[x] + log_r[x]) ** 2 for x in second] for z in first]
                total, count = total + v @ np.array(squares) @ w / v.sum() / w.sum(), count + 1
        assert step["loss"] == pytest.approx(total / count, rel=1e-4)


def test_a_resumed_training_ends_in_the_same_adapter(
    base: Path, previous: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gflownet, "RECORDS", 2)  # records over several steps, so that some are cut in two
    engine, prompts = open_micro(base, checkpoint_steps=3), PROMPTS * 13  # 9 steps in 3 epochs, the last of each short
    told = Told()
    adapter, metrics = train_sampler(engine, previous, tmp_path / "whole", prompts, told)
    assert sum(told) == 3 * len(prompts) and told.count(0) == 3
    assert [record["step"] for record in metrics] == [4, 8, 9]
    for steps in (3, 6):
        work = tmp_path / f"stopped at {steps}"
        with pytest.raises(StoppedError):
            train_sampler(engine, previous, work, prompts, Told(work / f"checkpoint-{steps}"))
        shake_slot(engine)  # nothing may be left over from what the slot held
        told = Told()
        resumed, again = train_sampler(engine, previous, work, prompts, told)
        assert weights(resumed) == weights(adapter) and again == metrics
        assert sum(told) == 3 * len(prompts) and len(told) < 9 + 3
        assert len(list(work.glob("checkpoint-*"))) == 2
    several: dict[str, Any] = {"samples": 2, "epochs": 2}  # 2 x 5 steps, of 8 prompts each
    whole, _ = train_sampler(engine, previous, tmp_path / "several", prompts, **several)
    work = tmp_path / "several, stopped"
    with pytest.raises(StoppedError):
        train_sampler(engine, previous, work, prompts, Told(work / "checkpoint-6"), **several)
    told = Told()
    assert weights(train_sampler(engine, previous, work, prompts, told, **several)[0]) == weights(whole) != weights(adapter)
    assert sum(told) == 4 * len(prompts)
    other, _ = train_sampler(engine, previous, tmp_path / "other seed", prompts, seed=2)
    assert weights(other) != weights(adapter)


def test_the_split_over_device_batches_and_checkpointing_do_not_matter(base: Path, previous: Path, tmp_path: Path) -> None:
    first = []
    for rows, checkpointing in ((32, False), (1, False), (3, True)):
        engine = open_micro(base, per_device_train_batch_size=rows, gradient_checkpointing=checkpointing)
        _, metrics = train_sampler(
            engine, previous, tmp_path / str(rows), PROMPTS * 13, epochs=1, batch_size=39, max_grad_norm=0.0
        )
        first.append([metrics[0]["loss"], metrics[0]["grad_norm"]])
    assert first[0] == pytest.approx(first[1], rel=1e-4)
    assert first[0] == pytest.approx(first[2], rel=1e-4)


def test_what_was_drawn_is_trained_on_again(
    base: Path, previous: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_micro(base)
    drawn = noted_draws(engine, monkeypatch)
    prompts = [(1, first, second) for first in (3, 4, 6) for second in (3, 4, 6)]
    _, metrics = train_sampler(engine, previous, tmp_path / "all", prompts, replay=1.0, explore=0.0)
    assert [sorted(each) for each in drawn] == [prompts]  # the second epoch and the third have nothing to draw
    assert ["log_ratio" in record for record in metrics] == [True, False, False]
    assert len({record["length"] for record in metrics}) == 1
    drawn.clear()
    train_sampler(engine, previous, tmp_path / "none", prompts, replay=1.0, buffer=0, batch_size=3)
    epochs = [[prompt for each in drawn[step : step + 3] for prompt in each] for step in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [prompts] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_learning_rate_that_is_too_high_is_named(base: Path, previous: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^game\.sampler\.learning_rate: 1e\+25 made the loss nan at step 2; lower it"):
        train_sampler(open_micro(base), previous, tmp_path, PROMPTS * 4, replay=1.0, learning_rate=1e25, warmup_ratio=0.0)
