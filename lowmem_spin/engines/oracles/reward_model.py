"""A preference oracle that is a reward model: any sequence-classification model with one output, by Bradley-Terry."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

import jinja2
import numpy as np

from lowmem_spin.algorithm.preferences import Comparison, of_rewards
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.choices import RewardModelOracle
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.render import check_template, written
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.memory import Terms
from lowmem_spin.engines.oracles.base import OracleContext
from lowmem_spin.engines.oracles.memory import judging_memory

FIELD = "game.oracle.model"


class RewardModel:
    """Scores a conversation with its answer, rendered by the model's own chat template; P is the sigmoid of differences.

    Args:
        model: on the hub or in a folder.
        device: cpu or cuda.
        dtype: its compute type.
        batch_size: conversations in one forward.
        max_length: tokens; the beginning of longer conversations is left out.
    """

    undecided: Collection[int] = ()

    def __init__(self, model: Source, device: str, dtype: str, batch_size: int, max_length: int) -> None:
        self.source, self.device, self.dtype = model, device, dtype
        self.batch_size, self.max_length = batch_size, max_length
        self.tokenizer: Any = None
        self.model: Any = None

    @classmethod
    def from_recipe(cls, section: RewardModelOracle, context: OracleContext) -> Self:
        """See base.Oracle."""
        model, machine = context.sources.model(section.model, section.revision, FIELD), context.machine
        return cls(model, machine.device, machine.dtype, section.batch_size, section.max_length)

    def _load(self) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from lowmem_spin.engines.training.guards import naming_model

        source = self.source
        own: dict[str, Any] = {"revision": source.revision, "trust_remote_code": False}  # without this a pipe may be asked
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source.location, truncation_side="left", **own)
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                source.location, dtype=getattr(torch, self.dtype), use_safetensors=True, **own
            )
        except (OSError, ValueError, KeyError) as error:
            why = " ".join(str(error).split())[:300]
            raise InputError(f"{FIELD}: {source.location!r} does not load as a reward model: {why}") from error
        if model.config.num_labels != 1:
            raise InputError(f"{FIELD}: {source.location!r} has {model.config.num_labels} outputs; a reward model has 1")
        if self.tokenizer.chat_template is None:
            raise InputError(f"{FIELD}: {source.location!r} has no chat template, so it is unknown how it reads a conversation")
        try:
            check_template(self.tokenizer, FIELD, "take another reward model")
        except jinja2.TemplateError as error:
            raise self._fails(error) from None
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.tokenizer.pad_token_id
        model.config.use_cache = False  # else keys and values of every layer are kept, and nobody reads them
        with naming_model(FIELD, source.location):
            self.model = model.to(self.device).eval()

    def _fails(self, error: jinja2.TemplateError) -> InputError:
        why = " ".join(str(error).split())[:150]
        return InputError(f"{FIELD}: the chat template of {self.source.location!r} fails on a conversation: {why}")

    def release(self) -> None:
        """Let go of the model; it is loaded again when asked again."""
        self.model = None
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def close(self) -> None:
        """As release."""
        self.release()

    def spec(self) -> dict[str, Any]:
        """The model's content, how it computes, and what it reads of a conversation."""
        return {"oracle": "reward_model", "model": self.source.identity, "dtype": self.dtype, "max_length": self.max_length}

    def located(self) -> dict[str, Any]:
        """See base.Oracle."""
        source = self.source
        return {"model": str(Path(source.location).resolve()) if source.local else source.location, "revision": source.revision}

    def memory(self, recipe: Recipe, dtype: str) -> Terms:
        """See base.Oracle; a conversation has about as many tokens for the reward model as for the base."""
        length = min(self.max_length, recipe.data.max_prompt_length + recipe.longest_answer)
        return judging_memory(self.source, FIELD, recipe, dtype, length)

    def prefer(self, questions: Sequence[Comparison]) -> list[np.ndarray]:
        """P for each question; see base.Oracle."""
        if self.model is None:
            self._load()
        try:
            texts = [
                written(self.tokenizer, [*question.messages, {"role": "assistant", "content": answer}])
                for question in questions
                for answer in question.answers
            ]
        except jinja2.TemplateError as error:
            raise self._fails(error) from None
        rewards = iter(self._rewards(texts))
        return [of_rewards([next(rewards) for _ in question.answers]) for question in questions]

    def _rewards(self, texts: Sequence[str]) -> list[float]:
        import torch

        from lowmem_spin.engines.training.guards import naming_memory

        rewards: dict[int, float] = {}
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))  # like lengths together
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            inputs = self.tokenizer(
                [texts[row] for row in batch],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.max_length,
                add_special_tokens=False,  # the template has written them
            ).to(self.device)
            with torch.no_grad(), naming_memory("game.oracle.batch_size", len(batch)):
                rewards |= zip(batch, self.model(**inputs).logits[:, 0].float().tolist(), strict=True)
        return [rewards[row] for row in range(len(texts))]
