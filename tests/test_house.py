"""The house rules that a tool can check: style, types, and who may import whom."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers.commands import arguments

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command", ["ruff check .", "ruff format --check .", "lint-imports", pytest.param("pyright", marks=pytest.mark.slow)]
)
def test_the_house_is_tidy(command: str) -> None:
    name, *arguments = command.split()
    if name == "pyright" and importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is in the dev extra: it fetches itself on first use")
    if name == "pyright":
        arguments = ["--pythonpath", sys.executable]  # also when this environment is not the activated one
    result = subprocess.run([BIN / name, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def imported(words: Sequence[str], cwd: Path) -> str:
    """Those of what takes long to import that a command has imported."""
    script = (
        "import atexit, sys; "
        "atexit.register(lambda: print({'torch', 'transformers', 'peft', 'openai', 'ray'} & sys.modules.keys())); "
        "from lowmem_spin.cli.main import main; main()"
    )
    answer = subprocess.run([sys.executable, "-c", script, *words], cwd=cwd, capture_output=True, text=True, check=True)
    assert len(answer.stdout.splitlines()) > 1
    return answer.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "words", ["--help", "recipe quickstart", "plan quickstart --set output.store=new", "gc --store copy/store --runs copy"]
)
def test_what_answers_at_once_imports_no_torch(words: str, copy: Path) -> None:
    assert imported(words.split(), copy.parent) == "set()"


def test_a_finished_game_is_played_again_without_torch(copy: Path) -> None:
    assert imported(arguments(copy), copy.parent) == "set()"


@pytest.mark.parametrize(("capability", "interpreted"), [("8.9", "None"), ("None", "1")])
def test_triton_is_interpreted_only_where_there_is_no_gpu(capability: str, interpreted: str) -> None:
    lines = [
        "import os, sys, lowmem_spin.engines.machine",
        f"lowmem_spin.engines.machine.cuda_capability = lambda: {capability}",
        "import conftest",
        "print(os.environ.get('TRITON_INTERPRET'), 'torch' in sys.modules)",
    ]
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", "\n".join(lines)]
    answer = subprocess.run(command, cwd=ROOT / "tests", env=clean, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == [interpreted, "False"]
