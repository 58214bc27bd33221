"""A recipe's own model on its own rows for some seconds: the rates that `plan --measure` plans with.

Generating, reading prompts, judging, scoring and training are timed apart, each after a first time that does not count.
Batches are those of the game, and no larger than a few seconds allow.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.game import health_sampling
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.algorithm.stages import Judge, Train
from lowmem_spin.common.display import Display
from lowmem_spin.config.choices import JudgeOracle
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.rows import fixed_sample
from lowmem_spin.engines.base import Completion, Generator, Learner, Request
from lowmem_spin.engines.memory import read_shape
from lowmem_spin.engines.passes import planned_passes
from lowmem_spin.engines.pool import ORACLE
from lowmem_spin.engines.training.pair import Pair
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.pairs import question
from lowmem_spin.runner.planning.calibration import Kind, Measurement, device_name
from lowmem_spin.runner.planning.estimates import MEASURED_ANSWERS, judged, shapes
from lowmem_spin.runner.resolved import ResolvedRecipe
from lowmem_spin.store.batches import in_batches

SECONDS = 5.0  # at most for each of generating, judging, scoring and training, or so
LEAST = 1.5  # what is over sooner is done again
PROBED = 4  # tokens of the answers by which the rest is sized
STEPS = 6  # of a training, the first of which does not count


@dataclass(frozen=True)
class Timed:
    """Some work: `tokens` are those that plans count for its kind."""

    rows: int
    tokens: int
    seconds: float


def measure_rates(game: OpenGame, display: Display, work: Path) -> list[Measurement]:
    """Time the game's base. Its rows are those of the game; nothing is stored but a training's files, in the folder `work`."""
    rows, recipe, found = game.rows, game.recipe, game.resolved
    places = fixed_sample(rows.train.ids, min(recipe.runtime.generation_batch_size, len(rows.train)))
    prompts = [rows.train.prompt(place) for place in places]
    adapter, engines = game.tables.base_adapter, game.engines
    requests = [Request(adapter, prompt, number) for number, prompt in enumerate(prompts)]
    with display.start_up("timing generation"):
        generated, read, answers = _generation(engines.generator(), requests, health_sampling(recipe, game.inputs))
    judgings = []
    if not isinstance(recipe.game.oracle, JudgeOracle | None):  # an endpoint's judge may cost money
        with display.start_up("timing the oracle"):
            judgings = _judging(game, engines.generator(), places, answers)
    chosen = [rows.train.chosen(place) for place in places]
    pairs = [row for row in zip(prompts, chosen, (answer.tokens for answer in answers), strict=True) if all(map(len, row))]
    learner = engines.learner()
    with display.start_up("timing scoring"):
        alike = [(prompt, answer.tokens, answer.tokens) for prompt, answer in zip(prompts, answers, strict=True)]
        scored, alone = _scoring(learner, adapter, pairs or alike)
    stage, choices = next(stage for stage in game.stages if isinstance(stage, Train)), found.choices
    machine, oracle = choices.machine, found.judging(choices.machine.dtype)
    played = planned_passes(recipe, read_shape(found.model), machine, choices.generator, choices.learner, oracle)
    with display.start_up("timing training"):
        trained = _training(learner, adapter, pairs, stage.settings, played, work)
    timed: dict[Kind, Timed] = {"generate": generated, "prefill": read, "score": scored, "score alone": alone}
    timed |= {} if trained is None else {"train": trained}
    kinds: list[tuple[Kind, Timed]] = [*timed.items(), *(("judge", one) for one in judgings)]
    return [_record(kind, one, found) for kind, one in kinds]


def _generation(generator: Generator, requests: Sequence[Request], sampling: Sampling) -> tuple[Timed, Timed, list[Completion]]:
    """(answers, prompts, the answers): one batch whole, or as many tokens of it as time allows and the rest in proportion."""

    def answered(most: int) -> tuple[float, list[Completion]]:
        return _timed(lambda: generator.generate(requests, replace(sampling, max_new_tokens=most)), LEAST)

    longest = sampling.max_new_tokens
    generator.generate(requests[:1], replace(sampling, max_new_tokens=1))
    reading, _ = answered(1)
    seconds, answers = answered(min(PROBED, longest))
    step = max(1e-9, (seconds - reading) / max(1, min(PROBED, longest) - 1))
    most = min(longest, max(PROBED, int(SECONDS / step)))
    if most > PROBED:
        seconds, answers = answered(most)
    unended = sum(answer.finish_reason == "length" for answer in answers)
    if unended and most < longest:
        seconds += (longest - most) * max(1e-9, (seconds - reading) / max(1, most - 1))
    tokens = sum(len(answer.tokens) for answer in answers) + unended * (longest - most)
    prompts = sum(len(request.prompt) for request in requests)
    return Timed(len(requests), tokens, seconds), Timed(len(requests), prompts, reading), answers


def _judging(game: OpenGame, generator: Generator, places: Sequence[int], answers: Sequence[Completion]) -> list[Timed]:
    """Prompts, with as many answers each as the game compares, and as held-out ones have: one batch more of the base's own.

    None is judged twice, as a function may remember what it has seen.
    """
    batch, longest, found = game.recipe.runtime.generation_batch_size, game.recipe.generation.max_new_tokens, []
    counts = dict.fromkeys([MEASURED_ANSWERS, *(stage.pairs.samples for stage in game.stages if isinstance(stage, Judge))])
    chosen = [places[number % len(places)] for number in range(max(3, batch // sum(counts)))]
    answering = [place for count in counts for place in chosen for _ in range(count)]
    adapter, rows = game.tables.base_adapter, game.rows.train
    requests = [Request(adapter, rows.prompt(place), number) for number, place in enumerate(answering)]
    cut = min((len(answer.tokens) for answer in answers if answer.finish_reason == "length"), default=longest)
    sampling = replace(health_sampling(game.recipe, game.inputs), max_new_tokens=cut)
    given = [answer for some in in_batches(requests, batch) for answer in generator.generate(some, sampling)]
    texts = (  # one that time has cut goes on as it began
        answer.text * (longest // len(answer.tokens) if answer.finish_reason == "length" else 1) for answer in given
    )
    oracle = game.engines.oracle()
    for count in counts:
        first, second, *rest = [question(game, place, list(islice(texts, count))) for place in chosen]
        oracle.prefer([first])  # which loads a model
        seconds, _ = _timed(lambda second=second: oracle.prefer([second]))
        some = rest[: 1 + int(SECONDS / max(1e-9, seconds))]
        seconds, _ = _timed(lambda some=some: oracle.prefer(some))
        found.append(Timed(len(some), len(some) * count, seconds))
    return found


def _scoring(learner: Learner, adapter: Path | None, pairs: Sequence[tuple[Any, Any, Any]]) -> tuple[Timed, Timed]:
    """(pairs, as a game scores them; single answers, as policies are measured): as many as time allows."""

    def scored(count: int, both: bool) -> list[tuple[Any, Any]]:
        return [(prompt, answer) for prompt, *two in pairs[:count] for answer in two[: 1 + both]]

    learner.score(adapter, scored(1, True))
    few = min(8, len(pairs))
    seconds, _ = _timed(lambda: learner.score(adapter, scored(few, True)))
    count = min(len(pairs), max(few, int(few * SECONDS / seconds)))
    found = []
    for both in (True, False):
        rows = scored(count, both)
        seconds, _ = _timed(lambda rows=rows: learner.score(adapter, rows), LEAST)
        prompts = sum(len(prompt) for prompt, *_ in pairs[:count])  # each is read once
        found.append(Timed(len(rows), prompts + sum(len(answer) for _, answer in rows), seconds))
    return found[0], found[1]


def _training(
    learner: Learner,
    adapter: Path | None,
    pairs: Sequence[tuple[Any, Any, Any]],
    settings: dict[str, Any],
    recipe: Recipe,
    work: Path,
) -> Timed | None:
    """Steps of as many pairs as go through the model at once; None where the data has no answers to pair."""
    if not pairs:
        return None
    tokens = sum(len(part) for pair in pairs for part in pair) / len(pairs)
    together = max(recipe.training.per_device_train_batch_size, int(recipe.training_tokens / tokens))
    batch = min(settings["batch_size"], together)
    asked = [Pair(*pairs[place % len(pairs)]) for place in range(STEPS * batch)]
    stamps: list[tuple[float, int]] = []

    def advance(rows: int, *_: Any, **__: Any) -> None:
        if rows:
            stamps.append((time.perf_counter(), rows))

    one = {**settings, "batch_size": batch, "num_train_epochs": 1}
    learner.train(adapter, asked, {"name": "dpo", "beta": 0.1}, one, work, advance)
    rows = sum(count for _, count in stamps[1:])
    return Timed(rows, round(rows * tokens), stamps[-1][0] - stamps[0][0])


def _timed(work: Callable[[], Any], least: float = 0.0) -> tuple[float, Any]:
    """(seconds that the work takes, what it makes): done again until `least` seconds are over."""
    began, times = time.perf_counter(), 0
    while True:
        made, times = work(), times + 1
        if (spent := time.perf_counter() - began) >= least:
            return spent / times, made


def _record(kind: Kind, timed: Timed, found: ResolvedRecipe) -> Measurement:
    recipe, choices = found.recipe, found.choices
    engine = choices.learner if kind in ("score", "score alone", "train") else choices.generator
    return Measurement(
        device=device_name(choices.machine.device),
        engine=ORACLE if kind == "judge" else engine,
        kind=kind,
        dtype=choices.machine.dtype,
        model=found.model.location,
        parameters=read_shape(found.model).active,
        gradient_checkpointing=recipe.training.gradient_checkpointing,
        batch=timed.rows,
        rows=timed.rows,
        tokens=timed.tokens,
        seconds=timed.seconds,
        shapes=judged(found, timed.tokens // timed.rows) if kind == "judge" else shapes(found),
    )
