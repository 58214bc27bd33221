"""The work of games in rows, counted before anything runs: what each stage needs, and what games have in common.

A row is one completion generated, one completion scored, or one pair trained on (once, however many epochs). Rows are
known by what names them in the store, so that what is counted as shared is what the store will share.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lowmem_spin.game import Draw, Evaluate, Generate, Pairs, Sampling, Score, Stage, Train, logps_asked
from lowmem_spin.keys import digest

Places = np.ndarray
"""Numbers of rows of the data, int64; a row has the same number wherever it is drawn."""

GAME_KINDS = ("generate", "score", "train")


@dataclass(frozen=True)
class Need:
    """Rows that a stage asks for, of one table of the store (or of one adapter: the pairs it is trained on)."""

    kind: str  # of the stage that asks: generate, score, train; evaluate and yardstick for what only measures
    table: str  # key of the table or of the adapter
    side: str  # "completions", "chosen", the key of the completions that are scored, or "pairs"
    policy: str  # whose completions or log-probs, or the one that is trained
    places: Places


@dataclass(frozen=True)
class Held:
    """The rows on which policies are measured."""

    scored: Places
    health: Places
    greedy: Sampling | None  # how held-out tasks are answered, if they are


def needs(
    stages: Sequence[Stage],
    places: Callable[[Draw], Places],
    held: Held,
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
        return Need(kind, digest(how.asked(policy)), "completions", policy, rows)

    def logps(kind: str, policy: str, side: str, rows: Places) -> Need:
        return Need(kind, digest(logps_asked(policy, learner)), side, policy, rows)

    def shares(pairs: Pairs) -> list[tuple[str, Places]]:
        drawn = places(pairs.draw)
        return [(policy, drawn[share.start : share.stop]) for policy, share in pairs.assign()]

    for stage in stages:
        match stage:
            case Generate(pairs=pairs):
                yield stage, [completions("generate", policy, pairs.sampling, rows) for policy, rows in shares(pairs)]
            case Score(pairs=pairs, policy=scorer):
                chosen = [logps("score", scorer, "chosen", np.unique(np.concatenate([rows for _, rows in shares(pairs)])))]
                rejected = [(digest(pairs.sampling.asked(policy)), rows) for policy, rows in shares(pairs)]
                yield stage, chosen + [logps("score", scorer, table, rows) for table, rows in rejected]
            case Train(pairs=pairs):
                kind = "yardstick" if stage.loss["name"] == "sft" else "train"
                yield stage, [Need(kind, stage.policy, "pairs", stage.policy, np.arange(pairs.rows))]
            case Evaluate(policy=policy, previous=previous):
                own, its = digest(sampling.asked(policy)), digest(sampling.asked(base))
                asked = [
                    completions("evaluate", policy, sampling, held.health),
                    completions("evaluate", base, sampling, held.health),
                ]
                asked += [logps("evaluate", policy, "chosen", held.scored)]
                asked += [logps("evaluate", by, own, held.health) for by in (policy, base, previous)]
                asked += [logps("evaluate", by, its, held.health) for by in (base, policy)]
                if held.greedy is not None:
                    asked.append(completions("evaluate", policy, held.greedy, held.scored))
                yield stage, list({(need.table, need.side): need for need in asked}.values())


@dataclass
class Unit:
    """All rows that any game asks of one table and side, for the game itself or for measuring."""

    kind: str
    table: str
    side: str
    policy: str
    places: Places


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
            unit = self.units.setdefault(name, Unit(need.kind, need.table, need.side, need.policy, need.places))
            unit.places = np.union1d(unit.places, need.places)

    def distinct(self) -> list[Unit]:
        """Every row once, in the order in which it is first asked for; one that a game needs is not counted as measuring."""
        games = {(unit.table, unit.side): unit.places for unit in self.units.values() if unit.kind in GAME_KINDS}
        found = []
        for unit in self.units.values():
            known = games.get((unit.table, unit.side)) if unit.kind not in GAME_KINDS else None
            found.append(unit if known is None else replace(unit, places=np.setdiff1d(unit.places, known)))
        return [unit for unit in found if len(unit.places)]
