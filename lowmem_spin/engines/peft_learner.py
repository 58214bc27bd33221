"""One frozen base and one adapter slot: how policies are scored and trained, whatever computes the forward."""

import ctypes
import gc
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GenerationConfig

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import Notice, Tokens
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.render import Renderer
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.adapter_slot import SLOT, AdapterSlot
from lowmem_spin.engines.base import Advance
from lowmem_spin.engines.loading import end_tokens, load_base, load_tokenizer, without_dropout
from lowmem_spin.engines.machine import Machine
from lowmem_spin.engines.training.attention import attending_to_trees
from lowmem_spin.engines.training.guards import finite, naming_memory
from lowmem_spin.engines.training.layout import RowLayout, why_not_packed
from lowmem_spin.engines.training.logps import (
    Batch,
    States,
    autocast,
    collate,
    completion_logps,
    decoder_states,
    telling_logits,
)
from lowmem_spin.engines.training.lora import compute_in_half_precision
from lowmem_spin.engines.training.optimizer import check_names
from lowmem_spin.engines.training.pair import Pair
from lowmem_spin.engines.training.trainer import train
from lowmem_spin.engines.training.trees import by_prompt


def trim_heap() -> None:
    """Have the C library give freed memory back to the system: in pieces of all sizes, glibc keeps what a training had."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


class PeftLearner:
    """Scores and trains; every policy is the base alone or with its weights copied into the slot.

    A subclass may load the base, set the mode and compute the forward in its own way; the rest is shared, so that
    what is scored is what is trained.
    """

    def __init__(
        self, recipe: Recipe, model: Source, machine: Machine, weights_dir: Path | None = None, notify: Notice = print
    ) -> None:
        self.recipe, self.machine = recipe, machine
        check_names(recipe.training)
        self.device = torch.device(machine.device)
        if machine.limit < machine.total:
            torch.cuda.set_per_process_memory_fraction(machine.limit / machine.total)
        self.tokenizer = load_tokenizer(model, recipe.model.trust_remote_code)
        self.renderer = Renderer.of(self.tokenizer, recipe)
        self.ends = end_tokens(model, self.renderer, recipe.model.trust_remote_code)
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.ends[0]
        self.model = self._with_slot(self._quiet(self._load(model)))
        self.model.create_or_update_model_card = lambda output_dir: None  # half of a save; nobody reads it
        wrong = {parameter.dtype for parameter in self.model.parameters() if parameter.requires_grad} - {torch.float32}
        if wrong:
            raise TypeError(f"adapters must be float32, small updates vanish in {wrong}")
        self.slot = AdapterSlot(self.model, recipe.training.lora)
        self._check_head()
        self.layout = self._layout(notify)

    states: States = staticmethod(decoder_states)
    attending = staticmethod(attending_to_trees)
    checkpoints_itself = False
    """Whether gradient checkpointing is set by _mode, and not by transformers' trainer."""

    def _load(self, model: Source) -> Any:
        return load_base(model, self.recipe.model.quantization, self.machine, self.recipe.model.trust_remote_code)

    def _quiet(self, base: Any) -> Any:
        """The base, without its own dropout if it is to be trained without."""
        if self.recipe.training.disable_dropout:
            without_dropout(base)
        return base

    def _mode(self, training: bool) -> None:
        """Ready the model for training, or for scoring: then nothing random is left in it."""
        self.model.train(training)

    def _with_slot(self, base: Any) -> PeftModel:
        lora = self.recipe.training.lora
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules),
            bias="none",
            task_type="CAUSAL_LM",
        )
        try:
            model = get_peft_model(base, config, adapter_name=SLOT)
        except ValueError as error:
            raise InputError(f"training.lora.target_modules: {lora.target_modules!r}: {str(error).splitlines()[0]}") from None
        if self.machine.dtype != "float32":
            compute_in_half_precision(model, SLOT)
        return model

    def _check_head(self) -> None:
        """Refuse a model that does more to its logits than logps.py knows of: every score would be wrong."""
        row = ([self.pad, *self.ends[:1]], list(range(min(4, self.tokenizer.vocab_size))))
        batch = collate([row], self.pad).to(self.device)
        with torch.no_grad(), self.playing(None) as policy:
            with telling_logits(policy.get_output_embeddings()) as calls:
                ours = completion_logps(policy, batch, self.states)[0]
                called, theirs = len(calls), self._own_logp(policy, batch)
                around = len(calls) == called
            if around:  # a fused forward takes the head's weights by itself
                ours, theirs = completion_logps(policy, batch, self.states)[0], self._own_logp(policy, batch)
        finite(torch.stack([ours, theirs]), self.machine)
        if not torch.isclose(ours, theirs, rtol=1e-2, atol=1e-2):
            name = type(policy).__name__
            raise InputError(
                f"model.name_or_path: {name} changes its logits after the head in a way that is not supported "
                f"(log-prob {ours.item():.3f} without, {theirs.item():.3f} with); use another architecture"
            )

    def _layout(self, notify: Notice) -> RowLayout:
        """Packed rows if this model's attention allows them; that it does not is said."""
        if self.recipe.runtime.layout == "padded":
            return RowLayout(packs=False, pad=self.pad)
        ordinary = [token for token in range(self.tokenizer.vocab_size) if token not in (self.pad, *self.ends)]
        with torch.no_grad(), self.playing(None) as policy, autocast(self.device, self.machine.dtype):
            why = why_not_packed(policy, self.states, ordinary, self.pad, self.device, self.machine.dtype)
        if why is not None:
            notify(f"{type(policy).__name__}: rows are padded, as its attention cannot be packed ({why})")
        return RowLayout(packs=why is None, pad=self.pad, attending=self.attending)

    @staticmethod
    def _own_logp(policy: Any, batch: Batch) -> torch.Tensor:
        """The summed log-prob of the one row's completion by the model's own logits."""
        logits = policy(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[0].float()
        wanted, predicts = batch.input_ids[0, 1:, None], batch.completion_mask[0, 1:]
        return (logits[:-1].log_softmax(-1).gather(-1, wanted)[:, 0] * predicts).sum()

    @contextmanager
    def playing(self, adapter: Path | None) -> Iterator[Any]:
        """The base model acting as a policy, with nothing random in it."""
        self._mode(training=False)
        if adapter is None:
            with self.model.disable_adapter():
                yield self.model.get_base_model()
            return
        if self.slot.holds != adapter:
            self.slot.fill(adapter)
        yield self.model.get_base_model()

    @torch.no_grad()
    def score(self, adapter: Path | None, rows: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        """Summed log-probs of rows, each prompt read once for all its completions; see base.Learner."""
        half, size, most = (
            autocast(self.device, self.machine.dtype),
            self.recipe.runtime.scoring_batch_size,
            self.recipe.scoring_tokens,
        )
        trees = by_prompt(rows, most if self.layout.packs else 0)
        logps = [0.0] * len(rows)
        bounded = naming_memory("runtime.scoring_batch_size", size)
        if self.layout.packs:
            bounded = naming_memory("runtime.scoring_tokens_per_batch", f"{most} tokens")
        with bounded, self.playing(adapter) as policy, half:
            for run in self.layout.batches([tree for tree, _ in trees], most, size):
                some = trees[run.start : run.stop]
                batch = self.layout.rows([tree for tree, _ in some]).to(self.device)
                numbers = [number for _, mine in some for number in mine]
                for number, logp in zip(
                    numbers, finite(completion_logps(policy, batch, self.states), self.machine), strict=True
                ):
                    logps[number] = logp
        return logps

    def train(
        self,
        init: Path | None,
        pairs: Sequence[Pair],
        loss: dict[str, Any],
        settings: dict[str, Any],
        work: Path,
        advance: Advance,
    ) -> tuple[Path, list[dict[str, float]]]:
        """Train the slot from `init`, or from fresh weights on the base; see base.Learner."""
        if init is None:
            torch.manual_seed(settings["seed"])
            self.slot.reset()
        else:
            self.slot.fill(init)
        self.slot.holds = None
        self._mode(training=True)
        device_batch, tokens = self.recipe.training.per_device_train_batch_size, self.recipe.training_tokens
        bounded = naming_memory("training.per_device_train_batch_size", device_batch)
        if self.layout.packs:
            bounded = naming_memory("training.tokens_per_batch", f"{tokens} tokens")
        try:
            with bounded:
                metrics = train(
                    self.model,
                    pairs,
                    loss,
                    settings,
                    work,
                    device=self.device,
                    layout=self.layout,
                    tokens=tokens,
                    device_batch=device_batch,
                    checkpoint_steps=self.recipe.runtime.checkpoint_steps,
                    gradient_checkpointing=self.recipe.training.gradient_checkpointing and not self.checkpoints_itself,
                    states=self.states,
                    advance=advance,
                )
        finally:
            self._mode(training=False)
            self.model.zero_grad(set_to_none=True)
            if self.machine.device == "cpu":
                trim_heap()
        return self.save_slot(work), metrics

    def save_slot(self, work: Path) -> Path:
        """Write the slot's weights to a fresh folder in `work`, and beside them where its answers end."""
        folder = work / "adapter"
        shutil.rmtree(folder, ignore_errors=True)
        self.model.save_pretrained(str(folder), selected_adapters=[SLOT])
        GenerationConfig(eos_token_id=self.ends, pad_token_id=self.pad).save_pretrained(folder)
        return folder

    def release(self) -> None:
        """Give cached memory back, for whoever works next."""
        gc.collect()  # the last optimiser's state is in cycles
        if self.machine.device == "cuda":
            torch.cuda.empty_cache()
        else:
            trim_heap()

    def close(self) -> None:
        """Let go of the model."""
        del self.model, self.slot
        self.release()
