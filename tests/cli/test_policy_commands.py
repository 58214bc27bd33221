"""Living with a game's policies: talked to, exported, served, and what no run uses freed."""

import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from helpers.commands import SMALL, call, cli
from helpers.server import wait
from lowmem_spin.algorithm.pair_sources import Sampling
from lowmem_spin.cli.chat import Voice, open_voices, talk
from lowmem_spin.cli.exported_folder import export
from lowmem_spin.cli.play import run
from lowmem_spin.common.checked import read_checked
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.load import find_recipe, load_recipe
from lowmem_spin.engines.base import Request
from lowmem_spin.engines.hf import HF
from lowmem_spin.runner import run_folder
from lowmem_spin.store.store import Store

GREEDY = Sampling(0.0, 1.0, None, 20, 0, {})
END = 5  # <end_of_turn>
QUESTIONS = [
    "upper: cvt",
    "reverse: abcdefghijk",
    "count: kszyo",
    "sort: zyxwvuts",
    "vowels: education",
    "double: zzet",
]  # the policies differ


def play(folder: Path, name: str, **changes: Any) -> Path:
    """A small game, played in this process, whose run folder is folder/runs/name."""
    values = {**SMALL, "output.store": folder / "store", "output.dir": folder / "runs" / name, "training.learning_rate": 3e-3}
    values |= {"evaluation.path": folder / "heldout.jsonl", "evaluation.metric": "exact_match"}
    values |= {"model.name_or_path": folder / "base"} | {field.replace("__", "."): value for field, value in changes.items()}
    path = find_recipe("quickstart")
    run(load_recipe(path, [f"{field}={value}" for field, value in values.items()]), path.parent, Display(Console(quiet=True)))
    return folder / "runs" / name


@pytest.fixture(scope="module")
def home(quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A played game on a base whose own files do not know that <end_of_turn> ends an answer: only the template does."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(quickstart / "base", folder / "base")
    for name in ("config.json", "generation_config.json"):
        path = folder / "base" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 2}))
    rows = (quickstart / "heldout.jsonl").read_text().splitlines(keepends=True)
    (folder / "heldout.jsonl").write_text("".join(rows[:40]))
    play(folder, "game")
    return folder


@pytest.fixture(scope="module")
def game(home: Path) -> run_folder.RunFolder:
    return run_folder.read_run_folder(home / "runs" / "game")


@pytest.fixture(scope="module")
def store(game: run_folder.RunFolder) -> Store:
    return run_folder.open_store(game, print)


@pytest.fixture(scope="module")
def engine(game: run_folder.RunFolder, store: Store) -> HF:
    return HF(game.recipe, run_folder.find_base(game, store), run_folder.machine_of(game))


def written(*turns: str) -> str:
    """A conversation as the shipped base's template writes it, waiting for its answer."""
    roles = ["user", "model"] * len(turns)
    return "<bos>" + "".join(f"<{role}>{turn}<end_of_turn>" for role, turn in zip(roles, turns, strict=False)) + "<model>"


def answers(engine: HF, adapter: Path | None, conversations: list[str]) -> list[str]:
    """The game's own greedy answers."""
    prompts = engine.tokenizer(conversations, add_special_tokens=False)["input_ids"]
    return [a.text for a in engine.generate([Request(adapter, prompt, 0) for prompt in prompts], GREEDY)]


def linked(home: Path, name: str) -> Path | None:
    """Where the run folder itself says a policy's adapter is."""
    return None if name == "base" else home / "runs" / "game" / "iterates" / name


def test_a_chat_through_a_pipe_answers_as_the_game_does(home: Path, engine: HF) -> None:
    adapter = linked(home, "1")
    first, forgotten = answers(engine, adapter, [written(QUESTIONS[0]), written(QUESTIONS[2])])
    (second,) = answers(engine, adapter, [written(QUESTIONS[0], first, QUESTIONS[3])])
    given = f"{QUESTIONS[0]}\n\n/help\n{QUESTIONS[3]}\n/reset\n{QUESTIONS[2]}\n/quit\n{QUESTIONS[1]}\n"
    result = cli("chat", home / "runs" / "game", "--temperature", 0, given=given)
    assert result.stdout.splitlines() == [first, second, forgotten]
    assert result.stderr.splitlines()[-1] == "/help: unknown command; /reset forgets, /quit ends"
    assert "gemm_4bit" not in result.stderr  # which bitsandbytes says of a kernel that is not used
    assert second != answers(engine, adapter, [written(QUESTIONS[3])])[0]  # it did hear the first question


@pytest.fixture
def voices(game: run_folder.RunFolder, store: Store) -> list[Voice]:
    policies = [run_folder.find_policy(game, store, name) for name in ("base", "1")]
    return open_voices(game, policies, run_folder.find_base(game, store), 0.0)


@pytest.mark.parametrize("width", [70, 140], ids=["one after the other", "side by side"])
def test_two_policies_answer_each_with_its_own_memory(voices: list[Voice], engine: HF, width: int) -> None:
    out = io.StringIO()
    talk(voices, QUESTIONS[:2], Console(file=out, force_terminal=True, width=width), print)
    shown = [set(line.split()) for line in out.getvalue().splitlines()]
    for question in range(2):
        each = []
        for voice in voices:
            turns = [message["content"] for message in voice.messages[: 2 * question + 1]]
            each += answers(engine, voice.policy.adapter, [written(*turns)])
            assert voice.messages[2 * question + 1]["content"] == each[-1]
        assert any({word for text in each for word in text.split()} <= line for line in shown) == (width == 140)
    assert voices[0].messages != voices[1].messages


class Nervous(io.StringIO):
    """A screen at which someone presses Ctrl-C so many times when the first token of the first answer comes."""

    def __init__(self, presses: int) -> None:
        super().__init__()
        self.presses = presses

    def flush(self) -> None:
        while self.presses:
            self.presses -= 1
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_stops_an_answer_and_at_the_prompt_the_chat(voices: list[Voice], engine: HF) -> None:
    notes: list[str] = []

    def typed() -> Iterator[str]:
        yield from [QUESTIONS[5], "/reset", QUESTIONS[1]]
        signal.raise_signal(signal.SIGINT)
        yield "never asked"

    before, out = signal.getsignal(signal.SIGINT), Nervous(1)
    talk(voices[1:], typed(), Console(file=out), notes.append)
    whole, next_one = answers(engine, voices[1].policy.adapter, [written(QUESTIONS[5]), written(QUESTIONS[1])])
    assert notes == ["iterate 1: stopped"]
    stopped, *rest = out.getvalue().splitlines()
    assert whole.startswith(stopped)
    assert 0 < len(stopped) < len(whole) / 2
    assert rest == [next_one, ""]
    talk(voices[1:], typed(), Console(file=(hasty := Nervous(2))), notes.append)
    assert hasty.getvalue() == "\n"  # pressed twice: the chat is over
    assert signal.getsignal(signal.SIGINT) == before


def test_an_answer_cannot_steer_the_terminal(voices: list[Voice], monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(voices[0].engine.tokenizer, "decode", lambda *_, **__: "\x1b[2J[bold]\nnext")
    talk(voices[:1], QUESTIONS[:1], Console(file=out), print)
    assert "\x1b" not in out.getvalue()
    assert "\\x1b[2J[bold]\nnext" in out.getvalue()


def logps(model: Any, tokenizer: Any) -> torch.Tensor:
    """Log-prob of a fixed answer to each question, from the full logits."""
    sums = []
    for question in QUESTIONS:
        prompt = tokenizer(written(question), add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(question[-4:], add_special_tokens=False)["input_ids"], END]
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            table = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        sums.append(table.gather(-1, ids[0, 1:, None])[-len(answer) :].sum())
    return torch.stack(sums)


def scores(engine: HF, adapter: Path | None) -> torch.Tensor:
    """The same, as the learner computes it."""
    rows = []
    for question in QUESTIONS:
        prompt, answer = engine.tokenizer([written(question), question[-4:]], add_special_tokens=False)["input_ids"]
        rows.append((prompt, [*answer, END]))
    return torch.tensor(engine.score(adapter, rows))


def test_an_exported_adapter_is_the_learners_policy_to_plain_peft(home: Path, engine: HF, tmp_path: Path) -> None:
    assert cli("export", home / "runs" / "game", "--iterate", 1, "--to", tmp_path / "out").returncode == 0
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    base = AutoModelForCausalLM.from_pretrained(home / "base", quantization_config=four_bit, dtype=torch.float32)
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    alone = logps(base, engine.tokenizer)
    model = PeftModel.from_pretrained(base, str(tmp_path / "out"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = scores(engine, linked(home, "1"))
    torch.testing.assert_close(logps(model, tokenizer), expected, atol=1e-4, rtol=0)
    assert (alone - expected).abs().min() > 0.02
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == written(QUESTIONS[0])
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft"
    assert "license" not in front  # the base says none
    assert str(home) not in card + (tmp_path / "out" / "tokenizer_config.json").read_text()  # it is meant for others
    measured = json.loads((home / "runs" / "game" / "metrics.jsonl").read_text().splitlines()[2])
    assert f"{measured['kl_to_base']:.2f} ±" in card.split("**iterate 1**")[1].splitlines()[0]


def card_code(folder: Path, base: Path, question: str) -> dict[str, Any]:
    """What the code of a model card leaves behind, its placeholders filled in."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    for placeholder, value in (("path/to/base", base), ("path/to/this/folder", folder), ("Hello", question)):
        assert code.count(f'"{placeholder}"') == 1
        code = code.replace(f'"{placeholder}"', repr(str(value)))
    left: dict[str, Any] = {}
    exec(code, left)  # noqa: S102  # it is what a reader of the card does
    return left


def test_an_exported_adapter_stops_where_the_game_did(home: Path, engine: HF, tmp_path: Path) -> None:
    """On a base that knows of no end but <eos>: with the card's code, and with the file beside the adapter."""
    assert call("export", home / "runs" / "game", "--iterate", 1, "--to", tmp_path / "out").returncode == 0
    (expected,) = answers(engine, linked(home, "1"), [written(QUESTIONS[0])])
    with redirect_stdout(io.StringIO()) as printed:
        left = card_code(tmp_path / "out", home / "base", QUESTIONS[0])
    assert printed.getvalue() == f"{expected}\n"
    model, prompt, ids = left["model"], left["prompt"], left["prompt"]["input_ids"]
    assert left["output"][0, -1] == END and left["output"].shape[1] < ids.shape[1] + 20
    assert model.generate(**prompt, max_new_tokens=20).shape[1] == ids.shape[1] + 20  # it runs on for ever by itself
    for folder in (tmp_path / "out", linked(home, "1")):
        settings = GenerationConfig.from_pretrained(str(folder))
        assert settings.eos_token_id == [2, END]
        assert torch.equal(model.generate(**prompt, max_new_tokens=20, generation_config=settings), left["output"])


def test_a_merged_model_is_the_unpacked_base_with_the_adapter(
    home: Path, engine: HF, game: run_folder.RunFolder, store: Store, tmp_path: Path
) -> None:
    policy, base = run_folder.find_policy(game, store, "1"), run_folder.find_base(game, store)
    export(game, policy, base, tmp_path / "exact", "float32")
    export(game, policy, base, tmp_path / "rounded", "bfloat16")
    export(game, run_folder.find_policy(game, store, "base"), base, tmp_path / "base", "float32")
    merged: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "exact", dtype=torch.float32)
    ours = logps(merged, engine.tokenizer)
    unpacked = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    torch.testing.assert_close(logps(unpacked, engine.tokenizer), scores(engine, None), atol=1e-3, rtol=0)
    recipe_dir = PeftModel.from_pretrained(unpacked, str(linked(home, "1")))
    torch.testing.assert_close(ours, logps(recipe_dir, engine.tokenizer), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        ours, scores(engine, linked(home, "1")), atol=1e-3, rtol=0
    )  # the 4-bit kernel sums in its own order
    exact, rounded = (load_file(tmp_path / name / "model.safetensors") for name in ("exact", "rounded"))
    assert all(rounded[name].equal(exact[name].bfloat16()) for name in exact)
    assert exact.keys() == rounded.keys()
    ids = torch.tensor([engine.tokenizer(written(QUESTIONS[0]), add_special_tokens=False)["input_ids"]])
    said = merged.generate(ids, do_sample=False, max_new_tokens=20)[0, ids.shape[1] :].tolist()
    assert said[-1] == END  # the exported model knows where its answers end
    assert [engine.tokenizer.decode(said[:-1])] == answers(engine, linked(home, "1"), [written(QUESTIONS[0])])


def test_an_export_is_whole_or_absent(home: Path, game: run_folder.RunFolder, store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    result = call("export", home / "runs" / "game", "--to", tmp_path / "mine")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]
    torn = Path(shutil.copytree(home / "runs" / "game", tmp_path / "torn", symlinks=True))
    (torn / "metrics.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"metrics\.jsonl: does not read back"):
        export(
            run_folder.read_run_folder(torn),
            run_folder.find_policy(game, store, "1"),
            run_folder.find_base(game, store),
            tmp_path / "out",
            None,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "torn"]


def test_a_sweeps_folder_leads_to_one_of_its_games(tmp_path: Path) -> None:
    for name in ("alpha-1_seed-42", "alpha-0.5_seed-42"):
        (tmp_path / "points" / name).mkdir(parents=True)
        (tmp_path / "points" / name / "run.json").write_text("{}")
    line = f"this is a sweep; give one of its games, such as {tmp_path}/points/alpha-0.5_seed-42"
    with pytest.raises(InputError, match=re.escape(line)):
        run_folder.read_run_folder(tmp_path)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("chat nowhere", "run 'nowhere': no such folder"),
        ("chat {home}", "has no run.json; give a folder that"),
        ("evaluate {home}/runs", "has no run.json; give one of the games in it, such as {home}/runs/game"),
        ("report {home}/runs", "is neither a run nor a sweep: give one of the games in it, such as {home}/runs/game"),
        ("chat {home}/runs/game --iterate 2", "--iterate '2': "),
        (f"chat {{home}}/runs/game --iterate {'9' * 5000}", "has no such policy; it has base, 0, 1"),
        ("chat {home}/runs/game --temperature inf", "--temperature inf: cannot be used; give 0, which is greedy, or"),
        (f"export {{home}}/runs/game --to {'x' * 300}", "it has a name of 300 bytes, and paths have at most 3,800"),
        ("export {home}/runs/game --to {to} --iterate second", "it has base, 0, 1"),
        ("export {home}/runs/game --to {to} --iterate base", "--iterate base: it has no adapter of its own"),
        ("export {home}/runs/game --to {to} --dtype float16", "--dtype float16: an adapter keeps its own"),
        ("chat {half} --iterate 1", "--iterate '1': iterate 1 of '{half}' is not trained yet; `lowmem-spin run"),
        ("chat {moved}", "output.store: "),
        ("serve {other}", "model.name_or_path: '{to}base' is no longer the base"),
        ("gc --store {home}/store --runs {home}/store", "--runs: no run below"),
        ("gc --store {home} --runs {home}", "--store: '{home}' is no store"),
    ],
)
def test_what_cannot_be_used_is_one_line(home: Path, tmp_path: Path, command: str, line: str) -> None:
    places = {
        "home": home,
        "to": tmp_path / "to",
        "half": tmp_path / "half",
        "moved": tmp_path / "moved",
        "other": tmp_path / "other",
    }
    for name in ("half", "moved", "other"):
        shutil.copytree(home / "runs" / "game", places[name], ignore=shutil.ignore_patterns("iterates"))
    (store := tmp_path / "halfstore").mkdir()
    (store / "FORMAT").write_text("1")
    shutil.copytree(home / "base", tmp_path / "tobase")
    (tmp_path / "tobase" / "tokenizer_config.json").write_text("{}")
    _edit(places["half"], "output", "store", store)
    _edit(places["moved"], "output", "store", tmp_path / "gone")
    _edit(places["other"], "model", "name_or_path", tmp_path / "tobase")
    result = (
        cli(*command.format(**places).split(), "--print")
        if command.startswith("serve")
        else call(*command.format(**places).split())
    )
    assert result.returncode == 2, result
    assert line.format(**places) in result.stderr
    assert result.stderr.count("\n") == 1
    assert not places["to"].exists()


def _edit(run_folder: Path, section: str, field: str, value: object) -> None:
    content = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    content[section][field] = str(value)
    (run_folder / "recipe.yaml").write_text(yaml.safe_dump(content))


STORED = ("adapters", "completions", "logps", "data", "weights", "work", "aside")


def stored(folder: Path) -> set[str]:
    return {f"{kind}/{path.name}" for kind in STORED for path in (folder / "store" / kind).glob("*")}


def test_gc_frees_what_a_deleted_run_alone_had(home: Path, tmp_path: Path) -> None:
    """The oracle: what was in the store before the second run came, and what it added."""
    shutil.copytree(home, tmp_path, symlinks=True, dirs_exist_ok=True)
    store, top = ("--store", tmp_path / "store"), ("--runs", tmp_path / "runs", "--grace-hours", 0)
    play(tmp_path, "game")  # it is here now
    before = stored(tmp_path)
    other = play(tmp_path, "sweep/deep/other", game__iterations=1, generation__temperature=0.7, data__max_prompt_length=511)
    added = stored(tmp_path) - before
    assert {name.split("/")[0] for name in added} == {"adapters", "completions", "logps", "data"}
    call("gc", *store, *top, "--delete")
    assert stored(tmp_path) == before | added  # a run at any depth counts

    record = (other / "run.json").read_text()
    (other / "run.json").write_text(record[:-20])
    broken = call("gc", *store, *top, "--delete")
    assert (broken.returncode, broken.stderr.count("\n")) == (2, 1)
    assert "nothing is freed" in broken.stderr
    assert stored(tmp_path) == before | added

    shutil.rmtree(tmp_path / "runs" / "sweep")
    damaged = tmp_path / "store" / "aside" / "damaged.parquet"
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_bytes(b"damaged")
    shown = call("gc", *store, *top)
    assert all(name.split("/")[1] in shown.stdout for name in added)
    assert not any(name.split("/")[1] in shown.stdout for name in before)
    assert stored(tmp_path) == before | added | {"aside/damaged.parquet"}
    (busy,) = [name.split("/")[1] for name in added if name.startswith("adapters/")]
    with Store(tmp_path / "store", print).writing(busy):
        cli("gc", *store, *top, "--delete")
        assert stored(tmp_path) == before | {f"adapters/{busy}", "aside/damaged.parquet"}
    call("gc", *store, *top, "--delete", "--aside")
    assert stored(tmp_path) == before

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.parquet")}
    again = [
        part
        for field in ("store", "dir")
        for part in ("--set", f"output.{field}={tmp_path / {'store': 'store', 'dir': 'runs/game'}[field]}")
    ]
    replay = call("run", tmp_path / "runs" / "game" / "recipe.yaml", *again)
    assert replay.returncode == 0, replay
    assert not any(word in replay.stdout for word in ("start-up", "generate", "train "))  # no engine was opened
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.parquet")} == files


def test_gc_keeps_data_and_weights_of_a_run_that_does_not_name_them(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path, symlinks=True, dirs_exist_ok=True)
    strange = "5" * 20
    for name in (f"data/{strange}.parquet", f"weights/{strange}/model.safetensors"):
        (tmp_path / "store" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / name).write_bytes(b"x")
    path = tmp_path / "runs" / "game" / "run.json"
    record = read_checked(path)
    path.write_text(json.dumps({name: value for name, value in record.items() if name not in ("data", "model")}))
    old = call("gc", "--store", tmp_path / "store", "--runs", tmp_path / "runs", "--grace-hours", 0)
    assert "nothing is unused" in old.stdout
    path.write_text(json.dumps(record))
    new = call("gc", "--store", tmp_path / "store", "--runs", tmp_path / "runs", "--grace-hours", 0)
    assert new.stdout.count(strange) == 2


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_game_that_vllm_serves_answers_as_the_game_does(home: Path, engine: HF, tmp_path: Path) -> None:
    """A real server, on this machine only; base and both iterates, greedy, float32."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        taken = cli("serve", home / "runs" / "game", "--port", port)
        assert (taken.returncode, taken.stderr.count("\n")) == (2, 1)
        assert f"--port {port}: cannot listen" in taken.stderr
    command = [sys.executable, "-m", "lowmem_spin.cli", "serve", home / "runs" / "game", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait(server, port, tmp_path / "log")
        models = _ask(port, "models")["data"]
        assert [model["id"] for model in models] == ["base", "0", "1"]
        heard = []
        for name in ("base", "0", "1"):
            replies = [_chat(port, name, question) for question in QUESTIONS]
            expected = answers(engine, linked(home, name), [written(question) for question in QUESTIONS])
            assert [reply["message"]["content"] for reply in replies] == expected
            assert {(reply["finish_reason"], reply["stop_reason"]) for reply in replies} == {("stop", END)}
            heard.append(expected)
        assert heard[0] != heard[1] != heard[2] != heard[0]  # three policies, not one under three names
    finally:
        server.terminate()
        server.wait(60)


def _ask(port: int, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
        return json.load(reply)


def _chat(port: int, name: str, question: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return _ask(port, "chat/completions", {"model": name, "messages": messages, "temperature": 0, "max_tokens": 20})["choices"][
        0
    ]


def test_a_chats_answers_may_be_longer_or_shorter_than_the_recipes(
    game: run_folder.RunFolder, store: Store, voices: list[Voice]
) -> None:
    policies, notes = [run_folder.find_policy(game, store, "1")], []
    short = open_voices(game, policies, run_folder.find_base(game, store), 0.0, 2)
    talk(short, [QUESTIONS[5]], Console(file=io.StringIO()), notes.append)
    assert notes == ["iterate 1: cut at 2 tokens; --max-new-tokens allows more"]
    talk(voices[1:], [QUESTIONS[5]], Console(file=io.StringIO()), print)
    whole, cut = (voice.messages[-1]["content"] for voice in (voices[1], short[0]))
    assert whole.startswith(cut) and len(cut) < len(whole)
