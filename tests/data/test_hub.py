"""Recipes that need a hub: what each missing thing says, asked of a hub on this machine."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from helpers.commands import assert_one_line, call

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RECIPES = sorted(
    path.stem
    for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml")
    if not path.stem.startswith(("quickstart", "zoo"))
)


@contextmanager
def hub(api: int, files: int, error: str) -> Iterator[str]:
    """A hub that answers its API and its files with these statuses and this error code."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = api if self.path.startswith("/api/") else files
            body = json.dumps({"id": "google/gemma-2b", "sha": COMMIT, "siblings": [], "tags": []} if status == 200 else {})
            self.send_response(status)
            if status != 200:
                self.send_header("X-Error-Code", error)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body.encode())

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def run(recipe: str, folder: Path, **environment: str) -> str:
    command = [sys.executable, "-m", "lowmem_spin.cli", "run", recipe, f"--set=output.store={folder / 'store'}"]
    here = {**os.environ, "HF_HOME": str(folder / "hf"), **environment}
    result = subprocess.run(
        [*command, f"--set=output.dir={folder / 'run'}"], capture_output=True, text=True, check=False, env=here, timeout=60
    )
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


@pytest.mark.parametrize("recipe", RECIPES)
def test_offline_every_recipe_says_so(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    result = call("run", recipe, f"--set=output.store={tmp_path / 'store'}", f"--set=output.dir={tmp_path / 'run'}")
    assert_one_line(result, "model.name_or_path")
    line = result.stderr
    assert "offline mode is on; check the spelling, and connect, or run `hf download" in line
    assert "` first; where it is gated, accept its licence on its hub page and set HF_TOKEN before; " in line
    assert line.endswith("from_gguf.py makes one of a GGUF file\n")


@pytest.mark.parametrize(
    ("api", "files", "error", "words"),
    [
        (200, 403, "GatedRepo", ["model.name_or_path: 'google/gemma-2b' is gated: accept its licence", "set HF_TOKEN"]),
        (200, 401, "GatedRepo", ["is gated: accept its licence", "set HF_TOKEN"]),
        (
            401,
            401,
            "RepoNotFound",
            ["is neither a path beside the recipe or here nor on the hub; if it is private"],
        ),
        (404, 404, "RevisionNotFound", ["has no revision"]),
        (200, 404, "EntryNotFound", ["'google/gemma-2b' is no model: it has no config.json"]),
        (
            503,
            503,
            "",
            ["the hub cannot be reached; check the spelling, and connect, or run `hf download google/gemma-2b` first"],
        ),
    ],
    ids=["licence", "token", "unknown", "revision", "file", "down"],
)
def test_what_a_hub_refuses_is_named(tmp_path: Path, api: int, files: int, error: str, words: list[str]) -> None:
    with hub(api, files, error) as endpoint:
        line = run("gemma2b_taste", tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT=endpoint)
    assert all(word in line for word in words), line


def test_no_network_is_named(tmp_path: Path) -> None:
    line = run("gemma2b_taste", tmp_path, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:1")
    assert "the hub cannot be reached" in line


def test_a_commit_is_resolved_once_per_store(tmp_path: Path) -> None:
    """A game that goes on tomorrow plays with the files it began with, also when the branch has moved or the hub is away."""
    from lowmem_spin.data.sources import Sources

    memory = tmp_path / "sources.json"
    memory.write_text(json.dumps({"hub|model|google/gemma-2b|None": COMMIT}))
    source = Sources(tmp_path, memory).model("google/gemma-2b", None)
    assert (source.revision, source.identity, source.local) == (COMMIT, COMMIT, False)
