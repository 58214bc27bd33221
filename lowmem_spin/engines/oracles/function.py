"""A preference oracle that is a Python function: tests, parsers, exact answers; whatever can be computed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from lowmem_spin.algorithm.preferences import Comparison, check_preferences, of_scores
from lowmem_spin.algorithm.source_hashes import edited
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.choices import FunctionOracle
from lowmem_spin.engines.oracles.base import NoWeights, OracleContext
from lowmem_spin.engines.own_function import OwnFunction

FIELD = "game.oracle.function"


def exact_match(messages: list[dict[str, str]], answers: list[str], reference: str) -> list[float]:
    """1 for an answer that is the data's to the letter, else 0."""
    return [float(answer == reference) for answer in answers]


class Function(NoWeights):
    """`exact_match`, or `file.py:function`: called with (messages, answers, reference) for every prompt.

    It returns one score for each answer, or the preferences themselves, a K by K matrix. A file is only read until there is
    something to judge: whoever opens a game to plan it, or to look at it, runs nothing of it.
    """

    def __init__(self, name: str, recipe_dir: Path) -> None:
        self.name = name
        self.own: OwnFunction | None = None
        self.function: Callable[..., Any] | None = None
        if name == "exact_match":
            self.function, self.content, self.place = exact_match, "built in", name
        else:
            self.own = OwnFunction.find(FIELD, name, recipe_dir, "neither exact_match nor ")
            self.content, self.place = self.own.content, self.own.place

    @classmethod
    def from_recipe(cls, section: FunctionOracle, context: OracleContext) -> Self:
        """See base.Oracle."""
        return cls(section.function, context.sources.recipe_dir)

    def spec(self) -> dict[str, Any]:
        """Its name and its file's content: an edited function is another oracle."""
        own = edited("oracle exact_match") if self.name == "exact_match" else {}
        return {"oracle": "function", "name": self.name.rpartition(":")[2], "content": self.content, **own}

    def located(self) -> dict[str, Any]:
        """See base.Oracle."""
        return {"function": self.place}

    def prefer(self, questions: Sequence[Comparison]) -> list[np.ndarray]:
        """P for each question; see base.Oracle."""
        return [self._prefer(question) for question in questions]

    def _prefer(self, question: Comparison) -> np.ndarray:
        if self.function is None:
            self.function = self._unchanged().call
        returned = self.function(question.messages, question.answers, question.reference)
        try:
            given = np.asarray(returned, np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{FIELD}: {self.name!r} gave what is no array of numbers: {error}") from None
        if given.ndim == 1 and len(given) == len(question.answers) and np.isfinite(given).all():
            return of_scores(given)
        return check_preferences(given, len(question.answers), FIELD)

    def _unchanged(self) -> OwnFunction:
        """What is a part of the keys, and was trusted, if that is still what a person sees in the file."""
        assert self.own is not None  # noqa: S101  # what is built in is there from the start
        if self.own.changed():
            raise InputError(f"{FIELD}: {str(self.own.file)!r} was changed while the game was open; run again")
        return self.own
