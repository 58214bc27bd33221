"""Make data that people wrote and every machine has: functions of Python's standard library and their docstrings.

    python recipes/make_docstrings.py            # writes docstrings/train.jsonl and docstrings/heldout.jsonl

The prompt is a short function without its docstring, the completion the docstring's first paragraph. Held-out rows are of other
modules. Sources are parsed, nothing of them is imported; the rows depend on the version of Python alone, which is printed.
"""

import argparse
import ast
import hashlib
import inspect
import json
import platform
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

ASKED = "Describe in one short sentence what this Python function does.\n\n"
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "ensurepip", "pydoc_data"}
SOURCE, DOCSTRING = 450, (20, 160)  # most characters of a function; fewest and most of its docstring


def rows_of(file: Path, module: str) -> Iterator[dict[str, str]]:
    """The short functions of one file that have a docstring."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        written = ast.get_docstring(node)
        if not written:
            continue
        first = " ".join(inspect.cleandoc(written).split("\n\n")[0].split())
        said = node.body[0]
        kept = [*lines[node.lineno - 1 : said.lineno - 1], *lines[said.end_lineno or said.lineno : node.end_lineno]]
        source = textwrap.dedent("\n".join(kept)).strip("\n")
        if len(source) <= SOURCE and DOCSTRING[0] <= len(first) <= DOCSTRING[1] and first.endswith("."):
            yield {"category": module.partition(".")[0], "prompt": f"{ASKED}{source}", "completion": first}


def standard_library() -> list[tuple[Path, str]]:
    """Its files and their modules, those of tests and tools left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    kept = [file for file in files if not (LEFT_OUT & set(file.parts) or file.parts[0].startswith("config-"))]
    return [(root / file, ".".join(file.with_suffix("").parts)) for file in kept]


def draw(train: int, held_out: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows to learn from and rows held out, in an order that hashes give; no prompt and no answer comes twice."""
    found = {row["prompt"]: row for file, module in standard_library() for row in rows_of(file, module)}
    once = {row["completion"]: row for row in found.values()}
    rows = sorted(once.values(), key=lambda row: _hash(row["prompt"]))
    aside = [row for row in rows if int(_hash(row["category"]), 16) % 4 == 0]  # a quarter of the modules
    rest = [row for row in rows if int(_hash(row["category"]), 16) % 4]
    return rest[:train], aside[:held_out]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docstrings"))
    parser.add_argument("--train", type=int, default=480)
    parser.add_argument("--held-out", type=int, default=48)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "heldout"), draw(asked.train, asked.held_out), strict=True):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (asked.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(
            f"wrote {asked.out / name}.jsonl: {len(rows)} rows, sha256 {_hash(text)[:12]}, Python {platform.python_version()}"
        )


if __name__ == "__main__":
    main()
