"""Which tables and adapters of the store a stage touches: what a plan counts, and what gc leaves alone, is this and no more.

A stage names what it makes, or makes sure of. What it reads besides, an earlier stage of its game has named.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lowmem_spin.algorithm.game import health_sampling, sampling_params
from lowmem_spin.algorithm.measured import measured_against, measured_answers, measured_logps, samples_judged
from lowmem_spin.algorithm.pair_sources import DatasetPairs, Draw, JudgedSamples, OpponentPairs, Sampling, logps_spec
from lowmem_spin.algorithm.stages import Average, Evaluate, Generate, Inputs, Judge, Score, Stage, Train, TrainSampler
from lowmem_spin.common.keys import digest
from lowmem_spin.config.recipe import Recipe

Places = np.ndarray
"""Numbers of rows of the data, int64; a row has the same number wherever it is drawn."""

SAMPLE = 2**53  # from the number of a row's answer to that of its next one; 1,000 of them are still below 2^63
NO_ROWS = np.arange(0)


@dataclass(frozen=True)
class Touch:
    """A table of the store or an adapter, and which of its rows (of an adapter: the pairs it is trained on)."""

    kind: str  # of what is stored: completions, mixtures, judgements, logps, adapters
    key: str
    side: str  # of log-probs "chosen", "rejected" or the key of what is scored; of an adapter "pairs"; else the kind
    policy: str  # whose completions or log-probs, or the one that is trained
    places: Places
    among: Places | None = None  # all judged answers (K, prompts), if only two of them are asked for


class Gathered:
    """Rows that several ask for, each once, in no order. Most ask for the very same, which is seen without sorting them."""

    def __init__(self) -> None:
        self.places: Places = NO_ROWS
        self._parts: list[Places] = []

    def add(self, places: Places) -> int:
        """How many of these, no two of which are the same, nobody has asked for before."""
        if any(part is places or np.array_equal(part, places) for part in self._parts):
            return 0
        before = len(self.places)
        self._parts.append(places)
        self.places = np.union1d(self.places, places) if before else places
        return len(self.places) - before


@dataclass(frozen=True)
class HeldOutPlaces:
    """The rows on which policies are measured."""

    scored: Places
    health: Places


UNMEASURED = HeldOutPlaces(NO_ROWS, NO_ROWS)


def within_draw(draw: Draw) -> Places:
    """A draw's rows, numbered by their order in it."""
    return np.arange(draw.prompts)


def touches(
    stage: Stage,
    recipe: Recipe,
    inputs: Inputs,
    places: Callable[[Draw], Places] = within_draw,
    held: HeldOutPlaces = UNMEASURED,
) -> Iterator[Touch]:
    """All that a stage touches.

    Args:
        stage: one of game.play(recipe, inputs).
        recipe: says how policies are measured.
        inputs: what the game is played with.
        places: the rows of a draw, in its order. Keys do not depend on it, nor on `held`.
        held: the rows that every policy is measured on.
    """
    match stage:
        case Average(policy=policy):
            yield Touch("adapters", policy, "pairs", policy, NO_ROWS)
        case TrainSampler(policy=policy, draw=draw):
            yield Touch("adapters", policy, "pairs", policy, np.arange(draw.prompts))
        case Train(policy=policy, pairs=pair_source):
            yield Touch("adapters", policy, "pairs", policy, np.arange(pair_source.rows))
        case Generate(pairs=pair_source):
            for policy, answered in _shares(pair_source, places):
                yield _completions(policy, pair_source.sampling, answered)
        case Judge(pairs=pair_source):
            yield Touch("judgements", digest(pair_source.judged), "judgements", pair_source.policy, places(pair_source.draw))
        case Score():
            for side, scored, among in _sides(stage, places):
                yield _logps(stage.policy, inputs, side, scored, among)
        case Evaluate():
            yield from _measured(stage, recipe, inputs, held)


def _completions(policy: str, sampling: Sampling, places: Places) -> Touch:
    kind = "mixtures" if sampling.mixes(policy) else "completions"
    return Touch(kind, sampling.key(policy), kind, policy, places)


def _logps(policy: str, inputs: Inputs, side: str, places: Places, among: Places | None = None) -> Touch:
    return Touch("logps", digest(logps_spec(policy, inputs.learner)), side, policy, places, among)


def _shares(pair_source: OpponentPairs | JudgedSamples, places: Callable[[Draw], Places]) -> list[tuple[str, Places]]:
    """The answers that each policy gives."""
    drawn = places(pair_source.draw)
    return [
        (policy, each_sample(drawn[share.start : share.stop], pair_source.samples)) for policy, share in pair_source.assign()
    ]


def _sides(stage: Score, places: Callable[[Draw], Places]) -> Iterator[tuple[str, Places, Places | None]]:
    """(side, its rows, all judged answers if these are but the best and the worst) of what a policy scores."""
    pair_source = stage.pairs
    match pair_source:
        case DatasetPairs():
            yield from ((side, places(pair_source.draw), None) for side in ("chosen", "rejected"))
        case JudgedSamples():
            table, drawn = pair_source.sampling.key(pair_source.policy), places(pair_source.draw)
            answers = each_sample(drawn, pair_source.samples)
            if stage.every:
                yield table, answers, None
            else:
                best_and_worst = f"{table}/{digest(pair_source.spec())}"
                yield best_and_worst, each_sample(drawn, 2), answers.reshape(pair_source.samples, -1)
        case OpponentPairs():
            answered = _shares(pair_source, places)
            yield "chosen", places(pair_source.draw), None  # each has an opponent, or several
            yield from ((pair_source.sampling.key(policy), rows, None) for policy, rows in answered)


def _measured(stage: Evaluate, recipe: Recipe, inputs: Inputs, held: HeldOutPlaces) -> Iterator[Touch]:
    """What measuring a policy asks for."""
    inputs = inputs.measuring(stage)
    sampling, greedy = health_sampling(recipe, inputs), sampling_params(recipe, inputs, greedy=True)
    for answers in measured_answers(stage, inputs.base, metric=recipe.evaluation.metric != "none"):
        how, rows = (greedy, held.scored) if answers.greedy else (sampling, held.health)
        yield _completions(answers.policy, how, rows)
    yield _logps(stage.policy, inputs, "chosen", held.scored)
    for drawn_from, by in measured_logps(stage, inputs.base):
        yield _logps(by, inputs, sampling.key(drawn_from), held.health)
    if inputs.oracle is not None:
        for other in measured_against(stage, inputs.base):
            judged = digest(samples_judged([stage.policy, other], sampling, inputs.oracle))
            yield Touch("judgements", judged, "judgements", stage.policy, held.health)


def each_sample(places: Places, samples: int) -> Places:
    """A number for each of several answers to each row."""
    return np.concatenate([places + sample * SAMPLE for sample in range(samples)])
