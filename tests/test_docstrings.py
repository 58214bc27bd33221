"""Docstrings of the standard library as data: what is a row, and that two drawings are one."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from helpers.recipe_scripts import script

ROOT = Path(__file__).parent.parent
SOURCE = '''import os

def kept(a, b=1):
    """Add two numbers, the second of which
    may be left out.

    More about it.
    """
    total = a + b  # here
    return total

class Thing:
    @property
    def size(self):
        """Return the size of this thing."""
        return 3

    def empty(self):
        """There is nothing but this docstring here."""

def without_an_end(a):
    """This sentence does not end"""
    return a

def short(a):
    """Do it."""
    return a

def long(a):
    """Return what has been computed before all else."""
    return "{long}"
'''


@pytest.fixture(scope="module", name="script")
def loaded() -> ModuleType:
    return script("make_docstrings")


def test_short_functions_with_a_sentence_are_rows_without_it(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(SOURCE.replace("{long}", "x" * 500))
    rows = list(script.rows_of(tmp_path / "m.py", "package.m"))
    assert rows == [
        {
            "category": "package",
            "prompt": f"{script.ASKED}def kept(a, b=1):\n    total = a + b  # here\n    return total",
            "completion": "Add two numbers, the second of which may be left out.",
        },
        {
            "category": "package",
            "prompt": f"{script.ASKED}def size(self):\n    return 3",
            "completion": "Return the size of this thing.",
        },
    ]


def test_two_drawings_are_one_and_held_out_rows_are_of_other_modules(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for name in ("first", "again"):
        monkeypatch.setattr(sys, "argv", ["make_docstrings.py", "--out", str(tmp_path / name), "--train", "300"])
        script.main()
        files.append([(tmp_path / name / f"{split}.jsonl").read_text() for split in ("train", "heldout")])
    assert files[0] == files[1]
    train, held = ([json.loads(line) for line in text.splitlines()] for text in files[0])
    assert len(train) == 300 and len(held) >= 48
    assert not {row["category"] for row in train} & {row["category"] for row in held}
    every = [*train, *held]
    assert len({row["prompt"] for row in every}) == len({row["completion"] for row in every}) == len(every)
    assert not any('"""' + row["completion"] in row["prompt"] for row in every), "no answer is in its prompt"


@pytest.mark.parametrize(
    ("answer", "expected", "share"),
    [
        ("Return the size.", "return THE size", 1),
        ("Return the size of this.", "Return the size.", 2 * (3 / 5) * (3 / 3) / (3 / 5 + 3 / 3)),  # of precision and recall
        ("the the the", "the size", 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),  # a word counts as often as both have it
        ("Nothing alike", "at all", 0),
        ("...", "!", 0),
    ],
)
def test_words_in_common_are_f1(answer: str, expected: str, share: float) -> None:
    assert script("word_f1").word_f1("a prompt", answer, expected) == pytest.approx(share)
