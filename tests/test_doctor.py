"""The self-tests of engines: what is left of a failed one."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from lowmem_spin import doctor, engines


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_the_log_that_a_failed_test_names_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is real up to its worker process, which looks for vLLM in vain."""
    monkeypatch.setattr(doctor, "installed", lambda name: True)
    monkeypatch.setattr(engines, "installed", lambda name: True)
    (_, hf), (name, verdict) = doctor.self_tests(["vllm"], tmp_path / "store")
    assert hf.startswith("works: trained two adapters, 3 different answers")
    kept = doctor.recorded("vllm", tmp_path / "store")
    assert name == "vllm" and kept is not None and verdict.startswith(kept)
    assert kept.startswith("fails: the vllm worker failed: No module named 'vllm'")
    assert "ModuleNotFoundError" in Path(kept.rpartition("its log is ")[2]).read_text()
