"""How many tokens go through a model in one pass: many on a GPU with room, which else waits for the CPU; few on a CPU."""

from operator import attrgetter

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import Shape, Terms, peak, stage_memory
from lowmem_spin.engines.registry import ENGINES
from lowmem_spin.engines.residency import learner_room, shared_gpu

MANY = 8192  # tokens in a pass: on an H200 gemma-2b's shape trains 2.6 times as fast as with 2,048, which it waits for
SPARE = 0.9  # of the room that larger passes are planned for: plans are up to 9 % off
FEW = 1024  # tokens in a pass of training on a CPU: SmolLM2-135M takes 0.75 of the time of 4,096, and half of the memory
LARGE = 50e6  # parameters of a model that makes a difference to; the quickstart's base, of 1.4 M, trains alike with both


def with_large_passes(recipe: Recipe, shape: Shape, dtype: str, room: float) -> Recipe:
    """The same experiment with more tokens in a forward pass, as many as keep a GPU busy, if `room` bytes of it suffice.

    Numbers of tokens that the recipe gives stay.
    """
    for stage, field in (("train", "training.tokens_per_batch"), ("score", "runtime.scoring_tokens_per_batch")):
        least = recipe.training_tokens if stage == "train" else recipe.scoring_tokens
        given = attrgetter(field)(recipe)
        for tokens in (MANY, MANY // 2) if given is None else ():
            larger = recipe.with_value(field, tokens)
            if tokens > least and peak(stage_memory(larger, shape, dtype)[stage]) <= SPARE * room:
                recipe = larger
                break
    return recipe


def with_small_passes(recipe: Recipe, shape: Shape) -> Recipe:
    """The same experiment with fewer tokens in a forward and backward pass, for a CPU, unless the recipe says how many."""
    if recipe.training.tokens_per_batch is not None or shape.active < LARGE:
        return recipe
    pair = recipe.data.max_prompt_length + 2 * recipe.longest_answer
    return recipe.with_value("training.tokens_per_batch", min(recipe.training_tokens, max(pair, FEW)))


def tokens_scored_together(recipe: Recipe, device: str) -> int:
    """Tokens that a learner is asked to score at once, which it cuts to what it has room for: the same on all cards. On a GPU
    enough for full passes of pairs, whose prompts count twice here and go through the model once."""
    given = recipe.runtime.scoring_tokens_per_batch
    return recipe.scoring_tokens if device == "cpu" or given else max(recipe.scoring_tokens, 2 * MANY)


def planned_passes(recipe: Recipe, shape: Shape, machine: Machine, generator: str, learner: str, oracle: Terms) -> Recipe:
    """The recipe with passes as large as a run on this machine, with these engines and beside such an oracle, will make them;
    as it is where that is not known, or refused."""
    if machine.device == "cpu" or not machine.limit:
        return recipe
    try:
        both = ENGINES[generator], ENGINES[learner]
        settled = machine if generator == learner else shared_gpu(recipe, shape, machine, *both, oracle)
    except InputError:
        return recipe
    return with_large_passes(recipe, shape, machine.dtype, learner_room(settled))
