"""What to change in a recipe of which a stage does not fit on a card."""

from bisect import bisect_left
from collections.abc import Iterator
from operator import attrgetter

from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.memory import Shape, Terms, peak, stage_memory
from lowmem_spin.engines.oracles.base import Oracle
from lowmem_spin.engines.residency import judging_terms


def advice(recipe: Recipe, shape: Shape, dtype: str, limit: float, judge: Oracle | None = None) -> Iterator[str]:
    """For each stage that does not fit in `limit` bytes, what to change, or that nothing in the recipe helps."""
    scored, trained = recipe.runtime.scoring_tokens_per_batch, recipe.training.tokens_per_batch
    knobs = {
        "generate": "runtime.generation_batch_size",
        "judge": "game.oracle.batch_size",
        "score": "runtime.scoring_tokens_per_batch" if scored else "runtime.scoring_batch_size",
        "train": "training.tokens_per_batch" if trained else "training.per_device_train_batch_size",
    }

    def memory(changed: Recipe) -> dict[str, Terms]:
        oracle = judge.memory(changed, dtype) if judge else {}
        return {**stage_memory(changed, shape, dtype), "judge": judging_terms(changed, shape, dtype, oracle)}

    now = memory(recipe)
    for stage, field in knobs.items():
        if not now[stage] or peak(now[stage]) <= limit:
            continue

        def is_too_large(size: int, stage: str = stage, field: str = field) -> bool:
            return peak(memory(recipe.with_value(field, size))[stage]) > limit

        fitting = bisect_left(range(1, attrgetter(field)(recipe)), True, key=is_too_large)  # what fits, fits with less
        if fitting:
            yield f"{stage}: set {field} to {fitting}"
        elif stage == "judge":
            yield "judge: too large at any batch size; take a smaller game.oracle.model, or a smaller base"
        elif stage == "train" and not recipe.training.gradient_checkpointing:
            yield "train: set training.gradient_checkpointing to true"
        else:
            yield f"{stage}: too large at any batch size; shorten data.max_prompt_length or take a smaller model"
