"""Names and texts of strangers in a terminal, in a shell's command and in a model card: they are shown, and do nothing."""

import io
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lowmem_spin.cli import chat, model_card, serve
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.evaluation.judged.shared import file_name

EVIL = "\x1b]0;owned\x07[/bold][link=http://h]\u202e"


def test_names_cannot_steer_the_terminal() -> None:
    """Of policies in a chat, of models, judges and baselines in progress bars and while something loads."""
    out = io.StringIO()
    console = Console(file=out, width=500)
    voice: Any = SimpleNamespace(policy=SimpleNamespace(name=EVIL), answer=lambda question, show, button: show("said"))
    chat.talk([voice, voice], ["a question"], console, print)
    display = Display(console)
    display.title = EVIL
    with display.start_up(EVIL), display.stage("judge", f"{EVIL} by {EVIL}", 1) as meter:
        meter.advance(1)
    assert out.getvalue().count("\\x1b]0;owned\\x07[/bold][link=http://h]\\u202e") >= 2 + 3
    assert not set("\x1b\x07\u202e") & set(out.getvalue())


def test_a_command_to_paste_shows_what_it_has() -> None:
    """And a shell reads it as what it was, whatever the words have in them."""
    words = ["/models/it's\x1b[31m", "a b", "$(touch owned)", "\\n\n", "ünï\u0085\u202e", os.fsdecode(b"\xff"), "--plain"]
    line = serve.line({"A": "1\x07"}, ["printf", r"%s\0", *words])
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout == b"".join(os.fsencode(word) + b"\0" for word in words)


def test_names_in_a_card_are_no_markup(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)> | **b** `c`\n# head"
    metrics = tmp_path / "metrics.jsonl"
    records = [{"name": mine, "length": 7.0, "length_se": 0.5} for mine in ("base", name)]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    header, rule, *rows = model_card._results(metrics, name).split("\n\n")[0].splitlines()
    assert rows[0].startswith("| base | 7") and len(rows) == 2
    (row,) = rows[1:]
    assert row.startswith(r"| **&lt;img src=x onerror=alert(1)&gt; \| \*\*b\*\* \`c\`\\n\# head** | 7")
    assert header.count("|") == rule.count("|") == 3


@pytest.mark.parametrize("name", ["x" * 400, "Ж" * 200, f"{'a/' * 300}b", "\ud800" * 300, "m"])
def test_a_long_name_is_a_file_of_its_own(name: str, tmp_path: Path) -> None:
    """As a judge of any name may be called."""
    places = {tmp_path / f"annotations_iterate_0_by_{file_name(one)}.json" for one in (name, f"{name}2")}
    for place in places:
        place.write_text("")
    assert len(places) == len(list(tmp_path.iterdir())) == 2


def test_no_name_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_vllm", lambda: ["vllm", "serve"])
    for host in ("a..b", "x" * 64, "no.such.host.invalid", "\ud800"):
        with pytest.raises(InputError, match=r"^--port 8000: cannot listen on .*; choose another --port or --host$"):
            serve.check_port(host, 8000)
