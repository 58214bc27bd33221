"""Plays a game: each stage of game.py through the store's tables, computing only what is not there."""

import json
from pathlib import Path
from typing import TypeGuard

from lowmem_spin import evaluating
from lowmem_spin.algorithm.game import sampling
from lowmem_spin.algorithm.stages import Amortise, Average, Evaluate, Generate, Judge, Score, Stage, Train, is_yardstick
from lowmem_spin.common.display import Display
from lowmem_spin.common.keys import digest
from lowmem_spin.config.choices import in_words
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.evaluation.brake import Stop, stop
from lowmem_spin.evaluation.health import Health, evaluate, sample
from lowmem_spin.opening import Game, Shared, open_game
from lowmem_spin.pairing import answers, judged, sampled, score, training_pairs
from lowmem_spin.records import add_seconds, link_iterate, note_stop, write_record
from lowmem_spin.report import table
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
        display.title = ""
        try:
            evaluating.at_the_end([game], display)
        finally:  # without a judge that has gone away, or what else a benchmark needs, the game is still played
            with display.timed("report"):
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
        self.stopped: Stop | None = None
        evaluating.check(game)
        write_record(game)
        trained = [stage.policy for stage in game.stages if isinstance(stage, Train)]
        recipe = game.recipe
        self.tracker = Tracker(recipe.output.report_to, game.folder, digest(trained), recipe.model_dump(mode="json"))

    def play(self, stage: Stage, samples_only: bool = False) -> None:
        """One stage; an evaluation's result is kept, logged and said. With `samples_only` it is only prepared."""
        game = self.game
        if self.stopped is not None and not is_yardstick(stage):
            return
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
            self._brake(stage)
        self.keep_time()

    def _brake(self, stage: Evaluate) -> None:
        if not stage.name.startswith("iterate "):
            return
        before = 0 if self.game.recipe.warm_start is None else 1  # the base of the game is what the warm start made
        self.stopped = stop(self.game.recipe.game.stop_when, self.healths[before:])
        if self.stopped is not None:
            note_stop(self.game, vars(self.stopped))
            said = f"the game ends after {self.stopped.after}: {self.stopped.why}; {self.stopped.keep} is the one to keep"
            self.display.say(self.display.name + said, "yellow")

    def _mixed(self, stage: Stage) -> TypeGuard[Train]:
        """Whether opponents of an iterate that has been played answered as mixtures."""
        played = {health.policy for health in self.healths}
        return isinstance(stage, Train) and stage.policy in played and stage.loss["name"] != "sft"

    def keep_time(self) -> None:
        add_seconds(self.game, self.display.seconds, self.counted)

    def finish(self) -> None:
        """Write the numbers; pictures of other numbers go."""
        self.tracker.close()
        note_stop(self.game, None if self.stopped is None else vars(self.stopped))
        base = self.healths[0]
        samplers = {stage.policy: sampled(self.game, stage.pairs) for stage in self.game.stages if self._mixed(stage)}
        found = [{**health.record(base), "sampler": samplers.get(health.policy)} for health in self.healths]
        records = "".join(json.dumps({name: v for name, v in one.items() if v is not None}) + "\n" for one in found)
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
    last = sum(health.name.startswith("iterate ") for health in healths) - 1
    display.say(f"adapters {game.folder / 'iterates'}/0..{last}")
    display.say(f"numbers  {game.folder / 'metrics.jsonl'}")


def step(game: Game, stage: Stage) -> None:
    """Make sure that the store has what this stage makes."""
    match stage:
        case Average():
            game.tables.average(stage)
        case Amortise(draw=draw):
            game.tables.amortise(stage, lambda: [game.rows.prompt(place) for place in game.places(draw)])
        case Generate(pairs=lesson):
            answers(game, lesson)
        case Judge(pairs=contest):
            judged(game, contest)
        case Score():
            score(game, stage)
        case Train():
            link_iterate(game, stage, game.tables.train(stage, lambda: training_pairs(game, stage), stage.name))
        case _:
            raise TypeError(f"{type(stage).__name__} is not made by a step")
