"""The source of what stages compute with, as hashes: an edited loss is never answered from the store.

A hash is of the parsed code: of a function or class, and of all it names in its own module and in others of this package.
Comments, docstrings and layout are not in it. The hashes of the code as it comes are in source_hashes.json, and only what
differs from them is in keys, so that keys of before there were hashes still hold. After a change that computes the same

    python -m lowmem_spin.algorithm.source_hashes

writes them anew. After one that computes something else, the number in VERSIONS goes up as well.
"""

import ast
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowmem_spin.common.keys import digest

# Bumped by hand when a stage of this kind would compute something else from the same inputs.
VERSIONS = {"data": 2, "generate": 1, "judge": 1, "score": 1, "train": 1, "average": 1, "amortise": 1}

ROOT = Path(__file__).parents[2]  # where the package is
PINNED: dict[str, str] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

# "kind" -> the registry with one of them for each name; "kind name" -> a definition.
REGISTRIES = {
    "loss": "lowmem_spin.algorithm.losses:LOSSES",
    "reference": "lowmem_spin.algorithm.references:REFERENCES",
    "sampler": "lowmem_spin.algorithm.samplers.mixture:SAMPLERS",
}
DEFINITIONS = {
    "trainer": ["lowmem_spin.engines.training.trainer:PairTrainer.compute_loss"],
    "row order": ["lowmem_spin.engines.training.trainer:LengthGrouped"],
    "reference ema": ["lowmem_spin.engines.training.average:ema_adapter"],
    "sampler gflownet": ["lowmem_spin.engines.training.gflownet:GFlowNetTrainer"],
    "oracle exact_match": ["lowmem_spin.engines.oracles.function:exact_match", "lowmem_spin.algorithm.preferences:of_scores"],
    "win rates": ["lowmem_spin.algorithm.preferences:win_rates", "lowmem_spin.algorithm.preferences:best_and_worst"],
}
# What is named there is followed, but not into the modules whose values are in keys themselves.
FOLLOWED = "lowmem_spin.algorithm."
PLAIN_VALUES = {
    f"{FOLLOWED}{name}" for name in ("game", "pair_sources", "roles", "settings", "source_hashes", "stages", "touches")
}
UNSEEN = {"ctx", "kind", "type_comment"}  # fields of a tree that change nothing, or are not there in every Python


def edited(*names: str) -> dict[str, Any]:
    """What keys have of the sources called so: {"source": {name: hash}} of those that are not as they come, or nothing."""
    found = {name: source_hash(name, ROOT) for name in names}
    differing = {name: value for name, value in found.items() if value != PINNED.get(name)}
    return {"source": differing} if differing else {}


@functools.cache
def source_hash(name: str, root: Path) -> str:
    """The hash of one source, such as "loss dpo", of the package in the folder `root`."""
    if name in DEFINITIONS:
        return digest(_reached(DEFINITIONS[name], root))
    kind, _, choice = name.partition(" ")
    return digest(_reached([f"{REGISTRIES[kind]}[{choice}]"], root))


def all_hashes(root: Path) -> dict[str, str]:
    """The hashes of everything that can be chosen or is always used, by name."""
    names = list(DEFINITIONS)
    for kind, registry in REGISTRIES.items():
        module, _, variable = registry.partition(":")
        entries = Module.read(module, root).registry(variable)
        names += [f"{kind} {choice}" for choice in entries or {}]
    return {name: source_hash(name, root) for name in sorted(names)}


class Module:
    """The top level of a file: which statements make each name what it is."""

    def __init__(self, tree: ast.Module) -> None:
        self.statements: dict[str, list[ast.AST]] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        for statement in tree.body:
            self.imports |= _brought_by(statement)
            for name in _made_by(statement):
                self.statements.setdefault(name, []).append(statement)

    @staticmethod
    @functools.cache
    def read(name: str, root: Path) -> "Module":
        path = root / Path(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return Module(ast.parse(file.read_bytes()))

    def registry(self, variable: str) -> dict[str, list[ast.AST]] | None:
        """The entries of a dict that is written out once, each with what is said of all; None if it is made in another way."""
        match self.statements.get(variable, []):
            case [ast.Assign(value=ast.Dict() as table)]:
                of_all: list[ast.AST] = []
            case [ast.AnnAssign(value=ast.Dict() as table, annotation=annotation)]:
                of_all = [annotation]
            case _:
                return None
        keys = [key.value if isinstance(key, ast.Constant) else None for key in table.keys]
        if not all(isinstance(key, str) for key in keys):
            return None
        return {str(key): [value, *of_all] for key, value in zip(keys, table.values, strict=True)}

    def parts(self, name: str) -> list[ast.AST]:
        """What defines NAME, Class.method, REGISTRY[choice] or "*", everything, which a registry is that is not written out."""
        variable, bracket, choice = name.removesuffix("]").partition("[")
        if bracket and choice in (entries := self.registry(variable) or {}):
            return entries[choice]
        if bracket or name == "*":
            return [statement for made in self.statements.values() for statement in made]
        owner, _, method = name.partition(".")
        if not method:
            return self.statements.get(owner, [])
        bodies = [statement.body for statement in self.statements[owner] if isinstance(statement, ast.ClassDef)]
        return [part for body in bodies for part in body if isinstance(part, ast.FunctionDef) and part.name == method]


def _made_by(statement: ast.stmt) -> set[str]:
    """Names that a statement at the top level defines or changes, as `TABLE[key] = f` and `TABLE.update(more)` do."""
    if isinstance(statement, ast.Import | ast.ImportFrom) or _is_text(statement):
        return set()
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    inside = list(ast.walk(statement))
    defined = {node.name for node in inside if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    return defined | {node.id for node in inside if isinstance(node, ast.Name)}


def _brought_by(node: ast.AST) -> dict[str, tuple[str, str]]:
    """{name: (module, name there, or "*" for the module itself)} of the imports in it."""
    found = {}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: (alias.name, "*") for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom):
            module = "." * inner.level + (inner.module or "")
            found |= {alias.asname or alias.name: (module, alias.name) for alias in inner.names}
    return found


def _absolute(written: str, importer: str) -> str:
    """The module that an import names, such as "..noise", in the module `importer`."""
    path = written.lstrip(".")
    level = len(written) - len(path)
    return ".".join([*importer.split(".")[:-level], *filter(None, [path])]) if level else written


def _reached(starts: Sequence[str], root: Path) -> dict[str, str]:
    """{"module:name": hash} of these definitions and of all that they name."""
    waiting, found = list(starts), {}
    while waiting:
        place = waiting.pop()
        if place not in found:
            found[place], named = _definition(place, root)
            waiting += named
    return found


@functools.cache
def _definition(place: str, root: Path) -> tuple[str, list[str]]:
    """(hash of a definition and of the imports it uses, the places that it names and that are hashed themselves)."""
    name, _, defined = place.partition(":")
    module = Module.read(name, root)
    parts = module.parts(defined)
    inside = [inner for part in parts for inner in ast.walk(part)]
    names = {defined, *(node.id for node in inside if isinstance(node, ast.Name))}
    imports = {used: module.imports[used] for used in names & module.imports.keys()}
    for part in parts:
        imports |= _brought_by(part)
    places, outside = [f"{name}:{used}" for used in names & module.statements.keys()], {}
    for used, (written, there) in imports.items():
        origin = _absolute(written, name)
        is_module = (root / Path(*origin.split("."), f"{there}.py")).is_file()
        source, wanted = (f"{origin}.{there}", "*") if is_module else (origin, there)
        if source.startswith(FOLLOWED) and source not in PLAIN_VALUES:
            places.append(f"{source}:{wanted}")
        outside[used] = [origin, there]
    if "[" in defined:  # of a registry that names places
        texts = [node.value for node in inside if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        places += [text for text in texts if text.startswith("lowmem_spin.")]
    return digest([_normal(parts), outside]), places


def _normal(node: Any) -> Any:
    """A tree as nested lists: without places, docstrings and what depends on the version of Python."""
    if isinstance(node, list):
        return [_normal(item) for item in node if not _is_text(item)]
    if isinstance(node, ast.Constant):
        return ["Constant", type(node.value).__name__, repr(node.value)]
    if isinstance(node, ast.AST):
        fields = {name: _normal(value) for name, value in ast.iter_fields(node) if name not in UNSEEN}
        return [type(node).__name__, {name: value for name, value in fields.items() if value not in (None, [])}]
    return node


def _is_text(node: Any) -> bool:
    """Whether it is a statement that is only text, as docstrings are."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


if __name__ == "__main__":
    written = json.dumps(all_hashes(ROOT), indent=2) + "\n"
    Path(__file__).with_suffix(".json").write_text(written, encoding="utf-8")
