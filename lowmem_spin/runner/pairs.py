"""What an iterate learns from, put together from the store's tables: two answers to each prompt and what is known of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowmem_spin.algorithm.pair_sources import DatasetPairs, JudgedSamples, OpponentPairs, PairSource
from lowmem_spin.algorithm.preferences import Comparison, best_and_worst, compared, win_rates
from lowmem_spin.algorithm.references import REFERENCES
from lowmem_spin.algorithm.samplers.mixture import sampling_summary
from lowmem_spin.algorithm.stages import Score, Train
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import Tokens
from lowmem_spin.engines.training.pair import Pair
from lowmem_spin.runner.open import OpenGame
from lowmem_spin.store.rows import Answer, Compared, Prompt, Scored


@dataclass(frozen=True)
class Side:
    """One of the two answers."""

    name: str  # as the log-probs tables call it
    tokens: Tokens


@dataclass(frozen=True)
class Match:
    """One row to learn from: the chosen answer is to become likelier than the rejected one."""

    position: int
    chosen: Side
    rejected: Side
    win_rates: tuple[float, float] = (1.0, 0.0)  # of the two, as far as an oracle has judged them
    head_to_head: float = 1.0  # how likely the chosen one beats the rejected one, likewise


def opponent_answers(game: OpenGame, pair_source: OpponentPairs | JudgedSamples) -> list[tuple[int, list[Answer]]]:
    """(position of the row, the answers to it: an opponent's one, or the several that are judged) in the order of the draw."""
    rows, positions = game.rows.train, game.positions(pair_source.draw)
    shares = [(policy, [positions[index] for index in share]) for policy, share in pair_source.assign()]
    samples = range(pair_source.samples)
    prompts_by_policy = [
        (policy, [Prompt(rows.ids[position], rows.prompt(position), sample) for position in mine for sample in samples])
        for policy, mine in shares
    ]
    label = "training answers by " + ", ".join(game.name(policy) for policy, _ in shares)
    answers_by_policy = game.tables.answers(prompts_by_policy, pair_source.sampling, label)
    return [
        (position, list(some))
        for (_, mine), answers in zip(shares, answers_by_policy, strict=True)
        for position, some in zip(mine, _several(answers, pair_source.samples), strict=True)
    ]


def _several(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def question(game: OpenGame, position: int, texts: Sequence[str]) -> Comparison:
    """Answers to a row's prompt, for an oracle."""
    return Comparison(game.rows.train.messages(position), list(texts), game.rows.train.completions[position])


def _found(game: OpenGame, pair_source: OpponentPairs | JudgedSamples) -> list[tuple[int, list[Answer]]]:
    """Those of `opponent_answers` to whose prompt a sampler has found every answer that was asked for.

    Raises:
        InputError: there is none.
    """
    answered = opponent_answers(game, pair_source)
    complete = [(position, some) for position, some in answered if all(answer.finish_reason != "rejected" for answer in some)]
    if not complete:
        every = "every prompt" if pair_source.samples == 1 else f"one of the {pair_source.samples} answers to every prompt"
        raise InputError(f"game.sampler: every proposal for {every} was rejected; raise proposals, or use smc")
    return complete


def judged_preferences(game: OpenGame, judged_samples: JudgedSamples) -> list[np.ndarray]:
    """The oracle's preferences between the answers to each prompt: arrays (K, K)."""
    rows = [
        Compared(
            game.rows.train.ids[position],
            question(game, position, [answer.text for answer in some]),
            [answer.tokens for answer in some],
        )
        for position, some in _found(game, judged_samples)
    ]
    return game.tables.preferences(judged_samples.judged, rows, f"training answers of {game.name(judged_samples.policy)}")


def matches(game: OpenGame, pair_source: PairSource) -> list[Match]:
    """The pairs of a source in the order of its draw; prompts that a sampler found no answer to are left out.

    Raises:
        InputError: none is left.
    """
    rows = game.rows.train
    match pair_source:
        case DatasetPairs():
            return [
                Match(position, Side("chosen", rows.chosen(position)), Side("rejected", rows.rejected(position)))
                for position in game.positions(pair_source.draw)
            ]
        case JudgedSamples():
            judged, how = [], pair_source.win_rates
            for (position, some), preferences in zip(
                _found(game, pair_source), judged_preferences(game, pair_source), strict=True
            ):
                rates = win_rates(preferences, how)
                best, worst = best_and_worst(rates)
                better, worse = (Side(some[which].name, some[which].tokens) for which in (best, worst))
                beats = float(compared(preferences, how)[best, worst])
                judged.append(Match(position, better, worse, (float(rates[best]), float(rates[worst])), beats))
            return judged
        case OpponentPairs():
            return [
                Match(position, Side("chosen", rows.chosen(position)), Side(answer.name, answer.tokens))
                for position, (answer,) in _found(game, pair_source)
            ]


def score_pairs(game: OpenGame, stage: Score) -> None:
    """Make sure that the store has the policy's log-probs of the pairs' answers."""
    _logps(game, stage.policy, matches(game, stage.pairs))
    if stage.every and isinstance(stage.pairs, JudgedSamples):
        _all_logps(game, stage.policy, stage.pairs)


def summarize_sampling(game: OpenGame, pair_source: PairSource) -> dict[str, Any] | None:
    """How the sampling of the mixtures that answered went, as a SamplingSummary; None if no mixture answered."""
    if isinstance(pair_source, DatasetPairs) or pair_source.sampling.mixture is None:
        return None
    ids, positions, samples = game.rows.train.ids, game.positions(pair_source.draw), range(pair_source.samples)
    draws = [
        draw
        for policy, share in pair_source.assign()
        if pair_source.sampling.mixes(policy)
        for draw in game.tables.draws(
            policy, pair_source.sampling, [(ids[positions[index]], sample) for index in share for sample in samples]
        )
    ]
    mixed = pair_source.sampling.mixture
    if not draws:
        return None
    summary = vars(sampling_summary(mixed["sampler"]["name"], mixed["alpha"], draws))
    left_out = sum(any(draw.tokens is None for draw in some) for some in _several(draws, pair_source.samples))
    return {**summary, "rejected": left_out, "log_z": summary["log_z"] if math.isfinite(summary["log_z"]) else None}


def _logps(game: OpenGame, policy: str, rows: Sequence[Match]) -> tuple[np.ndarray, np.ndarray]:
    """The policy's log-probs of both sides of every row: two arrays (rows,)."""
    sides = [(row.position, row.chosen) for row in rows] + [(row.position, row.rejected) for row in rows]
    both = _scored(game, policy, sides)
    return both[: len(rows)], both[len(rows) :]


def _scored(game: OpenGame, policy: str, sides: Sequence[tuple[int, Side]]) -> np.ndarray:
    rows = game.rows.train
    scored = [Scored(rows.ids[position], rows.prompt(position), side.name, side.tokens) for position, side in sides]
    return game.tables.logps(policy, scored, f"training answers by {game.name(policy)}")


def _all_logps(game: OpenGame, policy: str, judged_samples: JudgedSamples) -> np.ndarray:
    """The policy's log-probs of all answers that are judged: (prompts, K)."""
    sides = [
        (position, Side(answer.name, answer.tokens))
        for position, some in opponent_answers(game, judged_samples)
        for answer in some
    ]
    return _scored(game, policy, sides).reshape(-1, judged_samples.samples)


def _reference(game: OpenGame, stage: Train, rows: Sequence[Match]) -> tuple[np.ndarray, np.ndarray]:
    """The reference's log-probs of both sides of every row: two arrays (rows,)."""
    if not stage.reference:
        return np.zeros(len(rows)), np.zeros(len(rows))
    chosen, rejected = zip(*(_logps(game, policy, rows) for policy in stage.reference), strict=True)
    combine, weights = REFERENCES[stage.combine], list(stage.reference.values())
    log_z = _log_normalizer(game, stage) if stage.normalise else 0.0
    return combine(weights, chosen) - log_z, combine(weights, rejected) - log_z


def _log_normalizer(game: OpenGame, stage: Train) -> np.ndarray:
    """Log of the sum of the geometric mixture R over all answers, estimated for each prompt: (prompts,).

    It is the mean of R(y) / p(y) over the judged answers y, which the policy p has drawn; unbiased before the log.
    """
    judged_samples = stage.pairs
    if not isinstance(judged_samples, JudgedSamples):
        raise TypeError(f"only judged samples are several answers to estimate from, not {type(judged_samples).__name__}")
    mixed = sum(weight * _all_logps(game, policy, judged_samples) for policy, weight in stage.reference.items())
    log_ratios = mixed - _all_logps(game, judged_samples.policy, judged_samples)
    return np.logaddexp.reduce(log_ratios, axis=1) - np.log(judged_samples.samples)


def training_pairs(game: OpenGame, stage: Train) -> list[Any]:
    """What a stage learns from: a Pair with both sides and all that its loss may read of them."""
    rows = game.rows.train
    if stage.loss["name"] == "sft":
        repeats = stage.pairs.rows // stage.pairs.draw.prompts
        return [
            Pair(rows.prompt(position), rows.chosen(position))
            for position in game.positions(stage.pairs.draw)
            for _ in range(repeats)
        ]
    played = matches(game, stage.pairs)
    reference = _reference(game, stage, played)
    base = np.zeros(len(played)), np.zeros(len(played))
    if stage.penalty_reference:
        base = _logps(game, stage.penalty_reference, played)
    return [
        Pair(
            prompt=rows.prompt(row.position),
            chosen=row.chosen.tokens,
            rejected=row.rejected.tokens,
            ref_logps=(float(reference[0][n]), float(reference[1][n])),
            win_rates=row.win_rates,
            base_logps=(float(base[0][n]), float(base[1][n])),
            head_to_head=row.head_to_head,
        )
        for n, row in enumerate(played)
    ]
