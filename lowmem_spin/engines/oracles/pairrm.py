"""A preference oracle that reads two answers side by side: PairRM of LLM-Blender (arXiv 2306.02561)."""

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, Self

import numpy as np

from lowmem_spin.algorithm.preferences import Comparison, of_pairs
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.choices import PairRMOracle
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.memory import Terms
from lowmem_spin.engines.oracles.base import OracleContext
from lowmem_spin.engines.oracles.memory import judging_memory

FIELD = "game.oracle.model"
SOURCE, FIRST, SECOND = "<|source|>", "<|candidate1|>", "<|candidate2|>"
MARKS = {"source_prefix_id": SOURCE, "cand1_prefix_id": FIRST, "cand2_prefix_id": SECOND}  # by their names in config.json
# The misspelling is LLM-Blender's: this is the text that the model knows.
TASK = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."


class PairRM:
    """`llm-blender/PairRM-hf`, or a model of its kind.

    An ordered pair has a logit, L[i, j], that the answer shown first is better. Both orders are asked and combined as in
    LLM-Blender's comparisons, logit P[i, j] = L[i, j] - L[j, i]: their sum, not their mean. With that `win_rates` of kind
    aggregated are the ones in SPPO's official code, and those of kind pairwise the paper's.

    A model reads `[CLS] <|source|> ... [SEP] [CLS] <|candidate1|> ... [SEP] [CLS] <|candidate2|> ... [SEP]`, see `sides`.
    As in LLM-Blender the source is cut to `source_max_length`, the answers share what is left, and it is the end of a
    text that is cut: where the earlier turns of a conversation leave no room, the answers look alike.

    Args:
        model: on the hub or in a folder.
        device: cpu or cuda.
        dtype: its compute type.
        batch_size: ordered pairs in one forward.
        max_length: tokens of an ordered pair; 2048 is what PairRM was trained with, 1224 of them for the source.
        source_max_length: tokens of the source.

    Raises:
        InputError: the lengths leave answers no room, or, when it is first asked, this is no PairRM.
    """

    undecided: Collection[int] = ()

    def __init__(
        self,
        model: Source,
        device: str,
        dtype: str,
        batch_size: int,
        max_length: int = 2048,
        source_max_length: int = 1224,
    ) -> None:
        if max_length < source_max_length + 16:
            raise InputError(
                f"game.oracle.max_length: {max_length} leaves two answers no room beside {source_max_length} tokens of source"
            )
        self.source, self.device, self.dtype, self.batch_size = model, device, dtype, batch_size
        self.max_length, self.source_max_length = max_length, source_max_length
        self.ranker: Any = None

    @classmethod
    def from_recipe(cls, section: PairRMOracle, context: OracleContext) -> Self:
        """See base.Oracle."""
        model, machine = context.sources.model(section.model, section.revision, FIELD), context.machine
        return cls(model, machine.device, machine.dtype, section.batch_size)

    def _load(self) -> None:
        from lowmem_spin.engines.oracles.pairrm_model import load_pairrm
        from lowmem_spin.engines.training.guards import naming_model

        self.tokenizer, ranker = load_pairrm(self.source, self.dtype, MARKS, FIELD)
        with naming_model(FIELD, self.source.location):
            self.ranker = ranker.to(self.device)  # type: ignore[arg-type]
        self.marks = [self.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS.values()]
        special = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab(), *MARKS.values()}
        self.special = re.compile("|".join(map(re.escape, sorted(special))))

    def release(self) -> None:
        """Let go of the model; it is loaded again when asked again."""
        self.ranker = None
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def close(self) -> None:
        """As release."""
        self.release()

    def spec(self) -> dict[str, Any]:
        """The model's content, how it computes, and how much it reads."""
        lengths = {"max_length": self.max_length, "source_max_length": self.source_max_length}
        return {"oracle": "pairrm", "model": self.source.identity, "dtype": self.dtype, **lengths}

    def located(self) -> dict[str, Any]:
        """See base.Oracle."""
        source = self.source
        return {"model": str(Path(source.location).resolve()) if source.local else source.location, "revision": source.revision}

    def memory(self, recipe: Recipe, dtype: str) -> Terms:
        """See base.Oracle; texts have about as many tokens for PairRM as for the base."""
        length = min(self.max_length, recipe.data.max_prompt_length + 2 * recipe.longest_answer)
        return judging_memory(self.source, FIELD, recipe, dtype, length)

    def prefer(self, questions: Sequence[Comparison]) -> list[np.ndarray]:
        """P for each question; see base.Oracle."""
        if self.ranker is None:
            self._load()
        pairs = {
            (number, first, second): ids
            for number, question in enumerate(questions)
            for first, second, ids in self._ordered_pairs(question)
        }
        logits = dict(zip(pairs, self._logits(list(pairs.values())), strict=True))

        def wins(number: int, one: str, other: str) -> float:
            return float(1 / (1 + np.exp(logits[number, other, one] - logits[number, one, other])))

        return [
            of_pairs(question.answers, lambda one, other, number=number: wins(number, one, other))
            for number, question in enumerate(questions)
        ]

    def _ordered_pairs(self, question: Comparison) -> Iterator[tuple[str, str, list[int]]]:
        """Every two different answers in both orders, with what the model reads."""
        answers = list(dict.fromkeys(question.answers))
        source, candidates = sides(question.messages, answers)
        start = self._tokens(SOURCE + self._plain(source), self.source_max_length)
        room = (self.max_length - len(start)) // 2
        first, second = ([self._tokens(mark + self._plain(text), room) for text in candidates] for mark in (FIRST, SECOND))
        for i, j in permutations(range(len(answers)), 2):
            yield answers[i], answers[j], [*start, *first[i], *second[j]]

    def _plain(self, text: str) -> str:
        """`text` as the model's sentencepiece spells it, and without special tokens: nobody writes a mark but us.

        The NFKC is sentencepiece's own; the DeBERTa tokenizer of transformers 5 leaves it out, even if the files have it.
        """
        return self.special.sub(" ", unicodedata.normalize("NFKC", text))

    def _tokens(self, text: str, most: int) -> list[int]:
        return self.tokenizer(text, truncation=True, max_length=most)["input_ids"]

    def _logits(self, rows: Sequence[list[int]]) -> list[float]:
        import torch

        from lowmem_spin.engines.training.guards import naming_memory

        logits: dict[int, float] = {}
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))  # like lengths together
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            inputs = self.tokenizer.pad({"input_ids": [rows[row] for row in batch]}, return_tensors="pt")
            positions = torch.tensor([[rows[row].index(mark) for mark in self.marks] for row in batch])
            with torch.no_grad(), naming_memory("game.oracle.batch_size", len(batch)):
                ids, mask = inputs["input_ids"].to(self.device), inputs["attention_mask"].to(self.device)
                logits |= zip(batch, self.ranker(ids, mask, positions.to(self.device)).float().tolist(), strict=True)
        return [logits[row] for row in range(len(rows))]


def sides(messages: Sequence[dict[str, str]], answers: Sequence[str]) -> tuple[str, list[str]]:
    """The source and the candidates that stand for a conversation and its answers.

    One user message is the source as it is, and an answer is a candidate as it is, as in LLM-Blender's `rank`. Of a longer
    conversation the source has the user's side, with numbered gaps, and a candidate all that fills them, as in its
    `compare_conversations`. A system message comes before the source, where LLM-Blender puts an instruction, on a line of
    its own.

    Raises:
        InputError: user and assistant do not take turns.
    """
    system = "".join(message["content"] + "\n" for message in messages if message["role"] == "system")
    turns = [message for message in messages if message["role"] != "system"]
    roles = [message["role"] for message in turns]
    if len(roles) % 2 == 0 or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        raise InputError(f"{FIELD}: a PairRM reads conversations of user and assistant in turn, not {', '.join(roles)}")
    if len(turns) == 1:
        return system + turns[0]["content"], list(answers)
    users, earlier = ([message["content"] for message in turns[first::2]] for first in (0, 1))
    gaps = "\n".join(f"USER: {text}\nAssistant: <Response {number}>" for number, text in enumerate(users, 1))
    filled = [
        "\n".join(f"<Response {number}>: {text}" for number, text in enumerate([*earlier, answer], 1)) for answer in answers
    ]
    return system + TASK + gaps, filled
