"""Next-token log-probs of several policies at the same states, each with its keys and values kept from step to step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lowmem_spin.algorithm.samplers.proposal import State
from lowmem_spin.engines.peft_learner import PeftLearner
from lowmem_spin.engines.training.guards import finite, naming_memory


class Lookahead:
    """A function of states; it keeps the caches of the last ones, so that their continuations cost one token each.

    A policy in the slot stays there: an adapter and the bare base take two forwards a step and nothing else. Two
    adapters are read into the slot in turn, in every step.

    Args:
        learner: whose base, slot and compute type are used.
        policies: adapter folders; None is the frozen base.
    """

    def __init__(self, learner: PeftLearner, policies: Sequence[Path | None]) -> None:
        self.learner, self.policies = learner, list(policies)
        self.known: dict[State, int] = {}  # the states of the last call, and their rows in the caches
        self.caches: list[DynamicCache] = []
        self.mask = torch.empty(0, 0, dtype=torch.long, device=learner.device)

    @torch.no_grad()
    def __call__(self, states: Sequence[State]) -> list[Tensor]:
        """One tensor (states, vocabulary) of float64 log-probs for each policy.

        Raises:
            InputError: the batch does not fit in memory, or log-probs are not finite.
        """
        parents = [self.known.get(state[:-1]) for state in states]
        continued = [parent for parent in parents if parent is not None]
        ids = self._continue(states, continued) if len(continued) == len(states) else self._begin(states)
        self.known = {}  # until both have answered, the caches belong to no states
        places = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logps = []
        with naming_memory("runtime.generation_batch_size", len(states)):
            for policy, cache in zip(self.policies, self.caches, strict=True):
                with self.learner.playing(policy) as model:
                    output = model(
                        input_ids=ids,
                        attention_mask=self.mask,
                        position_ids=places,
                        past_key_values=cache,
                        use_cache=True,
                        logits_to_keep=1,
                    )
                logps.append(output.logits[:, -1].double().log_softmax(-1))
                finite(logps[-1].amax(1), self.learner.machine)
        self.known = {state: row for row, state in enumerate(states)}
        return logps

    def _begin(self, states: Sequence[State]) -> Tensor:
        """Left-padded ids (states, length) of everything, for empty caches."""
        width, device = max(len(state) for state in states), self.learner.device
        ids = torch.tensor([[self.learner.pad] * (width - len(state)) + list(state) for state in states], device=device)
        self.mask = torch.tensor([[0] * (width - len(state)) + [1] * len(state) for state in states], device=device)
        config: Any = self.learner.model.get_base_model().config
        self.caches = [DynamicCache(config=config) for _ in self.policies]
        return ids

    def _continue(self, states: Sequence[State], parents: Sequence[int]) -> Tensor:
        """Ids (states, 1) of the last tokens, for caches whose rows are the states before them."""
        rows = torch.tensor(parents, device=self.learner.device)
        self.mask = torch.cat([self.mask[rows], torch.ones_like(rows)[:, None]], dim=1)
        for cache in self.caches:
            cache.reorder_cache(rows)  # type: ignore[arg-type]
        return torch.tensor([state[-1:] for state in states], device=self.learner.device)
