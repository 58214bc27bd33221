"""How a stage's rows are put together: what goes through a model at once, whoever computes it and whatever is stored."""

from collections.abc import Sequence
from typing import Any

from lowmem_spin.engines.training.trees import cuts
from lowmem_spin.store.rows import Prompt, Scored


def in_batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Consecutive runs of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def prompts_to_answer(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt once. The longest come first: a batch that does not fit in memory fails at once and not after hours."""
    once = {prompt.name: prompt for prompt in prompts}
    return sorted(once.values(), key=lambda prompt: (-len(prompt.tokens), prompt.name))


def rows_by_prompt(rows: Sequence[Scored]) -> list[list[Scored]]:
    """The rows of each prompt."""
    trees: dict[str, list[Scored]] = {}
    for row in sorted(rows, key=lambda row: row.name):
        trees.setdefault(row.prompt_id, []).append(row)
    return list(trees.values())


def tokens_of(tree: Sequence[Scored]) -> int:
    """Tokens that go through the model for the rows of one prompt."""
    return len(tree[0].prompt) + sum(len(row.tokens) for row in tree)


def scoring_batches(rows: Sequence[Scored], most: int) -> list[list[Scored]]:
    """Rows to score together, at most `most` tokens of them, each once; the longest prompts with their answers come first."""
    once = list({row.name: row for row in rows}.values())
    trees = sorted(rows_by_prompt(once), key=lambda tree: (-tokens_of(tree), tree[0].prompt_id))
    return [[row for tree in trees[run.start : run.stop] for row in tree] for run in cuts(list(map(tokens_of, trees)), most)]
