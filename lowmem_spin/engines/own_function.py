"""A function in a Python file of a person's own: found, known by its content, loaded and called; what is wrong is one line."""

import ast
import functools
import hashlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any, Self

from lowmem_spin.algorithm.source_hashes import Module
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import reading


@dataclass(frozen=True)
class OwnFunction:
    """`file.py:name`. Its file is only read until it is called: whoever opens a game to look at it runs nothing of it.

    What is run are the bytes that were read, which are a part of keys and were trusted, whatever the file has become since. It
    goes to another process as it is.
    """

    field: str  # the recipe's that names it
    file: Path
    name: str
    source: bytes

    @classmethod
    def find(cls, field: str, written: str, recipe_dir: Path, instead: str = "") -> Self:
        """What a recipe's field names, beside the recipe or here.

        Args:
            field: for messages.
            written: file.py:name.
            recipe_dir: the recipe's folder.
            instead: what else it might have been, such as "neither exact_match nor ".

        Raises:
            InputError: there is no such file, it is no Python, or gives nothing this name; one line.
        """
        path, colon, name = written.rpartition(":")
        file = next((place for place in (recipe_dir / path, Path(path)) if place.is_file()), None) if colon else None
        if file is None and instead:
            raise InputError(f"{field}: {written!r} is {instead}file.py:function with a file beside the recipe or here")
        if file is None:
            remedy = "neither next to the recipe nor in the working directory" if colon else "write it as file.py:function"
            raise InputError(f"{field}: no file {(path or written)!r}, {remedy}")
        file = file.resolve()
        with reading(file):
            source = file.read_bytes()
        found = cls(field, file, name, source)
        if not any({name, "*"} & _names(node) for node in found.nodes()):  # * is whatever another module has
            raise InputError(f"{field}: {file} has no function {name!r}")
        return found

    @property
    def content(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.source).hexdigest()

    @property
    def place(self) -> str:
        """As it is written from the root."""
        return f"{self.file}:{self.name}"

    def nodes(self) -> list[ast.AST]:
        """All of the parsed file.

        Raises:
            InputError: it is no Python.
        """
        try:
            return list(ast.walk(ast.parse(self.source)))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise InputError(f"{self.field}: {self.file} does not import: {type(error).__name__}: {error}") from None

    def shows(self, *names: str) -> bool:
        """Whether the function, or what it uses of its file, has one of these as an attribute or as a text."""
        return any(_said(node) in names for node in self._used())

    def hands_on(self) -> bool:
        """Whether its first argument goes elsewhere as a whole, so that the file need not show what is read of it."""
        used = self._used()
        own = next((node for node in used if isinstance(node, ast.FunctionDef) and node.name == self.name), None)
        if own is None or not (own.args.posonlyargs or own.args.args):
            return True
        first = (own.args.posonlyargs + own.args.args)[0].arg
        looked_at = {id(node.value) for node in used if isinstance(node, ast.Attribute)}
        return any(isinstance(node, ast.Name) and node.id == first and id(node) not in looked_at for node in used)

    def _used(self) -> list[ast.AST]:
        """All of the function, and of what of its file it names, and so on."""
        statements, waiting = Module(ast.parse(self.source)).statements, [self.name]
        found: dict[str, list[ast.AST]] = {}
        while waiting:
            name = waiting.pop()
            if name in statements and name not in found:
                found[name] = [node for statement in statements[name] for node in ast.walk(statement)]
                waiting += [node.id for node in found[name] if isinstance(node, ast.Name)]
        return [node for nodes in found.values() for node in nodes]

    def changed(self) -> bool:
        """Whether the file has other bytes now."""
        with reading(self.file):
            return self.file.read_bytes() != self.source

    def load(self) -> Callable[..., Any]:
        """The function itself. This runs the file, once in a process.

        Raises:
            InputError: it does not import, or has no such function; one line.
        """
        try:
            module = _module(self.source, self.file)
        except (Exception, SystemExit) as error:
            raise InputError(f"{self.field}: {self.file} does not import{self._why(error)}") from error
        function = getattr(module, self.name, None)
        if not callable(function):
            raise InputError(f"{self.field}: {self.file} has no function {self.name!r}")
        return function

    def check_arguments(self, said: str, *values: Any, **options: Any) -> None:
        """Refuse a function that cannot be called so; `said` is how it is called.

        Raises:
            InputError: one line.
        """
        function = self.load()
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # of what is not written in Python
            return
        try:
            signature.bind(*values, **options)
        except TypeError as error:
            raise InputError(f"{self.field}: {self.place} takes {signature}, but is called with {said}: {error}") from None

    def call(self, *values: Any, **options: Any) -> Any:
        """What the function returns.

        Raises:
            InputError: whatever it raises, with the line of the file, in one line.
        """
        function = self.load()
        try:
            return function(*values, **options)
        except (Exception, SystemExit) as error:  # sys.exit() in somebody's file would end a game without a word
            raise InputError(f"{self.field}: {self.place} failed{self._why(error)}") from error

    def _why(self, error: BaseException) -> str:
        """The last line of the file that an exception has come through, and what it is."""
        lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == str(self.file)]
        return f"{f' in line {lines[-1]}' if lines else ''}: {type(error).__name__}: {error}"


@functools.cache
def _module(source: bytes, file: Path) -> ModuleType:
    """These bytes as a module; a .pyc beside the file may be of others."""
    module = ModuleType(f"lowmem_spin_own_{file.stem}_{hashlib.sha256(source).hexdigest()[:8]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    exec(compile(source, str(file), "exec"), vars(module))  # noqa: S102  # it is what the person asked for
    return module


def _said(node: ast.AST) -> str | None:
    """The name after a dot, or a text."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _names(node: ast.AST) -> set[str]:
    """What a piece of source gives a name to, as far as a function of the file may come of it."""
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
            return {name}
        case ast.alias(name=name, asname=other):
            return {other or name}
    return set()
