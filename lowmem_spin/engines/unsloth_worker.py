"""Scoring and training through Unsloth's kernels: what runs in the worker process of unsloth.py.

Only the loading, the mode and the forward are Unsloth's. The log-probs, the loss and the trainer are those of every
learner, on Unsloth's hidden states, so that the full logits are never held.
"""

# isort: off
from unsloth import FastLanguageModel  # pyright: ignore  # first: it patches transformers and peft as they are imported
from unsloth.utils.attention_dispatch import run_attention  # pyright: ignore

# isort: on
import os
import sys
from contextlib import nullcontext
from typing import Any

import torch

from lowmem_spin.common.errors import InputError
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.loading import naming_the_model, set_compute_dtype
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.model_files import ModelFiles
from lowmem_spin.engines.peft_learner import PeftLearner
from lowmem_spin.engines.training.attention import attend
from lowmem_spin.engines.training.logps import LaidOutRows
from lowmem_spin.engines.training.packing import PackedRow

_under_way: PackedRow | None = None  # the row of the last forward: its backward may compute attention once more


def hidden_states(model: Any, rows: LaidOutRows) -> torch.Tensor:
    """Unsloth's forward up to the head. It is called whole, because the masks of its kernels are made there."""
    global _under_way  # noqa: PLW0603 - Unsloth's attention is a function of its modules and has no way to be told
    _under_way = rows if isinstance(rows, PackedRow) else None
    if isinstance(rows, PackedRow):
        placed: dict[str, Any] = {"position_ids": rows.position_ids}
        model.get_decoder()._unsloth_allow_packed_overlength = True  # else it cuts rows at the length of a prompt and answer
    else:
        placed = {"attention_mask": rows.attention_mask}
    os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "1"
    try:
        return model(input_ids=rows.input_ids, use_cache=False, **placed).logits
    finally:
        os.environ["UNSLOTH_RETURN_HIDDEN_STATES"] = "0"


def _attention(*, config: Any, context: Any, Q: torch.Tensor, K: torch.Tensor, V: torch.Tensor) -> torch.Tensor:  # noqa: N803
    """In place of Unsloth's run_attention: over the trees of a packed row, if one is under way."""
    if _under_way is None:
        return run_attention(config=config, context=context, Q=Q, K=K, V=V)
    options = {**(config.sdpa_kwargs or {}), **(config.flash_dense_kwargs or {})}
    scale = options.get("softmax_scale", options.get("scale"))
    return attend(Q, K, V, _under_way, scale, window=context.sliding_window, softcap=options.get("softcap"))


for module in [module for name, module in sys.modules.items() if name.startswith("unsloth.models.")]:
    if hasattr(module, "run_attention"):
        module.run_attention = _attention  # type: ignore[attr-defined]


class Kernels(PeftLearner):
    """A learner whose base, adapter and forward are Unsloth's. There is one adapter, named `default`, and never a second."""

    states = staticmethod(hidden_states)
    attending = staticmethod(nullcontext)  # its forward says which row is under way
    checkpoints_itself = True

    def __init__(self, recipe: Recipe, model: Source, machine: Machine) -> None:
        self.checkpointing = "unsloth" if recipe.training.gradient_checkpointing else False
        super().__init__(recipe, model, machine)

    def _load(self, model: Source) -> Any:
        recipe = self.recipe
        longest = recipe.data.max_prompt_length + max(recipe.generation.max_new_tokens, recipe.data.max_completion_length)
        longest = min(longest, ModelFiles(model).context or longest)  # no row is longer: row_check.py
        with naming_the_model(model):
            base, _ = FastLanguageModel.from_pretrained(
                model_name=model.location,
                revision=model.revision,
                max_seq_length=longest,
                dtype=getattr(torch, self.machine.dtype),
                load_in_4bit=recipe.model.quantization == "nf4",
                device_map={"": 0},
                fix_tokenizer=False,  # the tokenizer used is the one every engine uses
                trust_remote_code=recipe.model.trust_remote_code,
                use_gradient_checkpointing=self.checkpointing,
                use_exact_model_name=True,  # else it loads another upload of a known model, quantised by others
                float32_mixed_precision=True,  # adapters in float32
                offload_embedding=False,  # else, on a tight card, it goes to RAM, where engines/memory.py does not expect it
                use_safetensors=True,  # a pickle can run code
            )
        set_compute_dtype(base, getattr(torch, self.machine.dtype))
        known = base.config.max_position_embeddings
        if longest > known:
            raise InputError(
                f"data.max_prompt_length: prompts and answers of {longest} tokens, but {model.location!r} knows {known} "
                "positions; lower it, or generation.max_new_tokens and data.max_completion_length"
            )
        # A packed row can be longer than the context. Unsloth's table of rotations grows at the first such row, which then
        # gets them rounded to half precision, and all later ones get them in float32.
        packed = max(recipe.scoring_tokens, recipe.training_tokens)
        base.get_decoder().rotary_emb.extend_rope_embedding(torch.empty(0, device=base.device), packed)
        return base

    def _with_slot(self, base: Any) -> Any:
        lora = self.recipe.training.lora
        return FastLanguageModel.get_peft_model(
            base,
            r=lora.r,
            target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.dropout,
            bias="none",
            use_gradient_checkpointing=self.checkpointing,
            random_state=self.recipe.seed % 2**31,
            max_seq_length=base.max_seq_length,
        )

    def _mode(self, training: bool) -> None:
        # Its training forward is used to score as well: it takes right-padded rows without a mask, and its eval
        # forward is another function, up to rounding, with a dense mask.
        FastLanguageModel.for_training(self.model, use_gradient_checkpointing=self.checkpointing if training else False)
        if not training:
            for module in self.model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.eval()
