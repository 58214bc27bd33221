"""What the driver says, through an nvidia-smi of our own."""

from pathlib import Path

import pytest

from lowmem_spin.engines import machine


def test_the_memory_gauge_says_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.memory_gauge()() == [] or machine.cuda_capability() is not None
    smi, calls = tmp_path / "nvidia-smi", tmp_path / "calls"
    answers = '*compute_cap*) echo 8.9;; *) cat "$(dirname "$0")/memory";;'
    smi.write_text(f'#!/bin/sh\necho >> {calls}\ncase "$*" in {answers} esac\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "version", lambda package: "2.13.0")
    machine.unchanging.cache_clear()
    try:
        (tmp_path / "memory").write_text("7123 MiB, 24564 MiB\n")
        gauge = machine.memory_gauge()
        assert gauge() == gauge() == ["GPU 7.5 of 25.8 GB"]
        assert len(calls.read_text().splitlines()) == 2  # its capability once, its memory once
        monkeypatch.setattr(machine, "GAUGED", 0.0)
        (tmp_path / "memory").write_text("[N/A], [N/A]\n")
        assert gauge() == []
    finally:
        machine.unchanging.cache_clear()


@pytest.mark.parametrize(("visible", "count"), [(None, 2), ("0", 1), ("1,0", 2), ("0,1,2", 2), ("", 0)])
def test_gpus_are_counted_that_this_process_may_see(
    visible: str | None, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.visible_gpus() == count
