"""The work of games in rows, counted before anything runs: what each stage needs, and what games have in common.

A row is one completion generated, one prompt's answers judged, one completion scored, or one pair trained on (once,
however many epochs). Rows are known by what names them in the store, so that what is counted as shared is what the store
will share. Which of a contest's answers are scored is not known before they are judged: they count as a best and a worst
of their own, unless another game scores all of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lowmem_spin.algorithm.stages import (
    Average,
    DatasetPairs,
    Draw,
    Evaluate,
    Generate,
    Judge,
    JudgedSamples,
    OpponentPairs,
    PairSource,
    Sampling,
    Score,
    Stage,
    Train,
    TrainSampler,
    is_baseline,
    judgement_spec,
    logps_spec,
)
from lowmem_spin.common.keys import digest

Places = np.ndarray
"""Numbers of rows of the data, int64; a row has the same number wherever it is drawn."""

GAME_KINDS = ("generate", "judge", "score", "train")
SAMPLE = 2**56  # from the number of a row's answer to that of its next one


@dataclass(frozen=True)
class Need:
    """Rows that a stage asks for, of one table of the store (or of one adapter: the pairs it is trained on)."""

    kind: str  # of the stage that asks: generate, judge, score, train; evaluate and yardstick for what only measures
    table: str  # key of the table or of the adapter
    side: str  # "completions", "mixtures", "judgements", "chosen", "rejected", the key of what is scored, or "pairs"
    policy: str  # whose completions or log-probs, or the one that is trained
    places: Places
    among: Places | None = None  # all answers of a contest (K, prompts), if only two of them are asked for


@dataclass(frozen=True)
class HeldOutPlaces:
    """The rows on which policies are measured."""

    scored: Places
    health: Places
    greedy: Sampling | None  # how held-out tasks are answered, if they are
    oracle: dict[str, Any] | None = None  # identity of what judges samples, if anything does


def needs(
    stages: Sequence[Stage],
    places: Callable[[Draw], Places],
    held: HeldOutPlaces,
    sampling: Sampling,
    base: str,
    learner: dict[str, str],
) -> Iterator[tuple[Stage, list[Need]]]:
    """Each stage of one game with the rows it asks for.

    Args:
        stages: of game.play.
        places: the rows of a draw, in its order.
        held: what every policy is measured on.
        sampling: how its own samples are drawn.
        base: the base policy.
        learner: identity of the learner, a part of every log-probs table's key.
    """

    def completions(kind: str, policy: str, how: Sampling, rows: Places) -> Need:
        side = "mixtures" if how.mixes(policy) else "completions"
        return Need(kind, digest(how.spec(policy)), side, policy, rows)

    def logps(kind: str, policy: str, side: str, rows: Places, among: Places | None = None) -> Need:
        return Need(kind, digest(logps_spec(policy, learner)), side, policy, rows, among)

    def shares(pair_source: OpponentPairs | JudgedSamples) -> list[tuple[str, Places]]:
        drawn = places(pair_source.draw)
        return [(policy, _each(drawn[share.start : share.stop], pair_source.samples)) for policy, share in pair_source.assign()]

    def scored(pair_source: PairSource, scorer: str, every: bool) -> list[Need]:
        match pair_source:
            case DatasetPairs():
                return [logps("score", scorer, side, places(pair_source.draw)) for side in ("chosen", "rejected")]
            case JudgedSamples():
                table, drawn = digest(pair_source.sampling.spec(pair_source.policy)), places(pair_source.draw)
                answers = _each(drawn, pair_source.samples)
                if every:
                    return [logps("score", scorer, table, answers)]
                side, among = f"{table}/{digest(pair_source.spec())}", answers.reshape(pair_source.samples, -1)
                return [logps("score", scorer, side, _each(drawn, 2), among)]
            case OpponentPairs():
                chosen = np.unique(np.concatenate([rows for _, rows in shares(pair_source)]))
                rejected = [(digest(pair_source.sampling.spec(policy)), rows) for policy, rows in shares(pair_source)]
                return [logps("score", scorer, side, rows) for side, rows in (("chosen", chosen), *rejected)]

    for stage in stages:
        match stage:
            case Average(policy=policy):
                yield stage, []
            case TrainSampler(policy=policy, draw=drawn):
                yield stage, [Need("train", policy, "pairs", policy, np.arange(drawn.prompts))]
            case Generate(pairs=pair_source):
                yield (
                    stage,
                    [completions("generate", policy, pair_source.sampling, rows) for policy, rows in shares(pair_source)],
                )
            case Judge(pairs=pair_source):
                table, drawn = digest(pair_source.judged), places(pair_source.draw)
                yield stage, [Need("judge", table, "judgements", pair_source.policy, drawn)]
            case Score(pairs=pair_source, policy=scorer):
                yield stage, scored(pair_source, scorer, stage.every)
            case Train(pairs=pairs):
                kind = "yardstick" if is_baseline(stage) else "train"
                yield stage, [Need(kind, stage.policy, "pairs", stage.policy, np.arange(pairs.rows))]
            case Evaluate(policy=policy, previous=previous):
                own, its = digest(sampling.spec(policy)), digest(sampling.spec(base))
                asked = [
                    completions("evaluate", policy, sampling, held.health),
                    completions("evaluate", base, sampling, held.health),
                ]
                asked += [logps("evaluate", policy, "chosen", held.scored)]
                asked += [logps("evaluate", by, own, held.health) for by in (policy, base, previous)]
                asked += [logps("evaluate", by, its, held.health) for by in (base, policy)]
                if held.oracle is not None:
                    for other in dict.fromkeys([base, previous]):
                        if other != policy:
                            both = [f"{digest(sampling.spec(one))}/0" for one in (policy, other)]
                            judged = digest(judgement_spec(both, held.oracle))
                            asked.append(Need("evaluate", judged, "judgements", policy, held.health))
                if held.greedy is not None:
                    asked.append(completions("evaluate", policy, held.greedy, held.scored))
                yield stage, list({(need.table, need.side): need for need in asked}.values())


def _each(rows: Places, samples: int) -> Places:
    """A number for each of several answers to each row."""
    return np.concatenate([rows + sample * SAMPLE for sample in range(samples)])


def _two_of(among: Places, scored: Places | None) -> Places | None:
    """A contest's best and worst of the prompts all of whose answers another game has scored."""
    return None if scored is None else _each(among[0, np.isin(among, scored).all(0)], 2)


@dataclass
class Unit:
    """All rows that any game asks of one table and side, for the game itself or for measuring."""

    kind: str
    table: str
    side: str
    policy: str
    places: Places
    among: Places | None = None


@dataclass
class Work:
    """Games added up: what they would compute each alone, reusing nothing, and what they compute together."""

    independent: dict[str, int] = field(default_factory=dict)
    units: dict[tuple[str, str, str], Unit] = field(default_factory=dict)

    def add(self, asked: Iterable[Need]) -> None:
        """Add a stage."""
        for need in asked:
            self.independent[need.kind] = self.independent.get(need.kind, 0) + len(need.places)
            name = (need.kind, need.table, need.side)
            unit = self.units.setdefault(name, Unit(need.kind, need.table, need.side, need.policy, need.places, need.among))
            unit.places = np.union1d(unit.places, need.places)

    def distinct(self) -> list[Unit]:
        """Every row once, in the order in which it is first asked for; one that a game needs is not counted as measuring."""
        games = {(unit.table, unit.side): unit.places for unit in self.units.values() if unit.kind in GAME_KINDS}
        found = []
        for unit in self.units.values():
            if unit.among is not None:
                known = _two_of(unit.among, games.get((unit.table, unit.side.partition("/")[0])))
            else:
                known = games.get((unit.table, unit.side)) if unit.kind not in GAME_KINDS else None
            found.append(unit if known is None else replace(unit, places=np.setdiff1d(unit.places, known)))
        return [unit for unit in found if len(unit.places)]
