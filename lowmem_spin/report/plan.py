"""The plan of a game as a table: what each stage needs, and on which cards it fits."""

from rich import box
from rich.table import Table

from lowmem_spin.budget import CARDS, CONTEXT, FRAGMENTATION, Shape, advice, peak, stages
from lowmem_spin.recipe import Recipe


def memory(recipe: Recipe, shape: Shape, dtype: str) -> Table:
    """Gigabytes of each term by stage, in the worst case of rows as long as the recipe allows."""
    found = stages(recipe, shape, dtype)
    table = Table(title=f"Memory on a GPU in {dtype}, GB, rows at full length", box=box.SIMPLE_HEAD)
    table.add_column("term", no_wrap=True)
    for stage in found:
        table.add_column(stage, justify="right", no_wrap=True)
    for term in dict.fromkeys(term for terms in found.values() for term in terms):
        table.add_row(term, *(f"{terms[term] / 1e9:.2f}" if term in terms else "" for terms in found.values()))
    allowances = [CONTEXT + (FRAGMENTATION - 1) * sum(terms.values()) for terms in found.values()]
    table.add_row("context, fragmentation", *(f"{allowance / 1e9:.2f}" for allowance in allowances), end_section=True)
    table.add_row("peak", *(f"{peak(terms) / 1e9:.2f}" for terms in found.values()), style="bold")
    return table


def verdicts(recipe: Recipe, shape: Shape, dtype: str) -> list[str]:
    """A line for each size of card: fits, or what to change."""
    lines = []
    for card, limit in CARDS.items():
        changes = list(advice(recipe, shape, dtype, limit))
        lines.append(f"{card:<11} " + ("fits" if not changes else "does not fit: " + "; ".join(changes)))
    return lines
