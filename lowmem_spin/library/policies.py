"""Policies of a game that was played, loaded to be used. Imports torch."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.cli.chat import prompt_tokens, row_seed
from lowmem_spin.data.formats import Message
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.base import Completion
from lowmem_spin.engines.hf import HF
from lowmem_spin.engines.loading import end_tokens, load_base, load_tokenizer
from lowmem_spin.runner.run_folder import RunFolder, StoredPolicy, machine_of


def load_policy(game: RunFolder, policy: StoredPolicy, base: Source) -> tuple[PeftModel | PreTrainedModel, Any]:
    """(model, tokenizer): the base with the policy's adapter, and with the game's template, padding and ends."""
    asked = game.recipe.model
    tokenizer = load_tokenizer(base, asked.trust_remote_code)
    ends = end_tokens(base, Renderer.of(tokenizer, game.recipe), asked.trust_remote_code)  # which sets its template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[0])
    tokenizer.padding_side = "left"
    model = load_base(base, asked.quantization, machine_of(game), asked.trust_remote_code)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    if policy.adapter is None:
        return model, tokenizer
    return PeftModel.from_pretrained(model, str(policy.adapter)).eval(), tokenizer


def open_portable_engine(game: RunFolder, base: Source) -> HF:
    """The base, and a slot for the adapter of whoever is asked."""
    return HF(game.recipe, base, machine_of(game))


@torch.no_grad()
def answers(engine: HF, policy: StoredPolicy, prompts: Sequence[str | list[Message]], sampling: Sampling) -> list[Completion]:
    """Each prompt's answer, in batches of the recipe's size."""
    talks = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    shorter = "shorten it, or lower max_new_tokens"
    draws = [
        (prompt_tokens(engine, talk, sampling, shorter), row_seed(sampling, policy, place)) for place, talk in enumerate(talks)
    ]
    size, found = engine.recipe.runtime.generation_batch_size, []
    with engine.playing(policy.adapter) as model:
        for start in range(0, len(draws), size):
            found += engine.sample(model, draws[start : start + size], sampling)
    return found
