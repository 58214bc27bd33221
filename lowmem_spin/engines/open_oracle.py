"""From a recipe's `game.oracle` to what judges: found and named, but nothing is loaded or asked yet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowmem_spin.config import choices
from lowmem_spin.data.sources import Sources
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.oracles.base import Oracle, oracle


def open_oracle(
    asked: choices.Oracle | None, sources: Sources, machine: Machine, cache: Path, notify: Callable[[str], None]
) -> Oracle | None:
    """The oracle that a recipe asks for, if it asks for one.

    Args:
        asked: the recipe's section.
        sources: where models and files are looked for.
        machine: where it computes.
        cache: folder for replies that cost money or time.
        notify: told what a person should know, such as replies that could not be read.
    """
    if asked is None:
        return None
    made = oracle(asked.name)
    match asked:
        case choices.FunctionOracle():
            return made(asked.function, sources.recipe_dir)
        case choices.RewardModelOracle():
            model = sources.model(asked.model, asked.revision, "game.oracle.model")
            return made(model, machine.device, machine.dtype, asked.batch_size, asked.max_length)
        case choices.PairRMOracle():
            model = sources.model(asked.model, asked.revision, "game.oracle.model")
            return made(model, machine.device, machine.dtype, asked.batch_size)
        case choices.JudgeOracle():
            return made(asked.base_url, asked.model, cache, notify, **judge_settings(asked))


def judge_settings(asked: choices.JudgeOracle) -> dict[str, Any]:
    """The rest of what a judge is made with; what is left open is its class's."""
    longest = {} if asked.max_tokens is None else {"max_tokens": asked.max_tokens}
    return {"api_key_env": asked.api_key_env, "concurrency": asked.concurrency, **longest}
