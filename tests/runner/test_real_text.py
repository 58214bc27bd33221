"""The loop on real human text of every length: the docstrings of Python's standard library."""

import inspect
import json
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from helpers.commands import finish, start

SKIPPED = ("idlelib", "turtledemo", "test", "antigravity", "this", "lib2to3", "tkinter")  # they open windows or print


def summaries() -> Iterator[dict[str, str]]:
    """A function's or class's signature, and the first paragraph of what people wrote about it."""
    for module in sorted(module.name for module in pkgutil.iter_modules() if not module.name.startswith(("_", *SKIPPED))):
        if module not in sys.stdlib_module_names:
            continue
        loaded = import_module(module)
        for name, thing in sorted(vars(loaded).items()):
            members = vars(thing).items() if inspect.isclass(thing) else []
            for label, member in [(name, thing), *((f"{name}.{method}", value) for method, value in members)]:
                text = inspect.getdoc(member) if callable(member) else None
                if text and text.strip():
                    yield {"prompt": f"{module}.{label}{signature(member)}", "completion": text.split("\n\n")[0]}


def signature(thing: object) -> str:
    try:
        return str(inspect.signature(thing))  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError):
        return "(...)"


@pytest.mark.slow
def test_two_iterates_on_docstrings(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = list({row["prompt"]: row for row in summaries()}.values())
    rows.append({"prompt": "décrire: 你好 😀", "completion": "Une réponse — naïve, “quoted”."})
    assert len(rows) >= 2000
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = finish(
        start(
            tmp_path, f"data.path={tmp_path / 'd.jsonl'}", "data.max_prompt_length=200", "data.max_completion_length=200",
            "game.pairs=1000", "generation.max_new_tokens=64", "runtime.scoring_batch_size=32", "runtime.checkpoint_steps=50",
            "runtime.generation_batch_size=128", "evaluation.health_prompts=200", "training.per_device_train_batch_size=32",
        )
    )  # fmt: skip
    print(output)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logps = [record["chosen_logp"] for record in records]
    assert logps[2] > logps[1] > logps[0]  # the people's text becomes likelier with every iterate
