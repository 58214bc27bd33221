"""The alpha-SPIN game: Algorithm 2 of Alami et al. (arXiv 2404.04291). Pure Python; nothing runs here.

A policy is a string: its key. The base has one, and an iterate's is the key of the training that makes it,
so the policies of a whole game are known before the first token is generated.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lowmem_spin.keys import digest
from lowmem_spin.recipe import Game, Recipe

# Bumped by hand when a stage of this kind would compute something else from the same inputs.
VERSIONS = {"data": 1, "generate": 1, "score": 1, "train": 1}

Mixture = dict[str, float]
"""{policy: weight}: no policy twice, no zero weight, weights summing to 1, newest policy first."""


def mixture(weighted: Iterable[tuple[str, float]]) -> Mixture:
    """Merge equal policies and drop zero weights, keeping the order of first mention."""
    merged: Mixture = {}
    for policy, weight in weighted:
        if weight < 0:
            raise ValueError(f"the weight of {policy} is negative: {weight}")
        merged[policy] = merged.get(policy, 0.0) + weight
    return {policy: weight for policy, weight in merged.items() if weight > 0}


def reference(previous: str, base: str, alpha: float) -> Mixture:
    """pi_ref ∝ previous^alpha * base^(1 - alpha), the geometric mixture (section 3.1), as {policy: exponent}.

    Its normaliser depends on the prompt alone, so it cancels between two completions of one prompt.
    """
    if previous == base:
        return {base: 1.0}
    return mixture([(previous, alpha), (base, 1 - alpha)])


def reference_over_history(iterates: Sequence[str], base: str, alpha: float) -> Mixture:
    """All of theta_0 .. theta_{t-1} share alpha equally, and the base has the rest; not in the paper."""
    if not iterates:
        return {base: 1.0}
    return mixture([*((policy, alpha / len(iterates)) for policy in reversed(iterates)), (base, 1 - alpha)])


def opponents(iterates: Sequence[str], base: str, history: int | None, weights: str = "algorithm") -> Mixture:
    """Uniform over the last `history` policies; before the first iterate there is only the base (Algorithm 2).

    Args:
        iterates: theta_0 .. theta_{t-1}, oldest first.
        base: the policy before the first iterate.
        history: how many past policies play; None is fictitious play, all of theta_0 .. theta_{t-1}.
        weights: "algorithm" counts the base once for every iterate that does not exist yet;
            "distinct" counts each distinct policy once (section 4.1). They differ only for history >= 3.
    """
    if history is not None and history < 1:
        raise ValueError(f"history must be at least 1, or None for all of it, not {history}")
    if not iterates:
        return {base: 1.0}
    window = len(iterates) if history is None else history
    past = [*reversed(iterates), *[base] * max(0, window - len(iterates))][:window]
    if weights == "distinct":
        past = list(dict.fromkeys(past))
    counts = mixture((policy, 1.0) for policy in past)
    return {policy: count / len(past) for policy, count in counts.items()}


def shares(count: int, weights: Mixture) -> list[tuple[str, range]]:
    """Cut `count` places into one contiguous range per policy, exact to the largest remainder.

    Newest policy first: what it answers with a history of 2 is then a part of what it answers with 1.
    """
    exact = [count * weight for weight in weights.values()]
    sizes = [int(size + 1e-9) for size in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda index: (sizes[index] - exact[index], index))
    for index in by_remainder[: count - sum(sizes)]:
        sizes[index] += 1
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    return [(policy, range(a, a + size)) for policy, a, size in zip(weights, starts, sizes, strict=True) if size]


@dataclass(frozen=True)
class Inputs:
    """What the game is played with, resolved on this machine: keys and identities, no paths."""

    base: str  # key of the base policy
    data: str  # key of the prepared training rows
    generator: dict[str, Any]  # engine, weight form and dtype of generation
    learner: dict[str, Any]  # engine and dtype of scoring and training


@dataclass(frozen=True)
class Draw:
    """`prompts` rows of the data, a pure function of (seed, round) and of the rows themselves."""

    data: str
    seed: int
    round: int | None  # None: every iteration takes the head of one and the same order
    prompts: int

    def identity(self) -> dict[str, Any]:
        return {"data": self.data, "seed": self.seed, "round": self.round, "prompts": self.prompts}


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: everything but the policy and the prompt."""

    temperature: float
    top_p: float
    top_k: int | None
    max_new_tokens: int
    seed: int
    generator: dict[str, Any]

    def asked(self, policy: str) -> dict[str, Any]:
        """What names the table of this policy's completions; its digest is the table's key."""
        greedy = self.temperature == 0
        settings = {
            "temperature": self.temperature,
            "top_p": 1.0 if greedy else self.top_p,
            "top_k": None if greedy else self.top_k,
            "max_new_tokens": self.max_new_tokens,
            "seed": 0 if greedy else self.seed,
        }
        identity = {"policy": policy, "sampling": settings, "generator": self.generator}
        return {"kind": "generate", "version": VERSIONS["generate"], **identity}


def logps_asked(policy: str, learner: dict[str, Any]) -> dict[str, Any]:
    """What names the table of a policy's log-probs, as the learner computes them."""
    return {"kind": "score", "version": VERSIONS["score"], "policy": policy, "learner": learner}


@dataclass(frozen=True)
class Pairs:
    """The pairs of one iteration: the data's answer against an opponent's, prompt by prompt."""

    draw: Draw
    opponents: Mixture
    concatenate: bool  # every opponent answers every prompt, instead of each prompt having one opponent
    sampling: Sampling

    def assign(self) -> list[tuple[str, range]]:
        """Which places of the draw each opponent answers."""
        if self.concatenate:
            return [(policy, range(self.draw.prompts)) for policy in self.opponents]
        return shares(self.draw.prompts, self.opponents)

    @property
    def rows(self) -> int:
        return sum(len(places) for _, places in self.assign())

    def identity(self) -> dict[str, Any]:
        # Every opponent answers everything when concatenated: their weights mean nothing then.
        tables = {digest(self.sampling.asked(p)): 1.0 if self.concatenate else w for p, w in self.opponents.items()}
        return {"draw": self.draw.identity(), "opponents": tables, "concatenate": self.concatenate}


@dataclass(frozen=True)
class Generate:
    """All opponents of an iteration answer their prompts."""

    pairs: Pairs


@dataclass(frozen=True)
class Score:
    """One policy of the reference gives the log-probs of both sides of every pair."""

    pairs: Pairs
    policy: str


@dataclass(frozen=True)
class Train:
    """One iterate: from `init`, tell the data's answers from the opponents', relative to the reference."""

    name: str
    pairs: Pairs
    reference: Mixture
    init: str
    loss: dict[str, Any]
    settings: dict[str, Any]  # LoRA, optimiser, schedule, effective batch, seed, learner
    combine: str = "geometric"  # how the reference's policies become one; see references.py

    @property
    def policy(self) -> str:
        """Key of this training, and so of the policy that it makes."""
        return digest(self.asked())

    def asked(self) -> dict[str, Any]:
        """Everything that decides the result, inputs by their keys."""
        pairs = self.pairs.identity()
        if self.loss["name"] == "sft":  # no opponents: only the data's answers, as often as they occur in pairs
            pairs = {"draw": pairs["draw"], "repeats": self.pairs.rows // self.pairs.draw.prompts}
        tables = {digest(logps_asked(policy, self.settings["learner"])): w for policy, w in self.reference.items()}
        asked = {"pairs": pairs, "reference": tables, "init": self.init, "loss": self.loss}
        if self.combine != "geometric" and len(tables) > 1:  # one policy is itself, however it is combined
            asked["combine"] = self.combine
        return {"kind": "train", "version": VERSIONS["train"], **asked, "settings": self.settings}


@dataclass(frozen=True)
class Evaluate:
    """Held-out scores and health of one policy; `previous` is what its drift is measured from."""

    name: str
    policy: str
    previous: str


Stage = Generate | Score | Train | Evaluate


def play(recipe: Recipe, inputs: Inputs) -> Iterator[Stage]:
    """The stages of the whole game in order (Algorithm 2)."""
    game, base = recipe.game, inputs.base
    iterates: list[str] = []
    yield Evaluate("base", base, base)
    for t in range(game.iterations):
        previous = iterates[-1] if iterates else base
        negatives = opponents(iterates, base, game.window, game.weights)
        anchor = _anchor(game, iterates, base)
        pairs = _pairs(recipe, inputs, t, negatives)
        init = previous if game.init == "previous" else base
        settings = _settings(recipe, inputs, t)
        train = Train(f"iterate {t}", pairs, anchor, init, game.loss.model_dump(), settings, game.reference)
        yield Generate(pairs)
        for policy in anchor:
            yield Score(pairs, policy)
        yield train
        yield Evaluate(train.name, train.policy, previous)
        iterates.append(train.policy)
    if recipe.evaluation.compare_sft:
        yield from _plain_sft(recipe, inputs)


def _anchor(game: Game, iterates: Sequence[str], base: str) -> Mixture:
    """What the next iterate is held to."""
    if game.loss.name == "slic":
        return {}  # it has no reference
    if game.reference_over == "history":
        return reference_over_history(iterates, base, game.alpha)
    return reference(iterates[-1] if iterates else base, base, game.alpha)


def _pairs(recipe: Recipe, inputs: Inputs, t: int, negatives: Mixture) -> Pairs:
    pairs, game = recipe.pairs_at(t), recipe.game
    concatenate = game.pairing == "concatenate" and len(negatives) > 1
    prompts = max(1, pairs // len(negatives)) if concatenate else pairs
    draw = Draw(inputs.data, recipe.seed, t if recipe.data.resample else None, prompts)
    return Pairs(draw, negatives, concatenate, sampling(recipe, inputs))


def sampling(recipe: Recipe, inputs: Inputs, greedy: bool = False) -> Sampling:
    """How opponents answer; greedy is how held-out tasks are answered."""
    asked = recipe.generation
    temperature = 0.0 if greedy else asked.temperature
    return Sampling(temperature, asked.top_p, asked.top_k, asked.max_new_tokens, recipe.seed, inputs.generator)


def _settings(recipe: Recipe, inputs: Inputs, t: int) -> dict[str, Any]:
    """What decides a training's result, its split over devices left out."""
    memory_knobs = {"engine", "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"}
    settings = recipe.training.model_dump(exclude=memory_knobs)
    effective = recipe.training.per_device_train_batch_size * recipe.training.gradient_accumulation_steps
    return {**settings, "batch_size": effective, "seed": recipe.seed, "iteration": t, "learner": inputs.learner}


def _plain_sft(recipe: Recipe, inputs: Inputs) -> Iterator[Stage]:
    """Ordinary fine-tuning on the same rows for as many steps: what self-play has to be measured against."""
    policy = inputs.base
    iterates: list[str] = []
    for t in range(recipe.game.iterations):
        # The opponents' count decides how often a row occurs; their identity does not matter to SFT.
        negatives = opponents(iterates, inputs.base, recipe.game.window, recipe.game.weights)
        pairs = _pairs(recipe, inputs, t, negatives)
        train = Train(f"SFT {t}", pairs, {}, policy, {"name": "sft"}, _settings(recipe, inputs, t))
        yield train
        policy = train.policy
        iterates.append(f"iterate {t}")
    yield Evaluate("plain SFT", policy, inputs.base)
