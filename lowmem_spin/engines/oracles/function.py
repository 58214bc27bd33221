"""A preference oracle that is a Python function: tests, parsers, exact answers; whatever can be computed."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from lowmem_spin.algorithm.preferences import Comparison, check_preferences, of_scores
from lowmem_spin.algorithm.source_hashes import edited
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import sha256
from lowmem_spin.config.choices import FunctionOracle
from lowmem_spin.engines.oracles.base import NoWeights, OracleContext

FIELD = "game.oracle.function"


def exact_match(messages: list[dict[str, str]], answers: list[str], reference: str) -> list[float]:
    """1 for an answer that is the data's to the letter, else 0."""
    return [float(answer == reference) for answer in answers]


class Function(NoWeights):
    """`exact_match`, or `file.py:function`: called with (messages, answers, reference) for every prompt.

    It returns one score for each answer, or the preferences themselves, a K by K matrix.
    """

    def __init__(self, name: str, recipe_dir: Path) -> None:
        self.name = name
        if name == "exact_match":
            self.function: Callable[..., Any] = exact_match
            self.content, self.place = "built in", name
            return
        path, colon, attribute = name.rpartition(":")
        file = next((place for place in (recipe_dir / path, Path(path)) if place.is_file()), None) if colon else None
        if file is None:
            raise InputError(
                f"{FIELD}: {name!r} is neither exact_match nor file.py:function with a file beside the recipe or here"
            )
        self.content, self.place = sha256(file), f"{file.resolve()}:{attribute}"
        self.function = _load(file, attribute, name)

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
        try:
            given = np.asarray(self.function(question.messages, question.answers, question.reference), np.float64)
        except Exception as error:
            raise InputError(f"{FIELD}: {self.name!r} failed: {type(error).__name__}: {error}") from error
        if given.ndim == 1 and len(given) == len(question.answers) and np.isfinite(given).all():
            return of_scores(given)
        return check_preferences(given, len(question.answers), FIELD)


def _load(file: Path, attribute: str, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"lowmem_spin_oracle_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{FIELD}: {name!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{FIELD}: {file} does not import: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"{FIELD}: {file} has no function {attribute!r}")
    return function
