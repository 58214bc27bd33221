"""The transformers + PEFT engine: generates, scores and trains on any device, on one frozen base."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.algorithm.samplers.noise import gumbel
from lowmem_spin.common.files import Notice, Tokens
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.base import Advance, Completion, Request
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.next_token import Lookahead
from lowmem_spin.engines.peft_learner import PeftLearner
from lowmem_spin.engines.training.guards import BatchTooLargeError, finite, naming_memory
from lowmem_spin.engines.training.pair import Pair
from lowmem_spin.engines.worker import Once

Made = TypeVar("Made")


class HF(PeftLearner):
    """A learner that samples too. Out of the GPU's memory, it goes on with half the batch, once, as worker processes do.

    A batch has one policy: on a CPU, PEFT's mixed-adapter batches took 1.14 times as long for the same rows.
    """

    mixes_policies = False
    batches_at_once = 1

    def __init__(
        self, recipe: Recipe, model: Source, machine: Machine, weights_dir: Path | None = None, notify: Notice = print
    ) -> None:
        super().__init__(recipe, model, machine, weights_dir, notify)
        self.notify, self.halved = notify, False

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """Completions of one policy; see base.Generator."""
        return self._or_smaller(lambda: self._generate(requests, sampling))

    def score(self, adapter: Path | None, rows: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        """See PeftLearner."""
        return self._or_smaller(lambda: super(HF, self).score(adapter, rows))

    def train(
        self,
        init: Path | None,
        pairs: Sequence[Pair],
        loss: dict[str, Any],
        settings: dict[str, Any],
        work: Path,
        advance: Advance,
    ) -> tuple[Path, list[dict[str, float]]]:
        """See PeftLearner; a second try goes on from the last checkpoint."""
        told = Once(advance)

        def trained() -> tuple[Path, list[dict[str, float]]]:
            told.again()
            return super(HF, self).train(init, pairs, loss, settings, work, told)

        return self._or_smaller(trained)

    def _or_smaller(self, work: Callable[[], Made]) -> Made:
        try:
            return work()
        except BatchTooLargeError as error:
            smaller = self.recipe.with_half_batches()
            if self.halved or smaller == self.recipe:
                raise
            full = str(error).partition(";")[0]
        self.notify(f"{full}; going on with half the batch")  # by now nothing holds what the first try computed
        self.halved, self.recipe = True, smaller
        self.release()
        return work()

    @torch.no_grad()
    def _generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        (adapter,) = {request.adapter for request in requests}
        draws = [(request.prompt, request.seed) for request in requests]
        size, found = self.recipe.runtime.generation_batch_size, []
        with self.playing(adapter) as policy:
            for start in range(0, len(draws), size):
                found += self.sample(policy, draws[start : start + size], sampling)
        return found

    @torch.no_grad()
    def sample(self, policy: Any, draws: Sequence[tuple[Tokens, int]], sampling: Sampling) -> list[Completion]:
        """One batch of completions of the model as it stands, a (prompt, seed) for each."""
        width = max(len(prompt) for prompt, _ in draws)
        ids = torch.full((len(draws), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, (prompt, _) in enumerate(draws):
            ids[row, width - len(prompt) :] = torch.tensor(np.asarray(prompt))
            mask[row, width - len(prompt) :] = 1
        seeds = torch.tensor([seed for _, seed in draws], device=self.device)
        ends = torch.tensor(self.ends, device=self.device)
        noise = RowNoise(seeds, ends, sampling.temperature, sampling.top_p, sampling.top_k, width)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.ends,
            pad_token_id=self.pad,
            use_cache=True,
        )
        with naming_memory("runtime.generation_batch_size", len(draws)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output = policy.generate(
                ids.to(self.device), attention_mask=mask.to(self.device), generation_config=settings, logits_processor=[noise]
            )
        drawn, logps = output[:, width:].tolist(), finite(noise.logps, self.machine)
        return [self.completion(tokens, logp) for tokens, logp in zip(drawn, logps, strict=True)]

    def next_token_logps(self, policies: Sequence[Path | None]) -> Lookahead:
        """What `policies` say of the next token, as a function of states: what sampling/ draws mixtures from.

        Its caches live as long as it does.
        """
        return Lookahead(self, policies)

    def completion(self, tokens: list[int], logp: float) -> Completion:
        """What was drawn, up to the token that ends it, as text too."""
        stop = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        kept = tokens if stop is None else tokens[: stop + 1]
        text = self.renderer.said(kept if stop is None else kept[:-1])
        return Completion(kept, text, "length" if stop is None else "stop", logp)


class RowNoise(LogitsProcessor):
    """Turns greedy decoding into sampling, and adds up the log-probs of what was drawn.

    Temperature, top-k and top-p are applied here, before the noise: built-in warpers would run after it.
    """

    def __init__(
        self, seeds: Tensor, ends: Tensor, temperature: float, top_p: float, top_k: int | None, prompt_length: int
    ) -> None:
        self.seeds, self.ends, self.temperature, self.prompt_length = seeds, ends, temperature, prompt_length
        self.warpers = [] if top_k is None else [TopKLogitsWarper(top_k)]
        self.warpers += [] if top_p == 1 else [TopPLogitsWarper(top_p)]
        self.logps = torch.zeros(len(seeds), dtype=torch.float64, device=seeds.device)
        self.alive = torch.ones(len(seeds), dtype=torch.bool, device=seeds.device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        logps = scores.double().log_softmax(-1)
        noisy = logps
        if self.temperature > 0:
            warped = scores.float() / self.temperature
            for warper in self.warpers:
                warped = warper(input_ids, warped)
            step = input_ids.shape[1] - self.prompt_length
            noisy = warped.double() + gumbel(self.seeds, step, scores.shape[-1])
        drawn = noisy.argmax(-1)
        self.logps += torch.where(self.alive, logps.gather(-1, drawn[:, None])[:, 0], 0.0)
        self.alive &= ~torch.isin(drawn, self.ends)
        return noisy  # type: ignore[return-value]
