"""A tokenizer that was converted badly spells letter by letter: one line says so, of Latin script alone."""

from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lowmem_spin.data.prepare import SCHEMA
from lowmem_spin.data.rows import Rows
from lowmem_spin.data.sources import Source
from lowmem_spin.engines.row_check import letters_notes

ENGLISH = "The committee met on a cold morning in November to talk about the new library."
CHINESE = "委员会在十一月一个寒冷的早晨开会，讨论新图书馆的计划，大多数成员都读过。" * 2


def _model(folder: Path, tokens: int) -> Source:
    """A folder with a tokenizer of so many tokens, none of which merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*alphabet, *(f"unused{place}" for place in range(tokens))])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.save(str(folder / "tokenizer.json"))
    return Source(str(folder), None, "m")


def _rows(text: str, count: int, each: float) -> Rows:
    """`count` rows of one answer, of so many characters a token."""
    tokens = list(range(round(len(text) / each)))
    row = {
        "id": "r", "prompt": [1], "chosen": tokens, "completion": text, "category": None, "rejected": [], "messages": "[]",
    }  # fmt: skip
    table = [{name: {**row, "id": f"r{place}"}.get(name) for name in SCHEMA.names} for place in range(count)]
    return Rows(pa.Table.from_pylist(table, schema=SCHEMA))


@pytest.mark.parametrize(
    ("text", "count", "each", "tokens", "told"),
    [
        (ENGLISH, 40, 1.0, 2000, True),
        (ENGLISH, 40, 1.4, 2000, True),
        (ENGLISH, 40, 4.5, 2000, False),
        (ENGLISH, 40, 1.0, 32, False),  # bytes by design
        (ENGLISH, 10, 1.0, 2000, False),  # too few to tell
        (CHINESE, 40, 0.7, 2000, False),
        ("12 + 34 = 46, 46 * 2 = 92, 92 / 4 = 23, 23 - 4 = 19", 40, 1.0, 2000, False),  # digits are tokens of their own
    ],
)
def test_letter_by_letter_is_told(text: str, count: int, each: float, tokens: int, told: bool, tmp_path: Path) -> None:
    said = letters_notes(_model(tmp_path, tokens), _rows(text, count, each), "data.path")
    assert bool(said) == told, said
    for line in said:
        assert line.startswith(f"data.path: the tokenizer of {str(tmp_path)!r} makes a token of every 1.")
        assert line.endswith("its merges may have been lost in a conversion; take the model's own tokenizer")
