"""Plays a game: each stage of game.py through the store's tables, computing only what is not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lowmem_spin.display import Display
from lowmem_spin.evaluation.health import Health, evaluate, sample
from lowmem_spin.game import Evaluate, Generate, Pairs, Score, Stage, Train, sampling
from lowmem_spin.keys import digest
from lowmem_spin.opening import Game, Shared, open_game
from lowmem_spin.recipe import Recipe, in_words
from lowmem_spin.records import add_seconds, link_iterate, write_record
from lowmem_spin.references import REFERENCES
from lowmem_spin.report import table
from lowmem_spin.tables import Answer, Prompt, Scored
from lowmem_spin.trackers import Tracker

PICTURES = ("iterates.png", "report.html")


def run(recipe: Recipe, beside: Path, display: Display) -> list[Health]:
    """Play the whole game; what the store already has is not computed again."""
    counted, shared = dict(display.seconds), Shared()
    game = open_game(recipe, beside, display, shared)
    player = Player(game, display, counted)
    display.say(f"results in {game.folder}, shared work in {game.store.root}; interrupt whenever you like, run again to go on")
    try:
        for place, stage in enumerate(game.stages):
            display.title = f"[{place + 1}/{len(game.stages)}] "
            player.play(stage)
        with display.timed("report"):
            player.finish()
            show(game, player.healths, display)
        with display.timed("shut-down"):
            shared.engines.close()
    finally:
        player.keep_time()
    return player.healths


class Player:
    """One game under way, and what has been found of its policies.

    Args:
        counted: seconds by kind that are in some game's record already; shared by the games of a sweep.
    """

    def __init__(self, game: Game, display: Display, counted: dict[str, float]) -> None:
        self.game, self.display, self.counted = game, display, counted
        self.healths: list[Health] = []
        write_record(game)
        trained = [stage.policy for stage in game.stages if isinstance(stage, Train)]
        recipe = game.recipe
        self.tracker = Tracker(recipe.output.report_to, game.folder, digest(trained), recipe.model_dump(mode="json"))

    def play(self, stage: Stage, samples_only: bool = False) -> None:
        """One stage; an evaluation's result is kept, logged and said. With `samples_only` it is only prepared."""
        game = self.game
        if not isinstance(stage, Evaluate):
            step(game, stage)
        elif samples_only:
            own, greedy = (sampling(game.recipe, game.inputs, greedy=greedy) for greedy in (False, True))
            sample(game.tables, stage, game.held, own, greedy)
        else:
            greedy = sampling(game.recipe, game.inputs, greedy=True)
            health = evaluate(game.tables, stage, game.held, sampling(game.recipe, game.inputs), greedy)
            self.healths.append(health)
            training = None if stage.policy == game.inputs.base else game.store.manifest(stage.policy)
            self.display.say(self.display.name + table.line(health, training))
            self.tracker.policy(health, training["metrics"] if training else [])
        self.keep_time()

    def keep_time(self) -> None:
        add_seconds(self.game, self.display.seconds, self.counted)

    def finish(self) -> None:
        """Write the numbers; pictures of other numbers go."""
        self.tracker.close()
        records = "".join(json.dumps(health.record(self.healths[0])) + "\n" for health in self.healths)
        metrics = self.game.folder / "metrics.jsonl"
        if not (metrics.exists() and metrics.read_text(encoding="utf-8") == records):
            for stale in PICTURES:
                (self.game.folder / stale).unlink(missing_ok=True)
            metrics.write_text(records, encoding="utf-8")


def show(game: Game, healths: list[Health], display: Display) -> None:
    """The table, the picture, and where everything is."""
    picture, page = (game.folder / name for name in PICTURES)
    if not (picture.exists() and page.exists()):
        from lowmem_spin.report.figures import draw
        from lowmem_spin.report.page import write_page
        from lowmem_spin.report.reading import read

        g = game.recipe.game
        title = f"{g.algorithm}, alpha {g.alpha}, history {g.history}, {in_words(g.loss.model_dump())}"
        draw(healths, f"{game.folder.name}: {title}", picture)
        write_page(read(game.folder))
    display.console.print(table.results(healths))
    display.say(f"picture  {picture}")
    display.say(f"report   {page}")
    display.say(f"adapters {game.folder / 'iterates'}/0..{game.recipe.game.iterations - 1}")
    display.say(f"numbers  {game.folder / 'metrics.jsonl'}")


def step(game: Game, stage: Generate | Score | Train) -> None:
    """Make sure that the store has what this stage makes."""
    match stage:
        case Generate(pairs=pairs):
            _negatives(game, pairs)
        case Score(pairs=pairs, policy=policy):
            _pair_logps(game, pairs, policy)
        case Train():
            link_iterate(game, stage, game.tables.train(stage, lambda: training_pairs(game, stage), stage.name))


def _name(game: Game, policy: str) -> str:
    named = {stage.policy: stage.name for stage in game.stages if isinstance(stage, Train)}
    return named.get(policy, "base")


def _negatives(game: Game, pairs: Pairs) -> list[tuple[int, Answer]]:
    """(place of the row, the opponent's answer) for every pair of an iteration."""
    places = game.places(pairs)
    shares = [(policy, [places[index] for index in share]) for policy, share in pairs.assign()]
    asked = [(policy, [Prompt(game.rows.ids[place], game.rows.prompt(place)) for place in mine]) for policy, mine in shares]
    label = "by " + ", ".join(_name(game, policy) for policy, _ in shares)
    answers = game.tables.answers(asked, pairs.sampling, label)
    return [pair for (_, mine), given in zip(shares, answers, strict=True) for pair in zip(mine, given, strict=True)]


def _pair_logps(game: Game, pairs: Pairs, policy: str) -> tuple[Any, Any]:
    """The policy's log-probs of both sides of every pair: two arrays (rows,)."""
    rows = game.rows
    negatives = _negatives(game, pairs)
    chosen = [Scored(rows.ids[place], rows.prompt(place), "chosen", rows.chosen(place)) for place, _ in negatives]
    rejected = [Scored(rows.ids[place], rows.prompt(place), answer.name, answer.tokens) for place, answer in negatives]
    both = game.tables.logps(policy, [*chosen, *rejected], f"by {_name(game, policy)}")
    return both[: len(chosen)], both[len(chosen) :]


def _reference(game: Game, stage: Train) -> tuple[Any, Any]:
    """The reference's log-probs of both sides of every pair: two arrays (rows,)."""
    chosen, rejected = zip(*(_pair_logps(game, stage.pairs, policy) for policy in stage.reference), strict=True)
    combine, weights = REFERENCES[stage.combine], list(stage.reference.values())
    return combine(weights, chosen), combine(weights, rejected)


def training_pairs(game: Game, stage: Train) -> list[Any]:
    """What a stage learns from: training.Pair with both sides and their reference log-probs."""
    from lowmem_spin.training import Pair

    rows = game.rows
    if stage.loss["name"] == "sft":
        repeats = stage.pairs.rows // stage.pairs.draw.prompts
        return [Pair(rows.prompt(place), rows.chosen(place)) for place in game.places(stage.pairs) for _ in range(repeats)]
    negatives = _negatives(game, stage.pairs)
    ref_chosen, ref_rejected = _reference(game, stage) if stage.reference else (np.zeros(len(negatives)),) * 2
    return [
        Pair(rows.prompt(place), rows.chosen(place), answer.tokens, float(good), float(bad))
        for (place, answer), good, bad in zip(negatives, ref_chosen, ref_rejected, strict=True)
    ]
