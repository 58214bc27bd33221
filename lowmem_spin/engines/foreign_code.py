"""Which Python of somebody's a game would run: files of functions that the recipe names, and what comes with a model that is
trusted to bring code; and which key it would send away."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lowmem_spin.common.errors import InputError, shortened
from lowmem_spin.common.files import sha256
from lowmem_spin.common.trust import Code
from lowmem_spin.config.choices import JudgeOracle
from lowmem_spin.config.recipe import Recipe
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.model_files import ModelFiles
from lowmem_spin.engines.oracles import function
from lowmem_spin.engines.oracles.base import Oracle
from lowmem_spin.engines.own_function import OwnFunction

FIELD = "model.trust_remote_code"
LOCAL = ("localhost", "127.0.0.1", "::1")


def code_of_oracle(oracle: Oracle | None) -> list[Code]:
    """The file of an oracle that is a person's own function."""
    return code_of_functions([oracle.own]) if isinstance(oracle, function.Function) else []


def code_of_functions(functions: Iterable[OwnFunction | None]) -> list[Code]:
    """The files of a person's own functions; what several fields name is one piece of code."""
    named: dict[str, list[OwnFunction]] = {}
    for one in functions:
        if one is not None:
            named.setdefault(one.content, []).append(one)
    return [
        Code(", ".join(one.field for one in some), repr(some[0].place if len(some) == 1 else str(some[0].file)), content)
        for content, some in named.items()
    ]


def key_of_judge(judge: Any, field: str) -> list[Code]:
    """The key that a recipe has sent to a judge elsewhere: a stranger's could name any variable, and any address.

    Args:
        judge: a section of the recipe; only a JudgeOracle has a key.
        field: its name there.
    """
    if not isinstance(judge, JudgeOracle) or judge.api_key_env is None:
        return []
    parts = urlsplit(judge.base_url)
    if parts.hostname in LOCAL:
        return []
    origin = f"{parts.scheme}://{parts.netloc}"
    content = hashlib.sha256(f"{judge.api_key_env} {origin}".encode()).hexdigest()
    return [Code(f"{field}.api_key_env", f"the key in {judge.api_key_env!r}", content, f"would be sent to {origin!r}")]


def code_of_model(recipe: Recipe, model: Source) -> list[Code]:
    """What transformers imports of the model's own files if the recipe lets it: all Python below a folder, or a hub's commit.

    Raises:
        InputError: it leads to code elsewhere, of which nobody knows what it is tomorrow.
    """
    if not recipe.model.trust_remote_code or not model.resolved:
        return []
    named = list(_named(ModelFiles(model)))
    for name in named:
        repository, dashes, _ = name.rpartition("--")
        if dashes and repository != model.location:
            raise InputError(
                f"{FIELD}: {model.location!r} takes its code from {shortened(repository)!r} on the hub, whatever that has by "
                "then; give that model itself, or a folder that has the code in it and names it in auto_map without the --"
            )
    if not model.local:
        if re.fullmatch("[0-9a-f]{40}", str(model.revision)) is None:
            raise InputError(
                f"{FIELD}: the revision {shortened(str(model.revision))!r} of {model.location!r} is no commit; give one"
            )
        return [Code(FIELD, repr(model.location), f"{model.location}@{model.revision}")]
    files = {str(path.relative_to(model.location)): sha256(path) for path in _python(Path(model.location))}
    for name in named:
        module = f"{name.rpartition('.')[0]}.py"
        if module not in files:
            raise InputError(f"{FIELD}: {model.location!r} names code that is not in it, {shortened(name)!r}; put it there")
    if not files:
        return []
    content = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return [Code(FIELD, f"{', '.join(list(files)[:3])}{', ...' if len(files) > 3 else ''} of {model.location!r}", content)]


def _named(files: ModelFiles) -> Iterator[str]:
    """The classes that a model's files name as their own: module.Class, or repository--module.Class."""
    for config in (files.whole_config, files.tokenizer_config):
        yield from _texts(config.get("auto_map"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _python(folder: Path) -> list[Path]:
    """All Python files below a folder, behind links too."""
    seen, found = set(), []
    for place, inner, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            inner.clear()
            continue
        seen.add(real)
        found += [Path(place) / name for name in names if name.endswith(".py")]
    return sorted(found)
