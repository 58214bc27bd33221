"""Servers that repeat a key, never end, or say anything at all: what is kept, shown and sent stays what it should be.

`FUZZ_SERVERS=1000` asks so many questions; tests/helpers/fuzz_servers.py does the same by itself.
"""

import gzip
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from helpers import fuzz_servers
from helpers.commands import assert_one_line, call, play
from helpers.hostile_answers import KEY
from helpers.server import Body, Handler, Server, send, serving, shown
from lowmem_spin.common.errors import InputError
from lowmem_spin.config.choices import JudgeOracle
from lowmem_spin.config.load import find_recipe
from lowmem_spin.engines.oracles import exchange
from lowmem_spin.engines.oracles.endpoint import Endpoint, NoReplyError
from lowmem_spin.engines.oracles.server_words import says_no_such_model
from lowmem_spin.evaluation.judged.shared import judge_from_options

REQUESTS = int(os.environ.get("FUZZ_SERVERS", "150"))
ASK = [{"role": "user", "content": "a question"}]
HIDDEN = "hunter2-canary"


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serving(lambda body, number: "[[7]]")


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("A_KEY", KEY)
    return "A_KEY"


def test_whatever_a_server_does_is_a_reply_or_one_line(tmp_path: Path) -> None:
    found = fuzz_servers.campaign(tmp_path, REQUESTS, seed=REQUESTS, timeout=0.5)
    assert found.problems == []
    assert found.outcomes["reply"] > REQUESTS / 4 < found.outcomes["NoReplyError"] and found.outcomes["InputError"]


def drip(first: str, piece: str) -> Callable[[Handler], None]:
    def do(handler: Handler) -> None:
        handler.wfile.write(first.encode())
        while True:
            handler.wfile.write(piece.encode())
            handler.wfile.flush()
            time.sleep(0.02)

    return do


@pytest.mark.parametrize(
    ("behave", "line"),
    [
        (drip("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", " "), "no whole answer within 0.3 seconds"),
        (drip("HTTP/1.1 200 OK\r\nX: ", "y"), "no whole answer within 0.3 seconds"),
        (drip("", "HTTP/1.1 100 Continue\r\n\r\n"), "no whole answer within 0.3 seconds"),
    ],
)
def test_an_answer_that_does_not_end_is_ended(server: Server, tmp_path: Path, behave: Any, line: str) -> None:
    """Each byte comes well within httpx's own limit."""
    server.behave = lambda body, number: behave
    endpoint = Endpoint(server.url, "m", tmp_path, "game.oracle", timeout=0.3, retries=0)
    with pytest.raises(NoReplyError, match=line):
        endpoint.ask(ASK)


def test_an_answer_that_is_too_large_is_left_there(server: Server, tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(2 * exchange.LARGEST))
    assert len(bomb) < exchange.LARGEST / 100

    def behave(handler: Handler) -> None:
        handler.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode() + bomb)

    server.behave = lambda body, number: behave
    endpoint = Endpoint(server.url, "m", tmp_path, "game.oracle", retries=0)
    with pytest.raises(NoReplyError, match="an answer of more than 8 MiB"):
        endpoint.ask(ASK)
    large = "Ж" * 1_000_000  # two million bytes, six as JSON
    server.behave = lambda body, number: large
    assert endpoint.ask(ASK) == large == Endpoint(server.url, "m", tmp_path, "game.oracle").kept(ASK)


def test_half_a_character_survives(server: Server, tmp_path: Path) -> None:
    """A lone surrogate, which no encoding writes: in a reply, and in what is asked."""
    server.behave = lambda body, number: f"{number} \ud800 {body['messages'][0]['content']}"
    endpoint = Endpoint(server.url, "m\udfff", tmp_path, "game.oracle")
    said = endpoint.ask([{"role": "user", "content": "\udc00"}])
    assert said == "1 \ud800 \udc00"
    again = Endpoint(server.url, "m\udfff", tmp_path, "game.oracle")
    assert again.ask([{"role": "user", "content": "\udc00"}]) == said and len(server.asked) == 1


def test_an_interrupt_waits_for_no_answer(server: Server, tmp_path: Path) -> None:
    over, answered = threading.Event(), threading.Event()

    def behave(body: Body, number: int) -> str:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        over.wait(60)
        answered.set()
        return ""

    server.behave = behave
    endpoint = Endpoint(server.url, "m", tmp_path, "game.oracle")
    with pytest.raises(KeyboardInterrupt):
        endpoint.ask(ASK)
    endpoint.close()
    assert not answered.is_set()
    over.set()


REPEATS = [
    (lambda: send(400, json.dumps({"error": {"message": f"Bearer {KEY} is no key of ours, {'x' * 99}"}})), NoReplyError),
    (lambda: send(401, json.dumps({"error": {"message": f"{'x' * 180} {KEY}"}})), InputError),
    (lambda: send(500, f"<html>Authorization: Bearer {KEY.upper()}"), NoReplyError),
    (lambda: send(429, "", retry_after=KEY), NoReplyError),
    (lambda: send(200, f"{'x' * 80}{KEY}"), NoReplyError),
    (lambda: send(302, KEY, location=f"http://127.0.0.1:9/{KEY}"), InputError),
    (lambda: lambda handler: handler.wfile.write(f"Bearer {KEY}\r\n\r\n".encode()), NoReplyError),
]


@pytest.mark.parametrize("place", range(len(REPEATS)))
def test_a_repeated_key_is_in_no_message(server: Server, tmp_path: Path, key: str, place: int) -> None:
    """Nor a part of it, where the message is cut."""
    answer, kind = REPEATS[place]
    server.behave = lambda body, number: answer()
    with pytest.raises(kind) as error:
        Endpoint(server.url, "m", tmp_path, "game.oracle", key, retries=0).ask(ASK)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY[:6].lower() not in str(error.value).lower() and error.value.__cause__ is None


def test_a_repeated_key_is_in_no_reply(server: Server, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However JSON spells it; a word that is no secret stays in replies, though a local server takes it for a key."""
    escaped = "".join(f"\\u{ord(character):04x}" for character in KEY)
    content = f'{{"choices": [{{"message": {{"content": "{escaped}, [[A]] {KEY}"}}}}]}}'
    server.behave = lambda body, number: send(200, content)
    assert Endpoint(server.url, "m", tmp_path, "game.oracle", key).ask(ASK) == "***, [[A]] ***"
    assert all(KEY not in path.read_text() for path in tmp_path.iterdir())
    monkeypatch.setenv("A_KEY", "A")
    server.behave = lambda body, number: "[[A]]"
    assert Endpoint(server.url, "other", tmp_path, "game.oracle", key).ask(ASK) == "[[A]]"


@pytest.mark.parametrize(
    "wrong", [f"{KEY}\nX-Evil: 1", f"{KEY}\r", f"a {KEY}", f"{KEY}\x00", f"ü{KEY}", f"{KEY}\u200b", f"\x7f{KEY}"]
)
def test_a_key_that_no_header_carries_is_refused_and_not_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    if "\x00" in wrong or wrong.endswith("\r"):  # a variable cannot hold the one, and the other is cut off
        monkeypatch.setattr(os, "environ", {"A_KEY": wrong if "\x00" in wrong else f"{wrong}b"})
    else:
        monkeypatch.setenv("A_KEY", wrong)
    endpoint = Endpoint(server.url, "m", tmp_path, "game.oracle", "A_KEY", retries=0)
    for ask in (endpoint.reach, lambda: endpoint.ask(ASK)):
        with pytest.raises(InputError, match=r"^game\.oracle\.api_key_env: the key in 'A_KEY' has a character that") as error:
            ask()
        assert KEY not in str(error.value)
    assert server.asked == []


def test_no_other_host_gets_the_key(server: Server, tmp_path: Path, key: str) -> None:
    """Whatever a redirect says, of whatever kind."""
    for other in serving(lambda body, number: "[[7]]"):
        for number, status in enumerate((301, 302, 303, 307, 308)):
            for place in (other.url, other.url.replace("127.0.0.1", "localhost"), "/elsewhere"):
                server.behave = lambda body, _, status=status, place=place: send(
                    status, "", location=f"{place}/chat/completions"
                )
                endpoint = Endpoint(server.url, f"m{number}", tmp_path, "game.oracle", key)
                with pytest.raises(InputError, match=rf"sends elsewhere \({status}\), which is not followed"):
                    endpoint.ask(ASK)
        assert other.asked == [] and len(server.asked) == 15


def test_what_openais_variables_say_goes_to_no_other_host(
    server: Server, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "WEBHOOK_SECRET")
    for name in names:
        monkeypatch.setenv(f"OPENAI_{name}", f"canary-{name}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: canary-header\nX-More: canary-more\nHost: canary-host\nX-É: é")
    monkeypatch.setenv("HF_TOKEN", "canary-hf")
    for given in (None, key):
        assert Endpoint(server.url, "m", tmp_path / str(given), "game.oracle", given).ask(ASK) == "[[7]]"
    assert "canary" not in str(server.headers[0]).lower() and len(server.headers) == 2
    assert server.headers[0]["Authorization"] == "Bearer none" and server.headers[1]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("proxy", [f"nonsense://me:{HIDDEN}@h:80", f"socks5://me:{HIDDEN}@h:1", f"http://me:{HIDDEN}@h:99999x"])
def test_a_proxy_that_is_none_is_one_line(proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the environment may have one; its password is not repeated."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(InputError, match=r"^game\.oracle\.base_url: .*; look at HTTPS_PROXY, ALL_PROXY and") as error:
        Endpoint("http://h/v1", "m", tmp_path, "game.oracle", retries=0).ask(ASK)
    assert HIDDEN not in str(error.value)


SECRET_ADDRESSES = [
    f"https://user:{HIDDEN}@host/v1",
    f"https://{HIDDEN}@host/v1",
    f"user:{HIDDEN}@host/v1",
    f"https://user:{HIDDEN}%40host/v1",
    f"https://host/v1?api_key={HIDDEN}",
    f"https://host/v1#{HIDDEN}",
    f"http://[::1/v1?{HIDDEN}",
]


@pytest.mark.parametrize("url", SECRET_ADDRESSES)
def test_a_secret_in_an_address_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    """In a recipe, an override, a sweep, on the command line and in the library; nothing is written."""
    recipe, judge = tmp_path / "mine.yaml", {"base_url": url, "model": "m"}
    plain = yaml.safe_load(find_recipe("quickstart").read_text())
    place = [f"--set=output.dir={tmp_path / 'run'}", f"--set=output.store={tmp_path / 'store'}"]
    for field, value in {"game.oracle": {"name": "judge", **judge}, "evaluation.judge": judge}.items():
        section, name = field.split(".")
        recipe.write_text(yaml.safe_dump({**plain, section: {**plain[section], name: value}}))
        given = json.dumps(value)
        for command in (
            ["run", recipe],
            ["run", "quickstart", f"--set={field}={given}"],
            ["plan", "quickstart", f"--set={field}={given}", f"--set={field}.base_url={url}"],
            ["sweep", "quickstart", "--grid", f"{field}={given}"],
        ):
            refused = call(*command, *place)
            assert_one_line(refused, field)
            assert HIDDEN not in refused.stderr + refused.stdout
    for model in (["--judge-model", "m"], []):
        refused = call("evaluate", tmp_path, "--suite", "mtbench", "--judge-base-url", url, *model)
        assert_one_line(refused, "error: --judge-base-url: ")
        assert HIDDEN not in refused.stderr
    with pytest.raises(InputError, match=r"^game\.oracle\.base_url: ") as error:
        Endpoint(url, "m", tmp_path, "game.oracle")
    assert HIDDEN not in str(error.value)
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_login_in_an_address_is_in_no_refusal(tmp_path: Path) -> None:
    """Wherever in a recipe it stands, where no address is looked for."""
    for change in ("game.oracle=ADDRESS", "data.split=[ADDRESS]", "ADDRESS=1", "game.alpha={ADDRESS", "seed=ADDRESS"):
        refused = call("plan", "quickstart", f"--set={change.replace('ADDRESS', SECRET_ADDRESSES[0])}")
        assert_one_line(refused, "https://***@host/v1")
        assert HIDDEN not in refused.stderr


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "v1",
            "http:///v1",
            "http://:80/v1",
            "ftp://h/v1",
            "http://h:99999/v1",
            "http://h:-1/v1",
            "http://h:0/v1",
            "h:80",
        ),
        *("http://a..b/v1", f"http://{'a' * 64}.de/v1", "http://h\n/v1", "http://h /v1", "http://h\\v1", "http://[::1/v1"),
        *("http://\u2100/v1", "http://h\x00/v1", "http://h:8x/v1", "https:/h/v1", "http://\ud800/v1", "http://h/\u202ev1"),
    ],
)
def test_what_is_no_address_is_one_line(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        Endpoint(url, "m", tmp_path, "game.oracle")
    assert str(error.value).startswith("game.oracle.base_url: ") and str(error.value).isprintable()
    with pytest.raises(InputError, match=r"^--judge-base-url ") as error:
        judge_from_options(url, "m", None, 8, None)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "https://[::1]:8/v1", "HTTPS://Ünï.de/v1/", "http://10.0.0.1", "http://a_b/x~y/v1"]
)
def test_other_addresses_are_taken(url: str, tmp_path: Path) -> None:
    assert JudgeOracle(base_url=url, model="m").base_url == Endpoint(url, "m", tmp_path, "game.oracle").base_url == url


@pytest.mark.parametrize("name", ["sk-canary-0123", "hf_canarycanary0123456789", "A KEY", "", "1A", "Ä", "A\nB", "a=b"])
def test_a_key_in_the_place_of_its_variables_name_is_not_repeated(name: str) -> None:
    with pytest.raises(InputError, match=r"^--judge-api-key-env: this is the name of an environment variable") as error:
        judge_from_options("http://h/v1", "m", name, 8, None)
    assert "canary" not in str(error.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "my_key", "_K2", "A_VERY_LONG_NAME_OF_THE_YEAR_2026"])
def test_other_names_are_taken(name: str) -> None:
    assert JudgeOracle(base_url="http://h/v1", model="m", api_key_env=name).api_key_env == name


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *(
            (text, "not valid YAML; quote it")
            for text in (
                *(
                    "{a: !!int b}",
                    "{a: &",
                    "\x00",
                    "{a: !!python/none 1}",
                    "{a: !!binary aGk=}",
                    "{a: !!set {b}}",
                    "{a: 1, a: 2}",
                    "{a: &b [*b]}",
                ),
                *('{a: "\\uD800"}', "[" * 400),
            )
        ),
        *((text, "write it as '{field: value}'") for text in ("7", "null", "[a]", "text")),
        *((text, "give what JSON has") for text in ("{a: .nan}", "{a: -.inf}")),
        ("{a: " + "[" * 50 + "]" * 50 + "}", "more than 50 lists and mappings in one another"),
        ("{messages: []}", "messages cannot be set here"),
    ],
)
def test_nonsense_in_a_judges_further_fields_is_one_line(text: str, why: str) -> None:
    with pytest.raises(InputError) as error:
        judge_from_options("http://h/v1", "m", None, 8, None, text)
    line = str(error.value)
    assert line.startswith("--judge-extra-body ") and why in line and line.isprintable() and len(line) < 250


@pytest.mark.parametrize("value", [float("nan"), "half \ud800", b"bytes", {1: 2}, {1}, [[[]] * 3, object()]])
def test_what_json_has_not_is_no_field_of_a_request(value: Any) -> None:
    """As a program may give it."""
    with pytest.raises(ValidationError, match="give what JSON has"):
        JudgeOracle(base_url="http://h/v1", model="m", extra_body={"a": value})


@pytest.mark.parametrize("name", ["api_key", "API-Key", "Authorization", "token"])
def test_a_key_among_a_judges_further_fields_is_refused(name: str) -> None:
    """They are written into the run."""
    with pytest.raises(InputError, match=rf"^--judge-extra-body: {name} would be written into the run") as error:
        judge_from_options("http://h/v1", "m", None, 8, None, f"{{{name}: {HIDDEN}}}")
    assert HIDDEN not in str(error.value)
    with pytest.raises(ValidationError):
        JudgeOracle(base_url="http://h/v1", model="m", extra_body={name: HIDDEN})


@pytest.mark.parametrize(
    ("why", "says"),
    [
        *((f"The model `{name}` does not exist.", True) for name in ("org/a.b-c", "m")),
        ('model "org/a.b-c" not found, try pulling it first', True),
        ("org/a.b-c is not a valid model ID", True),
        ("Invalid model: org/a.b-c", True),
        ("Model Not Exist", True),
        ("models/org/a.b-c is not found for API version v1", True),
        ("Model not found, inaccessible, and/or not deployed", True),
        ("No model named 'org/a.b-c' could be loaded", True),
        ("The model org/a.b-c couldn't be found", True),
        ("org/a.b-c has a context of 4096 tokens, and 5000 were asked for", False),
        ("temperature is not supported with org/a.b-c", False),
        ("org/a.b-c: the file was not found", False),
        ("Invalid model parameters for org/a.b-c", False),
        ("org/a.b-c2 is not a valid name", False),
        ("Model org/a.b-c: image not found", False),
        ("", False),
    ],
)
def test_a_model_is_not_served_where_the_server_says_so(why: str, says: bool) -> None:
    assert says_no_such_model(why, "m" if "`m`" in why else "org/a.b-c") is says


def test_a_model_is_served_though_a_refusal_names_it(server: Server, tmp_path: Path) -> None:
    server.behave = lambda body, number: send(400, json.dumps({"error": {"message": "m takes 8 tokens, and 9 were asked for"}}))
    with pytest.raises(NoReplyError, match=r"^400, m takes 8 tokens"):
        Endpoint(server.url, "m", tmp_path, "game.oracle", retries=0).ask(ASK)


@pytest.mark.parametrize("status", [102, 204, 206, 300, 304, 308, 404, 405, 418, 599, 999])
def test_an_odd_status_before_and_after_a_reply(server: Server, tmp_path: Path, status: int) -> None:
    """A server that never replied has no such endpoint; of one that did, this request failed."""
    endpoint = Endpoint(server.url, "m", tmp_path, "game.oracle", retries=0, timeout=0.3)
    kind = InputError if status in (300, 304, 308, 404, 405) else NoReplyError
    server.behave = lambda body, number: send(status, "")
    with pytest.raises(kind):
        endpoint.ask(ASK)
    server.behave = lambda body, number: "[[7]]"
    assert endpoint.ask([*ASK, *ASK]) == "[[7]]"
    server.behave = lambda body, number: send(status, "")
    with pytest.raises(NoReplyError):
        endpoint.ask(ASK)
    assert endpoint.counts.failed == 1 + (kind is NoReplyError)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("'https://me:pw@h/v1' no", "'https://***@h/v1' no"),
        ("'https://me:12...'", "'https://***'"),  # as a long value is quoted
        ("'https://token@h/v1': no", "'https://***@h/v1': no"),
        ("'http://h:99999/v1': no", "'http://h:99999/v1': no"),
        ("http://[::1]:80/v1, http://h:8. So", "http://[::1]:80/v1, http://h:8. So"),
        ("a://b c@d", "a://b c@d"),
    ],
)
def test_a_refusal_has_no_login_in_it(said: str, shown: str) -> None:
    assert str(InputError(said)) == shown


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (None, "api_key_env: the environment variable 'A_KEY' is not set; export it"),
        (f"{KEY}\n{KEY}", "api_key_env: the key in 'A_KEY' has a character that no header can carry"),
        (KEY, "base_url: 'http://localhost:9/v1' cannot be reached: All connection attempts failed; start its server, or"),
    ],
)
def test_a_game_is_not_begun_without_its_judge(
    value: str | None, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge would be asked after hours."""
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    refused = play(tmp_path, "game.oracle={name: judge, base_url: 'http://localhost:9/v1', model: m, api_key_env: A_KEY}")
    assert_one_line(refused, f"error: game.oracle.{line}")
    assert KEY not in refused.stderr and not (tmp_path / "run").exists()


def test_a_game_asks_its_judge_with_the_key_and_keeps_it_to_itself(server: Server, tmp_path: Path, key: str) -> None:
    """A whole game that learns from a judge which repeats the key beside each verdict; played again, it needs none."""

    def behave(body: Body, number: int) -> str:
        first, second = map(len, shown(body))
        return f"Bearer {KEY}\ud800\x1b[31m [[{'A' if first < second else 'B'}]]"

    server.behave = behave
    oracle = {"name": "judge", "base_url": server.url, "model": "m", "api_key_env": key, "extra_body": {"seed": 7}}
    changes = [f"game.oracle={json.dumps(oracle)}", "game.iterations=1", "game.algorithm=sppo", "game.pairs=8"]
    done = play(tmp_path, *changes)
    assert done.returncode == 0, done.stderr
    assert server.asked and all(json.loads(text)["seed"] == 7 for _, text in server.asked)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    asked = len(server.asked)
    os.environ.pop("A_KEY")
    again = play(tmp_path, *changes)
    assert again.returncode == 0 and len(server.asked) == asked
    assert KEY not in "".join([done.stdout, done.stderr, again.stdout, again.stderr])
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]
    assert [path for path in kept if path.parent.name == "judge" and b"Bearer ***" in path.read_bytes()]
