"""From a recipe's `game.oracle` to what judges: found and named, but nothing is loaded or asked yet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowmem_spin.config import choices as options
from lowmem_spin.data.sources import Sources
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.oracles.base import Oracle, oracle


def open_oracle(
    asked: options.Oracle | None, sources: Sources, where: Machine, cache: Path, say: Callable[[str], None]
) -> Oracle | None:
    """The oracle that a recipe asks for, if it asks for one.

    Args:
        asked: the recipe's section.
        sources: where models and files are looked for.
        where: what computes.
        cache: folder for replies that cost money or time.
        say: told what a person should know, such as replies that could not be read.
    """
    if asked is None:
        return None
    made = oracle(asked.name)
    match asked:
        case options.FunctionOracle():
            return made(asked.function, sources.beside)
        case options.RewardModelOracle():
            model = sources.model(asked.model, asked.revision, "game.oracle.model")
            return made(model, where.device, where.dtype, asked.batch_size, asked.max_length)
        case options.PairRMOracle():
            model = sources.model(asked.model, asked.revision, "game.oracle.model")
            return made(model, where.device, where.dtype, asked.batch_size)
        case options.JudgeOracle():
            return made(asked.base_url, asked.model, cache, say, **judge_settings(asked))


def judge_settings(asked: options.JudgeOracle) -> dict[str, Any]:
    """The rest of what a judge is made with; what is left open is its class's."""
    longest = {} if asked.max_tokens is None else {"max_tokens": asked.max_tokens}
    return {"api_key_env": asked.api_key_env, "concurrency": asked.concurrency, **longest}
