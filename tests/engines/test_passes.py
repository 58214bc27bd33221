"""Passes as large as a GPU has room for, and small ones on a CPU."""

from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.memory import CONTEXT, Shape, peak, stage_memory
from lowmem_spin.engines.passes import planned_passes, tokens_scored_together, with_large_passes, with_small_passes
from lowmem_spin.engines.registry import ENGINES
from lowmem_spin.engines.residency import learner_room, shared_gpu

NAMES = "vllm", "unsloth"
GEMMA_2B = Shape(18, 2048, 16384, 8, 1, 256, 256000, True)


def test_a_pass_has_as_many_tokens_as_there_is_room_for() -> None:
    """On all cards: what is planned fits beside what the generator keeps meanwhile, and a larger card never has fewer."""
    recipe, (generator, learner) = load_recipe(find_recipe("gemma2b_alpha")), (ENGINES[name] for name in NAMES)
    found: dict[str, set[int]] = {"resident": set(), "sleep": set(), "exit": set()}
    before = dict.fromkeys(found, 0)
    for gigabytes in range(10, 64):
        limit = gigabytes * 1e9
        machine = Machine("cuda", "bfloat16", 64e9, limit)
        shared = shared_gpu(recipe, GEMMA_2B, machine, generator, learner, {})
        larger = with_large_passes(recipe, GEMMA_2B, "bfloat16", learner_room(shared))
        assert larger == planned_passes(recipe, GEMMA_2B, machine, *NAMES, {})
        terms = stage_memory(larger, GEMMA_2B, "bfloat16")
        kept = {"resident": shared.generator_share * 64e9 + CONTEXT, "sleep": CONTEXT, "exit": 0.0}[shared.residency]
        assert max(peak(terms["train"]), peak(terms["score"])) + kept <= limit
        assert before[shared.residency] <= larger.training_tokens
        before[shared.residency] = larger.training_tokens
        found[shared.residency].add(larger.training_tokens)
    assert found["resident"] | found["sleep"] | found["exit"] == {recipe.training_tokens, 8192}
    alone = Machine("cuda", "bfloat16", 24e9, 24e9)  # one engine for both
    assert planned_passes(recipe, GEMMA_2B, alone, "hf", "hf", {}).scoring_tokens == 8192


def test_passes_stay_where_the_recipe_says_or_nothing_is_known() -> None:
    recipe = load_recipe(find_recipe("gemma2b_alpha"))
    card = Machine("cuda", "bfloat16", 24e9, 24e9)
    given = ["training.tokens_per_batch=3000", "runtime.scoring_tokens_per_batch=2000"]
    own = load_recipe(find_recipe("gemma2b_alpha"), given)
    assert planned_passes(own, GEMMA_2B, card, *NAMES, {}) == own
    assert tokens_scored_together(own, "cuda") == 2000
    longer = load_recipe(find_recipe("gemma2b_alpha"), ["data.max_prompt_length=9000"])  # than a large pass
    assert planned_passes(longer, GEMMA_2B, Machine("cuda", "bfloat16", 141e9, 141e9), *NAMES, {}) == longer
    assert planned_passes(recipe, GEMMA_2B, Machine("cuda", "bfloat16"), *NAMES, {}) == recipe  # a GPU that is only planned for
    assert planned_passes(recipe, GEMMA_2B, Machine("cpu", "float32"), *NAMES, {}) == recipe
    assert planned_passes(recipe, GEMMA_2B, Machine("cuda", "bfloat16", 3e9, 3e9), *NAMES, {}) == recipe  # which a run refuses
    assert (tokens_scored_together(recipe, "cpu"), tokens_scored_together(recipe, "cuda")) == (recipe.scoring_tokens, 16384)


def test_a_cpu_gets_small_passes_of_a_large_model() -> None:
    recipe = load_recipe(find_recipe("smollm2_cpu"))
    small, tiny = Shape(30, 576, 1536, 9, 3, 64, 49152, True), Shape(4, 128, 768, 4, 1, 32, 288, True)
    assert (recipe.training_tokens, with_small_passes(recipe, small).training_tokens) == (3072, 1024)
    assert with_small_passes(recipe, small).scoring_tokens == recipe.scoring_tokens
    assert with_small_passes(recipe, tiny) == recipe
    longer = load_recipe(find_recipe("smollm2_cpu"), ["data.max_prompt_length=2000"])
    assert with_small_passes(longer, small).training_tokens == 2000 + 2 * 64  # a pair of full length has to fit
    own = load_recipe(find_recipe("smollm2_cpu"), ["training.tokens_per_batch=2000"])
    assert with_small_passes(own, small) == own
