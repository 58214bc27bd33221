"""What a learner learns from, a row at a time."""

from dataclasses import dataclass

from lowmem_spin.common.files import Tokens
from lowmem_spin.engines.training.trees import Tree


@dataclass(frozen=True)
class Pair:
    """One row to learn from. Plain fine-tuning has no rejected side and reads no reference."""

    prompt: Tokens
    chosen: Tokens
    rejected: Tokens | None = None
    ref_logps: tuple[float, float] = (0.0, 0.0)  # of (chosen, rejected), as are the others
    win_rates: tuple[float, float] = (1.0, 0.0)
    base_logps: tuple[float, float] = (0.0, 0.0)
    head_to_head: float = 1.0

    @property
    def tree(self) -> Tree:
        """The prompt with the chosen answer and, if there is one, the rejected one."""
        return Tree(self.prompt, [self.chosen] if self.rejected is None else [self.chosen, self.rejected])

    @property
    def length(self) -> int:
        return len(self.prompt) + max(len(self.chosen), 0 if self.rejected is None else len(self.rejected))
