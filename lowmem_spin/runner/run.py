"""Plays a game: each stage of game.py through the store's tables, computing only what is not there."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from lowmem_spin.algorithm.game import health_sampling, sampling_params
from lowmem_spin.algorithm.roles import Role
from lowmem_spin.algorithm.stages import Average, Evaluate, Generate, Judge, Score, Stage, Train, TrainSampler, is_baseline
from lowmem_spin.common.display import Display
from lowmem_spin.common.files import DamagedError, json_text, read_text, write_text
from lowmem_spin.common.keys import digest
from lowmem_spin.config.choices import JudgeOracle
from lowmem_spin.config.endpoint_fields import check_key
from lowmem_spin.runner.claim import METRICS, SO_FAR, check_folder, clear_folder
from lowmem_spin.runner.early_stopping import EarlyStop, stops_early
from lowmem_spin.runner.evaluate_policy import Measuring, evaluate_policy, sample_policy
from lowmem_spin.runner.health import Health, summary_line
from lowmem_spin.runner.needless import needless
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.runner.pairs import judged_preferences, opponent_answers, score_pairs, summarize_sampling, training_pairs
from lowmem_spin.runner.planning.forecast import steps_ahead
from lowmem_spin.runner.record import (
    add_seconds,
    keep_code,
    link_iterate,
    note_stop,
    note_user,
    set_damaged_record_aside,
    write_record,
)
from lowmem_spin.runner.run_folder import PICTURES
from lowmem_spin.runner.trackers import Tracker
from lowmem_spin.store import adapters


class Player:
    """One game under way, and what has been found of its policies.

    Args:
        counted: seconds by kind that are in some game's record already; shared by the games of a sweep.
        benchmark_files: {field of `evaluation`: file} of the benchmarks that come after the game, for its record.
        replace: whether another game's results in the folder may go.

    Raises:
        InputError: the folder is another game's, or somebody's; or a judge that is still needed has no key.
    """

    def __init__(
        self,
        game: OpenGame,
        display: Display,
        counted: dict[str, float],
        benchmark_files: Mapping[str, Path] | None = None,
        replace: bool = False,
    ) -> None:
        self.game, self.display, self.counted = game, display, counted
        self.healths: list[Health] = []
        self.unquantized: Health | None = None  # of the base, if it is measured so
        self.stopped: EarlyStop | None = None
        self.needless: Collection[int] = ()  # the id() of stages that are passed over
        _check_judge(game)
        check_folder(game, replace)
        clear_folder(game)
        set_damaged_record_aside(game)
        note_user(game)
        write_record(game, benchmark_files or {})
        keep_code(game)
        trained = [stage.policy for stage in game.stages if isinstance(stage, Train)]
        recipe = game.recipe
        self.tracker = Tracker(
            recipe.output.report_to, game.folder, digest(trained), recipe.model_dump(mode="json"), self._warn
        )

    def _warn(self, line: str) -> None:
        self.display.log(line, "yellow")

    def play(self, stage: Stage, samples_only: bool = False) -> None:
        """One stage; an evaluation's result is kept, logged and said. With `samples_only` it is only prepared."""
        game = self.game
        if (self.stopped is not None and not is_baseline(stage)) or id(stage) in self.needless:
            return
        if not isinstance(stage, Evaluate):
            make(game, stage, self._noting(stage))
            link_iterate(game, stage)
        elif samples_only:
            sample_policy(measured_by(game, stage))
        else:
            health = evaluate_policy(measured_by(game, stage))
            if stage.role is Role.UNQUANTIZED:
                self.unquantized = health
            else:
                self.healths.append(health)
            self._keep_so_far()
            training = None if stage.role in (Role.BASE, Role.UNQUANTIZED) else game.store.manifest(stage.policy)
            self.display.log(self.display.name + summary_line(health, training))
            self.tracker.policy(health, training["metrics"] if training else [])
            self._stop_early(stage)
        self.keep_time()

    def _noting(self, stage: Stage) -> adapters.Note | None:
        """What the tracker takes the records of a training with, if its policy is one that is measured."""
        if not isinstance(stage, Train):
            return None
        measured = [one for one in self.game.stages if isinstance(one, Evaluate) and one.policy == stage.policy]
        return self.tracker.training(measured[0].name, measured[0].role) if measured else None

    def _stop_early(self, stage: Evaluate) -> None:
        if stage.role is not Role.ITERATE:
            return
        before = 0 if self.game.recipe.warm_start is None else 1  # the base of the game is what the warm start made
        self.stopped = stops_early(self.game.recipe.game.stop_when, self.healths[before:])
        if self.stopped is not None:
            note_stop(self.game, vars(self.stopped))
            said = f"the game ends after {self.stopped.after}: {self.stopped.why}; {self.stopped.keep} is the one to keep"
            self.display.log(self.display.name + said, "yellow")

    def _mixed(self, stage: Stage) -> TypeGuard[Train]:
        """Whether opponents of an iterate that has been played answered as mixtures."""
        played = {health.policy for health in self.healths}
        return isinstance(stage, Train) and stage.policy in played and stage.loss["name"] != "sft"

    def play_all(self) -> None:
        """The whole game; what the store already has is not computed again."""
        game, display = self.game, self.display
        display.log(
            f"results in {game.folder}, shared work in {game.store.root}; interrupt whenever you like, run again to continue"
        )
        self.needless = needless([game])
        display.expect([step.rows for step in steps_ahead([(game, stage, False) for stage in game.stages], self.needless)])
        for index, stage in enumerate(game.stages):
            display.begin_step(index)
            display.title = f"[{index + 1}/{len(game.stages)}] "
            self.play(stage)
        with display.timed("report"):
            self.finish()
        display.title = ""

    def _records(self) -> list[dict[str, Any]]:
        """What is known of the policies that were measured, the unquantized base behind the base."""
        base = self.healths[0]
        measured = [base, *([] if self.unquantized is None else [self.unquantized]), *self.healths[1:]]
        return [health.record(base, self.unquantized) for health in measured]

    def _keep_so_far(self) -> None:
        """Write the numbers that there are, for reports on a game that is not finished."""
        if self.healths and not (self.game.folder / METRICS).exists():
            write_text(self.game.folder / SO_FAR, _lines(self._records()))

    def keep_time(self) -> None:
        add_seconds(self.game, self.display.seconds, self.counted)

    def finish(self) -> None:
        """Write the numbers; pictures of other numbers go."""
        note_user(self.game)
        self.tracker.close()
        note_stop(self.game, None if self.stopped is None else vars(self.stopped))
        (self.game.folder / SO_FAR).unlink(missing_ok=True)
        summaries = {
            stage.policy: summarize_sampling(self.game, stage.pairs) for stage in self.game.stages if self._mixed(stage)
        }
        samplers = {policy: {"sampler": summary} for policy, summary in summaries.items() if summary is not None}
        found = [{**record, **samplers.get(record["policy"], {})} for record in self._records()]
        records, earlier = _lines(found), [_lines(found, without) for without in EARLIER]
        metrics = self.game.folder / METRICS
        try:
            before = read_text(metrics)
        except (FileNotFoundError, DamagedError) as error:
            before = None if isinstance(error, FileNotFoundError) else str(error)
        if before == records:
            return
        if before is not None and _contradicts(before, found):
            self._warn(f"{metrics} has other numbers of this game's policies than the store gives; written again")
        if before not in earlier:
            for stale in PICTURES:
                (self.game.folder / stale).unlink(missing_ok=True)
        write_text(metrics, records)


EARLIER = [("held_out", "rows"), ("held_out", "rows", "role", "iteration")]  # what metrics.jsonl was written without


def _contradicts(before: str, found: Sequence[dict[str, Any]]) -> bool:
    """Whether lines of an earlier metrics.jsonl do not read, or have other numbers of the same policies."""
    known = {(record["name"], record["policy"]): json.loads(json_text(record)) for record in found}
    try:
        earlier = [json.loads(json_text(json.loads(line))) for line in before.splitlines()]  # some had NaN
        pairs = [(_keyed(one), _keyed(known.get((one["name"], one["policy"]), one))) for one in earlier]
        numbers = [(value, now.get(name, value)) for one, now in pairs for name, value in one.items()]
        return any(earlier != now for earlier, now in numbers)  # newer records have more
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return True


def _keyed(record: dict[str, Any]) -> dict[str, Any]:
    """A record's numbers, and those of each row, but for what evaluation.metric gives, which is in no key: another one is no
    contradiction."""
    each = {f"{name} of each row": numbers for name, numbers in record.get("rows", {}).items()}
    numbers = {name: value for name, value in record.items() if name != "rows"} | each
    return {name: value for name, value in numbers.items() if not name.startswith(("gain", "regex", "function"))}


def _lines(records: Sequence[dict[str, Any]], without: Sequence[str] = ()) -> str:
    """metrics.jsonl, or as an earlier version wrote it."""
    return "".join(json_text({name: v for name, v in one.items() if name not in without}) + "\n" for one in records)


def _check_judge(game: OpenGame) -> None:
    """Refuse before anything is computed what the first question to a judge would be refused for; a game that is played to
    its end asks it nothing."""
    judge, trained = game.recipe.game.oracle, [stage.policy for stage in game.stages if isinstance(stage, Train)]
    oracle = game.resolved.oracle
    if isinstance(judge, JudgeOracle) and oracle is not None and not all(map(game.store.adapter, trained)):
        from lowmem_spin.engines.oracles.judge import LLMJudge

        if judge.api_key_env is not None:
            check_key("game.oracle", judge.api_key_env)
        if isinstance(oracle, LLMJudge):
            oracle.endpoint.reach()


def measured_by(game: OpenGame, stage: Evaluate) -> Measuring:
    """What the policy of an evaluation is measured by."""
    recipe, inputs = game.recipe, game.inputs.measuring(stage)
    return Measuring(
        tables=(game.unquantized if stage.role is Role.UNQUANTIZED else None) or game.tables,
        stage=stage,
        held=game.rows.held,
        sampling=health_sampling(recipe, inputs),
        greedy=sampling_params(recipe, inputs, greedy=True),
    )


def _called(stage: Train) -> str:
    """A training's name for people."""
    return f"plain {stage.name}" if stage.role is Role.BASELINE else stage.name


def make(game: OpenGame, stage: Stage, note: adapters.Note | None = None) -> None:
    """Make sure that the store has what this stage makes; `note` is given a training's records as they come."""
    match stage:
        case Average():
            adapters.average(game.tables, stage)
        case TrainSampler(draw=draw):
            adapters.train_sampler(
                game.tables, stage, lambda: [game.rows.train.prompt(place) for place in game.positions(draw)]
            )
        case Generate(pairs=pair_source):
            opponent_answers(game, pair_source)
        case Judge(pairs=judged_samples):
            judged_preferences(game, judged_samples)
        case Score():
            score_pairs(game, stage)
        case Train():
            adapters.train(game.tables, stage, lambda: training_pairs(game, stage), _called(stage), note)
        case _:
            raise TypeError(f"{type(stage).__name__} is not made by a step")
