"""A preference oracle that is a reward model: any sequence-classification model with one output, by Bradley-Terry."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowmem_spin.preference import Question, of_rewards
from lowmem_spin.recipe import InputError
from lowmem_spin.sources import Source

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

    def __init__(self, model: Source, device: str, dtype: str, batch_size: int, max_length: int) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.model_identity, self.device, self.dtype = model.identity, device, dtype
        self.batch_size, self.max_length = batch_size, max_length
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model.location, revision=model.revision, truncation_side="left")
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(
                model.location, revision=model.revision, dtype=getattr(torch, dtype), use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            why = " ".join(str(error).split())[:300]
            raise InputError(f"{FIELD}: {model.location!r} does not load as a reward model: {why}") from error
        if self.model.config.num_labels != 1:
            raise InputError(f"{FIELD}: {model.location!r} has {self.model.config.num_labels} outputs; a reward model has 1")
        if self.tokenizer.chat_template is None:
            raise InputError(f"{FIELD}: {model.location!r} has no chat template, so it is unknown how it reads a conversation")
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.to(device).eval()

    def identity(self) -> dict[str, Any]:
        """The model's content, how it computes, and what it reads of a conversation."""
        return {"oracle": "reward_model", "model": self.model_identity, "dtype": self.dtype, "max_length": self.max_length}

    def prefer(self, questions: Sequence[Question]) -> list[np.ndarray]:
        """P for each question; see preference.Oracle."""
        texts = [
            self.tokenizer.apply_chat_template([*question.messages, {"role": "assistant", "content": answer}], tokenize=False)
            for question in questions
            for answer in question.answers
        ]
        rewards = iter(self._rewards(texts))
        return [of_rewards([next(rewards) for _ in question.answers]) for question in questions]

    def _rewards(self, texts: Sequence[str]) -> list[float]:
        import torch

        found: dict[int, float] = {}
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))  # like lengths together
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            inputs = self.tokenizer(
                [texts[place] for place in places],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.max_length,
                add_special_tokens=False,  # the template has written them
            ).to(self.device)
            with torch.no_grad():
                found |= zip(places, self.model(**inputs).logits[:, 0].float().tolist(), strict=True)
        return [found[place] for place in range(len(texts))]
