"""A preference oracle that is a Python function: tests, parsers, exact answers; whatever can be computed."""

import ast
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np

from lowmem_spin.algorithm.preferences import Comparison, check_preferences, of_scores
from lowmem_spin.algorithm.source_hashes import edited
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import reading
from lowmem_spin.config.choices import FunctionOracle
from lowmem_spin.engines.oracles.base import NoWeights, OracleContext

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
        self.file: Path | None = None
        self.function: Callable[..., Any] | None = None
        if name == "exact_match":
            self.function, self.content, self.place = exact_match, "built in", name
            return
        path, colon, attribute = name.rpartition(":")
        file = next((place for place in (recipe_dir / path, Path(path)) if place.is_file()), None) if colon else None
        if file is None:
            raise InputError(
                f"{FIELD}: {name!r} is neither exact_match nor file.py:function with a file beside the recipe or here"
            )
        self.file = file = file.resolve()
        self.place = f"{file}:{attribute}"
        with reading(file):
            source = file.read_bytes()
        self.content = hashlib.sha256(source).hexdigest()
        _check(source, file, attribute)

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
            self.function = self._load()
        try:
            given = np.asarray(self.function(question.messages, question.answers, question.reference), np.float64)
        except Exception as error:
            raise InputError(f"{FIELD}: {self.name!r} failed: {type(error).__name__}: {error}") from error
        if given.ndim == 1 and len(given) == len(question.answers) and np.isfinite(given).all():
            return of_scores(given)
        return check_preferences(given, len(question.answers), FIELD)

    def _load(self) -> Callable[..., Any]:
        """Import the very bytes that are a part of the keys, and that were trusted; a .pyc beside the file may be of others."""
        assert self.file is not None  # noqa: S101  # what is built in is there from the start
        with reading(self.file):
            source = self.file.read_bytes()
        if hashlib.sha256(source).hexdigest() != self.content:
            raise InputError(f"{FIELD}: {str(self.file)!r} was changed while the game was open; run again")
        module = ModuleType(f"lowmem_spin_oracle_{self.file.stem}")
        module.__file__ = str(self.file)
        sys.modules[module.__name__] = module
        try:
            exec(compile(source, str(self.file), "exec"), vars(module))  # noqa: S102  # it is what the person asked for
        except Exception as error:
            raise InputError(f"{FIELD}: {self.file} does not import: {type(error).__name__}: {error}") from error
        attribute = self.name.rpartition(":")[2]
        function = getattr(module, attribute, None)
        if not callable(function):
            raise InputError(f"{FIELD}: {self.file} has no function {attribute!r}")
        return function


def _check(source: bytes, file: Path, attribute: str) -> None:
    """Refuse a file that is no Python, or that nowhere gives anything this name, without running it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{FIELD}: {file} does not import: {type(error).__name__}: {error}") from None
    if not any({attribute, "*"} & _names(node) for node in ast.walk(tree)):  # * is whatever another module has
        raise InputError(f"{FIELD}: {file} has no function {attribute!r}")


def _names(node: ast.AST) -> set[str]:
    """What a piece of source gives a name to, as far as a function of the file may come of it."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
            return {name}
        case ast.alias(name=name, asname=other):
            return {other or name}
    return set()
