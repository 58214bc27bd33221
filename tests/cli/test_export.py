"""Exporting a policy: a GGUF file through llama.cpp, a Modelfile for Ollama, a repository on a hub of this machine."""

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import huggingface_hub
import jinja2
import pytest
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoTokenizer

from helpers.commands import assert_one_line, call
from lowmem_spin.cli import gguf, ollama
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.config.recipe import Recipe

# Stand-ins for llama.cpp's programs, which say how they were called: a file begins with GGUF, and has the call in it.
CONVERTER = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
model, outfile, outtype = words[0], words[words.index("--outfile") + 1], words[words.index("--outtype") + 1]
assert (pathlib.Path(model) / "model.safetensors").is_file()
pathlib.Path(outfile).write_text("GGUF" + json.dumps([outtype]))
"""
QUANTIZE = """#!{python}
import json, pathlib, sys
source, target, kind = sys.argv[1:]
called = json.loads(pathlib.Path(source).read_text()[4:])
pathlib.Path(target).write_text("GGUF" + json.dumps([*called, kind]))
"""


def llama_cpp(folder: Path, converter: str = CONVERTER, quantize: str | None = QUANTIZE) -> Path:
    """A clone of llama.cpp that is built, as far as it is called."""
    programs = {"convert_hf_to_gguf.py": converter, "build/bin/llama-quantize": quantize}
    for name, text in programs.items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text.replace("{python}", sys.executable))
            (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A folder as `export --merge` leaves it, as far as a converter looks."""
    (folder := tmp_path / "it's merged").mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def converted(folder: Path, kind: str, programs: gguf.LlamaCpp, dtype: str = "bfloat16") -> str:
    """What is said of a conversion."""
    told = StringIO()
    gguf.Conversion(folder, "mine", kind, dtype).run(programs, Display(Console(file=told, width=1000)))
    return told.getvalue()


@pytest.mark.parametrize(
    ("kind", "dtype", "called"),
    [
        ("Q4_K_M", "bfloat16", ["bf16", "Q4_K_M"]),
        ("Q8_0", "float32", ["f32", "Q8_0"]),
        ("IQ4_XS", "float16", ["f16", "IQ4_XS"]),
        ("F16", "float16", ["f16"]),
    ],
)
def test_a_model_is_converted_and_then_quantized(
    merged: Path, tmp_path: Path, kind: str, dtype: str, called: list[str]
) -> None:
    programs = gguf.find(llama_cpp(tmp_path / "clone"), kind)
    assert f"mine-{kind}.gguf" in converted(merged, kind, programs, dtype)
    assert (merged / f"mine-{kind}.gguf").read_text() == "GGUF" + json.dumps(called)
    assert sorted(path.name for path in merged.iterdir()) == ["config.json", f"mine-{kind}.gguf", "model.safetensors"]


def test_llama_cpp_is_looked_for_where_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = llama_cpp(tmp_path / "clone")
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, (clone, clone / "build" / "bin"))))
    on_path = gguf.find(None, "Q4_K_M")
    assert on_path == gguf.LlamaCpp((str(clone / "convert_hf_to_gguf.py"),), str(clone / "build/bin/llama-quantize"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LLAMA_CPP_DIR", str(clone))
    quantize = str(clone / "build/bin/llama-quantize")
    assert gguf.find(None, "Q8_0") == gguf.LlamaCpp((sys.executable, str(clone / "convert_hf_to_gguf.py")), quantize)
    unbuilt = llama_cpp(tmp_path / "unbuilt", quantize=None)
    assert str(gguf.find(unbuilt, "Q8_0").missing).startswith(f"no llama-quantize in {unbuilt / 'build' / 'bin'}")
    assert gguf.find(unbuilt, "BF16").missing is None  # that type needs none
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    with pytest.raises(InputError, match=r"LLAMA_CPP_DIR '.*': no convert_hf_to_gguf\.py there; give a clone of llama\.cpp"):
        gguf.find(None, "Q8_0")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("Q4KM", "--gguf 'Q4KM': llama.cpp has no such type; did you mean Q4_K_M?"),
        ("int4", "--gguf 'int4': llama.cpp has no such type; known here: Q4_0, "),
        ("iq2_xs", "--gguf iq2_xs: llama.cpp needs an importance matrix for it"),
    ],
)
def test_a_type_that_is_none_is_one_line(given: str, line: str) -> None:
    with pytest.raises(InputError) as error:
        gguf.quantization(given)
    assert str(error.value).startswith(line)
    assert gguf.quantization("q4_k_m") == "Q4_K_M"


FAILS = "import pathlib, sys; pathlib.Path({target}).write_text('GG'); print('on it'); sys.exit('ValueError: no such model')"


@pytest.mark.parametrize(
    ("programs", "line", "left"),
    [
        (
            {"converter": FAILS.format(target="sys.argv[3]")},
            "convert_hf_to_gguf.py failed with exit code 1: ValueError: no",
            [],
        ),
        ({"converter": "print('done')"}, "convert_hf_to_gguf.py failed with exit code 0: done; ", []),
        (
            {"quantize": "#!{python}\n" + FAILS.format(target="sys.argv[2]")},
            "llama-quantize failed with exit code 1: ValueError: no such model; ",
            ["mine-bf16.gguf"],
        ),
    ],
    ids=["converter", "nothing made", "quantizer"],
)
def test_what_llama_cpp_refuses_is_one_line(
    merged: Path, tmp_path: Path, programs: dict[str, str], line: str, left: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        converted(merged, "Q4_K_M", gguf.find(llama_cpp(tmp_path / "clone", **programs), "Q4_K_M"))
    assert str(error.value).startswith(f"--gguf Q4_K_M: llama.cpp's {line}")
    assert f"{merged / 'llama.cpp.log'} has all that it said" in str(error.value)
    assert "\n" not in str(error.value)
    kept = ["config.json", "llama.cpp.log", *left, "model.safetensors"]
    assert sorted(path.name for path in merged.iterdir()) == kept


def test_without_llama_cpp_the_printed_commands_do_it(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a person would copy them, in a shell, where there is a clone."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    to = tmp_path / "it's $HOME"
    result = call("export", whole / "run", "--gguf", "Q4_K_M", "--to", to)
    assert result.returncode == 1, result.stderr
    said = " ".join(result.stderr.split())
    last = result.stderr.splitlines()[-1]
    assert last.startswith("no GGUF file was made") and f"{to} has the merged model, which llama.cpp would refuse" in last
    assert "not converted: no convert_hf_to_gguf.py and no llama-quantize on the PATH; " in said
    assert "no tokenizer.model of this base is here" in said
    assert (to / "model.safetensors").is_file()
    assert not list(to.glob("*.gguf"))
    assert f"ollama create run-iterate-1 -f {shlex.quote(str(to / 'Modelfile'))}" in said
    llama_cpp(tmp_path / "llama.cpp")
    (tmp_path / "python").symlink_to(sys.executable)
    assert len(result.stdout.splitlines()) == 2
    subprocess.run(["/bin/sh", "-e"], input=result.stdout, text=True, check=True, cwd=tmp_path)
    (source,) = re.findall(r"FROM \./(.+)\n", (to / "Modelfile").read_text())
    assert (to / source).read_text() == 'GGUF["bf16", "Q4_K_M"]'


def test_with_llama_cpp_the_file_and_what_tells_of_it_are_there(whole: Path, tmp_path: Path) -> None:
    clone = llama_cpp(tmp_path / "clone")
    result = call("export", whole / "run", "--gguf", "f16", "--to", tmp_path / "out", "--llama-cpp", clone)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    file = tmp_path / "out" / "run-iterate-1-F16.gguf"
    assert file.read_text() == 'GGUF["f16"]'
    assert (tmp_path / "out" / "Modelfile").read_text().startswith(f"FROM ./{file.name}\n")
    assert f"`{file.name}` is this model as llama.cpp has made it, in F16" in (tmp_path / "out" / "README.md").read_text()
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float16"}  # rounded once


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(find_recipe("quickstart"))


@pytest.fixture
def tokenizer(quickstart: Path) -> Any:
    return AutoTokenizer.from_pretrained(quickstart / "base")


def as_jinja(go: str) -> str:
    """What the Modelfiles use of Go's text/template, in Jinja's words."""
    opened: list[str] = []

    def word(match: re.Match[str]) -> str:
        said = match[1].replace("$message.", "message.").replace("$.System", "system").replace("$place", "loop.index0")
        said = re.sub(r"(?<![\w$])\.(?=[A-Z])", "message.", said)
        said = re.sub(r"eq (\S+) (\"\w+\"|\d)", r"(\1 == \2)", said)
        said = re.sub(r"and (\S+) (\(.*\))", r"\1 and \2", said)
        if said.startswith("range"):
            opened.append("for")
            return "{% for message in messages %}"
        if said.startswith("if "):
            opened.append("if")
            return f"{{% {said} %}}"
        if said == "end":
            return f"{{% end{opened.pop()} %}}"
        if said.startswith("else"):
            return f"{{% {said.replace('else if', 'elif')} %}}"
        return f"{{{{ {said} }}}}"

    return re.sub(r"\{\{ (.*?) \}\}", word, go)


TALKS = [
    [("user", 'What is "{{ this }}"?\nSay.')],
    [("user", "a"), ("assistant", "b"), ("user", "c")],
    [("system", "Be brief."), ("user", "a")],
    [("system", "Be\nbrief."), ("user", "a"), ("assistant", "b"), ("user", "c")],
]


@pytest.mark.parametrize("name", ollama.GO)
def test_ollama_is_told_to_ask_as_the_game_did(name: str, tokenizer: Any, recipe: Recipe, quickstart: Path) -> None:
    if name == "shipped":
        assert (quickstart / "base" / "chat_template.jinja").read_text() == ollama.JINJA[name]
    tokenizer.chat_template = ollama.JINJA[name]
    text, notes = ollama.modelfile("m.gguf", tokenizer, recipe, [2, 5], 1024)
    assert notes == []
    (go,) = re.findall(r'^TEMPLATE """(.*?)"""$|^TEMPLATE "(.*?)"$', text, re.DOTALL | re.MULTILINE)
    environment = jinja2.Environment(keep_trailing_newline=True)  # noqa: S701  # no page
    template = environment.from_string(as_jinja("".join(go)))
    for turns in TALKS:
        asked = [{"role": role, "content": content} for role, content in turns]
        heard = [{"Role": role, "Content": content} for role, content in turns]
        system = next((content for role, content in turns if role == "system"), "")
        expected = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert template.render(messages=heard, system=system) == expected


def test_a_modelfile_says_what_else_the_game_knew(tokenizer: Any, recipe: Recipe) -> None:
    data = recipe.data.model_copy(update={"system_prompt": 'Say "yes".\nOr no.'})
    drawn = recipe.generation.model_copy(update={"temperature": 0.7, "top_p": 0.9, "top_k": 20})
    changed = recipe.model_copy(update={"data": data, "generation": drawn})
    text, _ = ollama.modelfile("m.gguf", tokenizer, changed, [2, 5], 1024)
    after = text[text.index("SYSTEM") :]
    assert text.startswith("FROM ./m.gguf\nTEMPLATE ")
    assert after.splitlines() == [
        'SYSTEM """Say "yes".',
        'Or no."""',
        'PARAMETER stop "<eos>"',
        'PARAMETER stop "<end_of_turn>"',
        "PARAMETER temperature 0.7",
        "PARAMETER top_p 0.9",
        "PARAMETER top_k 20",
        "PARAMETER repeat_penalty 1",
        "# less takes less memory",
        "PARAMETER num_ctx 1024",
    ]


def test_a_template_that_ollama_cannot_be_told_is_left_to_the_gguf(tokenizer: Any, recipe: Recipe) -> None:
    tokenizer.chat_template = ollama.JINJA["chatml"].replace("{% for", "Today is Monday. {% for", 1)
    text, (note,) = ollama.modelfile("m.gguf", tokenizer, recipe, [2], None)
    assert "TEMPLATE" not in text and "num_ctx" not in text
    assert note.startswith("Modelfile: no TEMPLATE, since this chat template is none of gemma, chatml, zephyr, alpaca; ")
    tokenizer.chat_template = ollama.JINJA["gemma"].replace(
        "{% set", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{% set", 1
    )
    assert "<start_of_turn>model" in ollama.modelfile("m.gguf", tokenizer, recipe, [2], None)[0]  # as Gemma's own refuses it


class Hub(ThreadingHTTPServer):
    """As much of a hub as an upload asks for: who I am, repositories, and commits whose files come along."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories: dict[str, bool] = {}  # name -> private
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.refuses = ""  # a part of a path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes) -> None:
        hub: Any = self.server
        path = self.path.partition("?")[0]
        hub.asked.append((self.command, path))
        hub.tokens.add(self.headers.get("Authorization"))
        if hub.refuses and hub.refuses in path:
            self._send(403, {"error": "no"})
        elif path == "/api/whoami-v2":
            self._send(200, {"name": "me", "type": "user"})
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            hub.repositories[f"me/{asked['name']}"] = asked.get("private", asked.get("visibility") == "private")
            self._send(200, {"url": f"{hub.url}/me/{asked['name']}"})
        elif path.endswith("/preupload/main"):
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]
            self._send(200, {"files": files})
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._send(200, {"commitUrl": f"{hub.url}/me/x/commit/1", "commitOid": "1" * 40, "success": True})
        elif (name := path.removeprefix("/api/models/")) in hub.repositories:
            self._send(200, {"id": name, "private": hub.repositories[name], "siblings": [], "tags": []})
        else:
            self._send(404, {}, "RepoNotFound")

    def _send(self, status: int, answer: dict[str, Any], error: str = "") -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    for name, value in (("ENDPOINT", server.url), ("HF_HUB_OFFLINE", False)):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    huggingface_hub.close_session()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        huggingface_hub.close_session()


@pytest.mark.parametrize(("options", "public"), [([], False), (["--merge", "--public"], True)], ids=["adapter", "merged"])
def test_a_push_sends_the_folder_and_nothing_of_this_machine(
    whole: Path, tmp_path: Path, hub: Hub, options: list[str], public: bool
) -> None:
    result = call("export", whole / "run", "--to", tmp_path / "out", "--push", "me/mine", *options)
    assert result.returncode == 0, result.stderr
    assert hub.repositories == {"me/mine": not public}
    assert f"{hub.url}/me/mine" in result.stderr
    here = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files == here
    assert hub.tokens - {None} == {"Bearer hf_mine"}
    card = here["README.md"].decode()
    assert "**iterate 1**" in card  # the measured table
    for name, content in here.items():
        assert not any(text.encode() in content for text in (str(whole), str(Path.home()), os.getcwd(), "hf_mine")), name


def test_a_push_that_cannot_be_is_refused_before_anything_is_written(
    whole: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*options: str) -> str:
        result = call("export", whole / "run", "--to", tmp_path / "out", *options)
        assert_one_line(result)
        assert not (tmp_path / "out").exists()
        assert not any(command == "POST" for command, _ in hub.asked)
        return result.stderr

    hub.repositories = {"me/seen": False, "me/hidden": True}
    assert "--push 'me/seen': it is there already, and public; add --public" in refused("--push", "me/seen")
    assert "--push 'me/hidden': it is there already, and private; " in refused("--push", "me/hidden", "--public")
    assert "--push 'mine': no name of a repository" in refused("--push", "mine")
    assert "--push 'me/a b': no name of a repository" in refused("--push", "me/a b")
    assert "--public needs --push USER/NAME" in refused("--public")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "--push with --gguf: no GGUF file can be made here: " in refused("--push", "me/x", "--gguf", "Q8_0")
    hub.refuses = "whoami"
    assert "the hub does not let this token write there" in refused("--push", "me/x")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "--push 'me/x': the hub cannot be reached (ConnectError); see to the network" in refused("--push", "me/x")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert "--push 'me/x': offline mode is on; unset HF_HUB_OFFLINE" in refused("--push", "me/x")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "--push 'me/x': there is no token of the hub; set HF_TOKEN" in refused("--push", "me/x")


def test_what_a_hub_does_not_take_stays_here(whole: Path, tmp_path: Path, hub: Hub) -> None:
    hub.refuses = "/commit/"
    result = call("export", whole / "run", "--to", tmp_path / "out", "--push", "me/x")
    *_, last = result.stderr.splitlines()
    assert result.returncode == 2
    assert "--push 'me/x': the hub does not let this token write there" in last
    assert f"`hf upload me/x {tmp_path / 'out'}` tries again" in last
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_without_a_place_it_is_beside_the_run(copy: Path) -> None:
    result = call("export", copy / "run")
    assert result.returncode == 0, result.stderr
    assert (copy / "run-iterate-1" / "adapter_model.safetensors").is_file()
    assert_one_line(call("export", copy / "run"), "is there already and not empty; give a new folder")
    shutil.rmtree(copy / "run-iterate-1")


def test_a_sentencepiece_tokenizer_comes_along(copy: Path, quickstart: Path, tmp_path: Path) -> None:
    """transformers writes none, and llama.cpp reads Gemma's from nothing else."""
    from lowmem_spin.cli.exported_folder import export
    from lowmem_spin.data.sources import Source
    from lowmem_spin.runner import run_folder

    shutil.copytree(quickstart / "base", tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").write_bytes(b"pieces")
    game = run_folder.read_run_folder(copy / "run")
    policy = run_folder.find_policy(game, run_folder.open_store(game, print), "1")
    export(game, policy, Source(str(tmp_path / "base"), None, ""), tmp_path / "out", "bfloat16")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"


def test_a_card_names_no_places(whole: Path) -> None:
    from lowmem_spin.cli import model_card
    from lowmem_spin.data.sources import Source
    from lowmem_spin.runner import run_folder

    game = run_folder.read_run_folder(whole / "run")
    judge = {"base_url": "http://office.example:8000/v1", "model": "/models/judge", "api_key_env": "OFFICE_KEY"}
    changed = game.recipe.model_dump() | {"model": game.recipe.model.model_dump() | {"name_or_path": "/home/jo/models/base"}}
    changed["evaluation"] |= {"judge": judge, "mtbench": "/home/jo/mt", "alpaca": "/home/jo/alpaca.json"}
    changed["game"] |= {"loss": {"name": "function", "function": "/home/jo/mine.py:loss"}}
    changed["data"] |= {"path": "/home/jo/rows.jsonl", "system_prompt": "/think a bit /now"}
    policy = run_folder.find_policy(game, run_folder.open_store(game, print), "1")
    source = Source("/home/jo/models/base", None, "")
    card = model_card.text(replace(game, recipe=Recipe.model_validate(changed)), policy, source, None, [2])
    assert not any(text in card for text in ("/home/jo", "office.example", "OFFICE_KEY", "/models/"))
    assert "mine.py:loss" in card and "rows.jsonl" in card and "/think a bit /now" in card
