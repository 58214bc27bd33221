"""Self-play games, stage by stage: Algorithm 2 of Alami et al. (arXiv 2404.04291), and SPPO by the same loop.

Pure Python; nothing runs here. What the stages are made of is in stages.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lowmem_spin.algorithm.own_functions import BASE_LOGPS, REFERENCE, in_place, is_whole, reads
from lowmem_spin.algorithm.pair_sources import DatasetPairs, Draw, JudgedSamples, Mixture, OpponentPairs, PairSource, Sampling
from lowmem_spin.algorithm.roles import PLAIN_SFT, UNQUANTIZED_BASE, Role
from lowmem_spin.algorithm.settings import training_settings
from lowmem_spin.algorithm.stages import Average, Evaluate, Generate, Inputs, Judge, Score, Stage, Train, TrainSampler
from lowmem_spin.config.choices import GFlowNet
from lowmem_spin.config.game_config import OwnReference
from lowmem_spin.config.loss_choices import IPO, OwnLoss
from lowmem_spin.config.per_iteration import values_at
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.config.training_config import WarmStart


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


def moving_average(iterates: Sequence[str], base: str, alpha: float) -> Mixture:
    """ref_t = alpha * theta_{t-1} + (1 - alpha) * ref_{t-1}, ref_0 being the base, as {policy: weight}; not in the paper."""
    if not iterates:
        return {base: 1.0}
    newest = [(policy, alpha * (1 - alpha) ** age) for age, policy in enumerate(reversed(iterates))]
    return mixture([*newest, (base, (1 - alpha) ** len(iterates))])


def opponents(iterates: Sequence[str], base: str, history: int | None, weights: str | Sequence[float] = "algorithm") -> Mixture:
    """Uniform over the last `history` policies; before the first iterate there is only the base (Algorithm 2).

    Args:
        iterates: theta_0 .. theta_{t-1}, oldest first.
        base: the policy before the first iterate.
        history: how many past policies play; None is fictitious play, all of theta_0 .. theta_{t-1}.
        weights: "algorithm" counts the base once for every iterate that does not exist yet;
            "distinct" counts each distinct policy once (section 4.1). They differ only for history >= 3.
            Numbers, one for each of the `history` last policies and newest first, take the place of "uniform".
    """
    if history is not None and history < 1:
        raise ValueError(f"history must be at least 1, or None for all of it, not {history}")
    if not iterates:
        return {base: 1.0}
    window = len(iterates) if history is None else history
    past = [*reversed(iterates), *[base] * max(0, window - len(iterates))][:window]
    if not isinstance(weights, str):
        return mixture((policy, weight / sum(weights)) for policy, weight in zip(past, weights, strict=True))
    if weights == "distinct":
        past = list(dict.fromkeys(past))
    counts = mixture((policy, 1.0) for policy in past)
    return {policy: count / len(past) for policy, count in counts.items()}


def play(recipe: Recipe, inputs: Inputs) -> Iterator[Stage]:
    """The stages of the whole game in order (Algorithm 2, and SPPO's Algorithm 1)."""
    game, base = recipe.game, inputs.base
    if inputs.unquantized is not None:  # first, so that its weights are gone before the game's are loaded
        own = inputs.unquantized["base"]
        yield Evaluate(UNQUANTIZED_BASE, Role.UNQUANTIZED, None, own, own)
    yield Evaluate("base", Role.BASE, None, base, base)
    if recipe.warm_start is not None:
        warm = _warm_start(recipe.warm_start, recipe, inputs)
        yield warm
        yield Evaluate(warm.name, warm.role, None, warm.policy, base)
        base = warm.policy
    iterates: list[str] = []
    amortized: dict[str, str] = {}  # iterate -> what has learned to answer as its mixture with the base
    for t in range(game.iterations):
        previous = iterates[-1] if iterates else base
        reference = _reference(recipe, inputs, iterates, base)
        if isinstance(reference, Average):
            yield reference
            reference = {reference.policy: 1.0}
        negatives = _opponents(recipe, inputs, iterates, base)
        fine_tunings = _train_samplers(
            recipe, inputs, t, [policy for policy in negatives if policy not in (base, *amortized)], base
        )
        yield from fine_tunings
        amortized |= {fine_tuning.previous: fine_tuning.policy for fine_tuning in fine_tunings}
        negatives = {amortized.get(policy, policy): weight for policy, weight in negatives.items()}
        pair_source = _pair_source(recipe, inputs, t, negatives, base)
        train = _train(recipe, inputs, t, pair_source, reference, previous if game.init == "previous" else base, base)
        if isinstance(pair_source, OpponentPairs | JudgedSamples):
            yield Generate(pair_source)
        if isinstance(pair_source, JudgedSamples):
            yield Judge(pair_source)
        for policy in {**reference, **({train.penalty_reference: 0} if train.penalty_reference else {})}:
            yield Score(pair_source, policy, every=train.normalise)
        yield train
        yield Evaluate(train.name, train.role, t, train.policy, previous)
        iterates.append(train.policy)
    if recipe.evaluation.compare_sft:
        yield from _plain_sft(recipe, inputs, base)


def _reference(recipe: Recipe, inputs: Inputs, iterates: Sequence[str], base: str) -> Mixture | Average:
    """The reference for the next iterate's loss."""
    game = recipe.game
    if game.loss.name == "slic" or (isinstance(game.loss, OwnLoss) and not reads(game, inputs, REFERENCE)):
        return {}  # it has no reference
    if isinstance(game.reference, OwnReference):
        return in_place(inputs.reference, iterates, base)
    if game.reference_over == "history":
        return reference_over_history(iterates, base, game.alpha)
    if game.reference == "ema":
        averaged = moving_average(iterates, base, game.alpha)
        rank = None if game.ema == "exact" else recipe.training.lora.r
        return averaged if len(averaged) == 1 else Average(f"average {len(iterates)}", averaged, rank)
    return reference(iterates[-1] if iterates else base, base, game.alpha)


def _opponents(recipe: Recipe, inputs: Inputs, iterates: Sequence[str], base: str) -> Mixture:
    """Who answers; the base has its own share first. What an oracle judges is the last iterate's."""
    game = recipe.game
    if game.algorithm == "sppo":
        return {iterates[-1] if iterates else base: 1.0}
    if game.opponents is not None:
        return in_place(inputs.opponents, iterates, base)
    past = opponents(iterates, base, game.window, game.weights)
    rest = [(policy, weight * (1 - game.base_weight)) for policy, weight in past.items()]
    return mixture([*rest, (base, game.base_weight)])


def _pair_source(recipe: Recipe, inputs: Inputs, t: int, negatives: Mixture, base: str) -> PairSource:
    """Which two answers to each prompt the next iterate learns to tell apart."""
    game = recipe.game
    if game.algorithm == "offline":
        return DatasetPairs(_draw(recipe, inputs, t, recipe.pairs_at(t)))
    if game.algorithm == "sppo":
        draw, (answering,) = _draw(recipe, inputs, t, recipe.pairs_at(t)), negatives
        sampling = sampling_params(recipe, inputs, mixed_with=base)
        return JudgedSamples(draw, answering, game.samples, sampling, inputs.oracle or {}, game.win_rates)
    return _pairs(recipe, inputs, t, negatives, base)


def _pairs(recipe: Recipe, inputs: Inputs, t: int, negatives: Mixture, base: str) -> OpponentPairs:
    pairs, game = recipe.pairs_at(t), recipe.game
    concatenate = game.pairing == "concatenate" and len(negatives) > 1
    draw = _draw(recipe, inputs, t, max(1, pairs // len(negatives)) if concatenate else pairs)
    return OpponentPairs(draw, negatives, concatenate, sampling_params(recipe, inputs, mixed_with=base))


def _draw(recipe: Recipe, inputs: Inputs, t: int, prompts: int) -> Draw:
    if recipe.data.resample == "split":
        return Draw(inputs.data, recipe.seed, None, prompts, start=recipe.split_start(t))
    return Draw(inputs.data, recipe.seed, t if recipe.data.resample else None, prompts)


def _train(recipe: Recipe, inputs: Inputs, t: int, pair_source: PairSource, reference: Mixture, init: str, base: str) -> Train:
    game = recipe.game
    loss, penalties = _loss(recipe, inputs, t), game.regularizer.weights
    if penalties:
        loss |= {"penalties": penalties, **game.regularizer.model_dump(include={"clamp", "importance"})}
        if loss["importance"] == "corrected":
            loss["importance"] = "clamped"  # as weights were not at first, so that it is another training
    return Train(
        name=f"iterate {t}",
        role=Role.ITERATE,
        iteration=t,
        pairs=pair_source,
        reference=reference,
        init=init,
        loss=loss,
        settings=_settings(recipe, inputs, t),
        combine=game.combine,
        normalise=game.normalizer == "estimated" and bool(reference) and not is_whole(reference),
        penalty_reference=base if penalties or reads(game, inputs, BASE_LOGPS) else None,
    )


def _loss(recipe: Recipe, inputs: Inputs, t: int) -> dict[str, Any]:
    """What iteration t minimises: a name and options. One's own is known by its content, wherever its file is."""
    loss = recipe.game.loss
    if not isinstance(loss, OwnLoss):
        once = {"targets"} if isinstance(loss, IPO) and loss.targets == "hard" else None  # there was no other at first
        return values_at(loss.model_dump(exclude=once), t)
    content, function = (inputs.loss or {}).get("content"), loss.function.rpartition(":")[2]
    return {"name": loss.name, "function": function, "content": content, "options": loss.options}


def _train_samplers(recipe: Recipe, inputs: Inputs, t: int, policies: Sequence[str], base: str) -> list[TrainSampler]:
    """An adapter that answers as its mixture with the base for each of these policies, if such are to play."""
    sampler, alpha = recipe.game.sampler, recipe.game.answering_alpha
    if not isinstance(sampler, GFlowNet) or alpha == 1:
        return []
    taken = recipe.rows_played(t) if sampler.own_prompts else 0
    draw = Draw(inputs.data, recipe.seed, t if recipe.data.resample is True else None, sampler.prompts, start=taken)
    settings = sampler.model_dump(exclude={"name", "prompts", "own_prompts", *(["samples"] if sampler.samples == 1 else [])})
    settings |= {"seed": recipe.seed, "generator": inputs.generator}
    own = sampling_params(recipe, inputs)
    return [TrainSampler(f"sampler {t}", draw, policy, base, alpha, own, settings) for policy in policies]


def sampling_params(recipe: Recipe, inputs: Inputs, greedy: bool = False, mixed_with: str | None = None) -> Sampling:
    """How policies answer; greedy is how held-out tasks are answered.

    Who plays may answer from its mixture with the base, `mixed_with`.
    """
    generation, game = recipe.generation, recipe.game
    alpha = game.answering_alpha
    mixed = mixed_with is not None and game.sampler.name not in ("none", "gflownet") and alpha < 1
    mixture = {"base": mixed_with, "alpha": alpha, "sampler": game.sampler.model_dump()} if mixed else None
    return Sampling(
        temperature=0.0 if greedy else generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
        max_new_tokens=generation.max_new_tokens,
        seed=recipe.seed,
        generator=inputs.generator,
        mixture=mixture,
    )


def health_sampling(recipe: Recipe, inputs: Inputs) -> Sampling:
    """How policies answer where drift is measured: at temperature 1 from all tokens, whatever the game samples with.

    Only then are the answers drawn from the policy whose log-probs are compared, and the mean of their log-ratios is a KL.
    """
    whole = recipe.generation.model_copy(update={"temperature": 1.0, "top_p": 1.0, "top_k": None})
    return sampling_params(recipe.model_copy(update={"generation": whole}), inputs)


def _settings(recipe: Recipe, inputs: Inputs, t: int) -> dict[str, Any]:
    own = {"seed": recipe.seed, "iteration": t, "learner": inputs.learner}
    return {**training_settings(recipe.training, t), **own}


def _warm_start(warm_start: WarmStart, recipe: Recipe, inputs: Inputs) -> Train:
    """Ordinary fine-tuning before the game; the game's base is what comes of it."""
    draw = Draw(inputs.data, recipe.seed, -1 if recipe.data.resample is True else None, warm_start.rows)
    settings = _settings(recipe, inputs, -1) | warm_start.model_dump(exclude={"rows"})  # which has no fields with a list
    return Train(
        name="warm start",
        role=Role.WARM_START,
        iteration=None,
        pairs=DatasetPairs(draw),
        reference={},
        init=inputs.base,
        loss={"name": "sft"},
        settings=settings,
    )


def _plain_sft(recipe: Recipe, inputs: Inputs, base: str) -> Iterator[Stage]:
    """Ordinary fine-tuning on the same rows for as many steps: what self-play has to be measured against."""
    policy = base
    iterates: list[str] = []
    for t in range(recipe.game.iterations):
        # The opponents' count decides how often a row occurs; their identity does not matter to SFT.
        pair_source = _pair_source(recipe, inputs, t, _opponents(recipe, inputs, iterates, base), base)
        train = Train(
            name=f"SFT {t}",
            role=Role.BASELINE,
            iteration=t,
            pairs=pair_source,
            reference={},
            init=policy,
            loss={"name": "sft"},
            settings=_settings(recipe, inputs, t),
        )
        yield train
        policy = train.policy
        iterates.append(f"iterate {t}")
    yield Evaluate(PLAIN_SFT, Role.BASELINE, None, policy, inputs.base)
