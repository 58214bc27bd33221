"""Weights that are unpacked once are the ones that were written, or are written again."""

from pathlib import Path
from typing import Any

import pytest

from helpers.games import CPU
from lowmem_spin.data.sources import Source
from lowmem_spin.engines import dequantized
from lowmem_spin.engines.dequantized import Writer, unpacked


def test_weights_with_a_wrong_bit_are_written_again(quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Here:
        """Writes in this process."""

        def __init__(self, name: str, target: str, arguments: tuple[Any, ...], *rest: Any) -> None:
            Writer(*arguments)

        def close(self) -> None:
            pass

    monkeypatch.setattr(dequantized, "Worker", Here)
    said: list[str] = []

    def asked() -> Path:
        source = Source(str(quickstart / "base"), None, "the base")
        return unpacked(source, "nf4", CPU, False, tmp_path / "store" / "weights", said.append)

    weights = asked() / "model.safetensors"
    content = weights.read_bytes()
    assert asked() == weights.parent and said == []
    weights.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert asked() == weights.parent and weights.read_bytes() == content
    assert len(said) == 1 and "has other bytes in model.safetensors than were written; moved to" in said[0]
    (weights.parent / "manifest.json").unlink()  # as earlier versions wrote them
    assert asked() == weights.parent and len(said) == 1
