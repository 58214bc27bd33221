"""The judge and its endpoint, against a real HTTP server on this machine that judges by a rule, or misbehaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.games import CPU
from helpers.server import Body, Handler, Server, longer, reasoner, send, serving, shown
from lowmem_spin.algorithm.preferences import Comparison, of_scores
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.config.choices import JudgeOracle
from lowmem_spin.engines.oracles.base import OracleContext
from lowmem_spin.engines.oracles.endpoint import Endpoint, NoReplyError
from lowmem_spin.engines.oracles.judge import AGAIN, LLMJudge
from lowmem_spin.evaluation.judged.mtbench import Grader

ASK = [{"role": "user", "content": "a question"}]


class CtrlC:
    """A block that ends in the interrupt that a thread of it presses for; again if Python drops it, as in a destructor.

    A shell starts what it runs in the background with interrupts ignored: here they are not.
    """

    def __init__(self) -> None:
        self.pressed, self.over = threading.Event(), threading.Event()

    def press(self) -> None:
        if not self.pressed.is_set():
            self.pressed.set()
            threading.Thread(target=self._hold, daemon=True).start()

    def _hold(self) -> None:
        main = threading.main_thread().ident
        assert main
        while not self.over.is_set():
            signal.pthread_kill(main, signal.SIGINT)
            self.over.wait(3)

    def __enter__(self) -> None:
        self.before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self.over.set()
        signal.signal(signal.SIGINT, self.before)
        return kind is KeyboardInterrupt


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serving(longer)


class Waits(threading.Event):
    """Remembers whether each wait for it ended because it was set."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[bool] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.ended.append(super().wait(timeout))
        return self.ended[-1]


def judge(server: Server, cache: Path, **given: Any) -> LLMJudge:
    return LLMJudge(server.url, "m", cache, **{"notify": lambda line: None, **given})


def lengths(*answers: str) -> np.ndarray:
    return of_scores([len(answer) for answer in answers])


def test_each_pair_is_asked_in_both_orders_once(server: Server, tmp_path: Path) -> None:
    """Equal answers are not asked about, nor the same question twice; the second time all is known."""
    answers = ["aa", "b", "cccc", "aa", "dd"]
    questions = [
        Comparison(ASK, answers, "x"),
        Comparison(ASK, ["b", "aa"], "x"),  # asked above
        Comparison([*ASK, {"role": "assistant", "content": "{answer_b}"}, *ASK], ["{answer_b}", "b"], "x"),
    ]
    expected = [lengths(*question.answers) for question in questions]
    first = judge(server, tmp_path, concurrency=4)
    for _ in range(2):
        for matrix, right in zip(first.prefer(questions), expected, strict=True):
            assert matrix.tolist() == right.tolist()
    assert Counter(map(shown, map(json.loads, server.requests))) == Counter(
        [(one, other) for one in set(answers) for other in set(answers) if one != other]
        + [("{answer_b}", "b"), ("b", "{answer_b}")]
    )
    assert set(server.requests.values()) == {1} and len(server.asked) == 14
    counts = first.endpoint.counts
    assert (counts.sent, counts.kept, counts.failed, first.failed, first.failure_rate) == (14, 14, 0, 0, 0.0)

    server.behave = lambda body, number: send(500, "")
    first.close()
    again = judge(server, tmp_path)
    assert [matrix.tolist() for matrix in again.prefer(questions)] == [right.tolist() for right in expected]
    assert len(server.asked) == 14 and again.endpoint.counts.sent == 0
    with pytest.raises(InputError):  # another way of asking is another request
        judge(server, tmp_path, temperature=0.5, retries=0).prefer(questions)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (lambda one, other: "A", 0.5),
        (lambda one, other: "B", 0.5),
        (lambda one, other: "A" if one == "good" else "C", 0.75),
        (lambda one, other: "B" if other == "good" else "A", 1.0),
        (lambda one, other: "B" if one == "good" else "C", 0.25),
    ],
)
def test_places_are_no_preference(server: Server, tmp_path: Path, verdict: Callable[..., str], expected: float) -> None:
    """What only depends on places cancels; what depends on both leaves the mean over the two orders."""
    server.behave = lambda body, number: f"[[{verdict(*shown(body))}]]"
    (matrix,) = judge(server, tmp_path).prefer([Comparison(ASK, ["good", "bad"], "")])
    assert matrix.tolist() == [[0.5, expected], [1 - expected, 0.5]]


def test_a_server_that_misbehaves_is_asked_again(server: Server, tmp_path: Path) -> None:
    """Each request fails once, in one of ten ways, and then is answered."""
    done = json.dumps({"choices": [{"message": {"content": "[[A]]"}}]})
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() - 5))
    wrongs: list[Callable[[Handler], None]] = [
        send(500, "oops"),
        send(503, json.dumps({"error": {"message": "overloaded"}})),
        send(429, json.dumps({"error": "slow down"}), retry_after="1.5"),
        send(429, "", retry_after=soon),
        send(200, done, cut=5),
        send(200, done[:-5]),
        send(200, json.dumps({"choices": []})),
        send(200, json.dumps({"choices": [{"message": {"content": [{"type": "text", "text": "[[A]]"}]}}]})),
        lambda handler: handler.connection.close(),
        lambda handler: time.sleep(1.3),
    ]
    place: dict[str, int] = {}

    def behave(body: Body, number: int) -> str | Callable[[Handler], None]:
        with server.guard:
            mine = place.setdefault(json.dumps(body), len(place))
        return wrongs[mine % len(wrongs)] if number == 1 else longer(body, number)

    server.behave = behave
    answers = ["a", "bb", "ccc", "dddd", "eeeee"]
    one = judge(server, tmp_path, timeout=1.0, concurrency=10)
    (matrix,) = one.prefer([Comparison(ASK, answers, "")])
    assert matrix.tolist() == lengths(*answers).tolist()
    assert len(place) == 20 and set(server.answered.values()) == {1}
    assert set(server.requests.values()) == {2}
    assert (one.endpoint.counts.failed, one.failed) == (0, 0)
    assert one.endpoint.counts.sent >= len(server.asked) == 40  # a connection found closed is a try that nobody saw
    times: dict[str, list[float]] = {}
    for moment, text in server.asked:
        times.setdefault(text, []).append(moment)
    waited = [times[text][1] - times[text][0] for text, mine in zip(times, place.values(), strict=True) if mine % 10 == 2]
    assert len(waited) == 2 and min(waited) >= 1.5  # the server's own time, which is longer than the client's


def test_a_missing_verdict_is_asked_for(server: Server, tmp_path: Path) -> None:
    """In the same conversation, so that a reply cut off before its verdict is of use; a null reply too is one without."""

    def behave(body: Body, number: int) -> str | Callable[[Handler], None]:
        if len(body["messages"]) > 1:
            assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
            assert body["messages"][1]["content"] in ("Both are [A]", "...") and body["messages"][2]["content"] == AGAIN
            return longer(body, number)
        return "Both are [A]" if shown(body)[0] == "a" else send(200, json.dumps({"choices": [{"message": {"content": None}}]}))

    server.behave = behave
    one = judge(server, tmp_path)
    assert one.prefer([Comparison(ASK, ["a", "bb"], "")])[0].tolist() == [[0.5, 0], [1, 0.5]]
    assert (one.orders, one.failed, one.endpoint.counts.sent) == (2, 0, 4)
    judge(server, tmp_path).prefer([Comparison(ASK, ["a", "bb"], "")])
    assert len(server.asked) == 4  # a reply without a word is one too


def test_failed_orders_are_counted_and_said_once(server: Server, tmp_path: Path) -> None:
    """(a, b) fails shown that way round; (a, c) both ways, once without a verdict and once refused; all others work."""

    def behave(body: Body, number: int) -> str | Callable[[Handler], None]:
        if shown(body) == ("a", "c"):
            return send(413, json.dumps({"error": {"message": "too long"}}))
        return "hm" if shown(body) in (("a", "b"), ("c", "a")) else f"[[{'AB'['a' in shown(body)[1]]}]]"

    server.behave = behave
    said: list[str] = []
    one = judge(server, tmp_path, notify=said.append, concurrency=1)
    answers = ["a", "b", "c", "d", "e"]
    for _ in range(2):
        (matrix,) = one.prefer([Comparison(ASK, answers, "")])
        assert matrix[0].tolist() == [0.5, 1, 0.5, 1, 1]
        assert matrix + matrix.T == pytest.approx(np.ones((5, 5)))
    assert (one.orders, one.failed, one.unjudged, one.failure_rate) == (40, 6, 2, 0.15)
    (line,) = said
    assert line.startswith("game.oracle: 3 of 20 judgements failed (15.0%), and 1 pairs without any count as 1/2; the last: ")
    assert "\n" not in line
    assert {json.loads(text)["messages"][-1]["content"] == AGAIN for text in server.requests} == {True, False}
    unkept = [text for text, count in server.requests.items() if count > 1]
    assert [shown(json.loads(text)) for text in unkept] == [("a", "c")]  # what was replied, even "hm", is not asked again


@pytest.mark.parametrize(
    ("behave", "line"),
    [
        (
            lambda body, number: "no idea",
            r"game\.oracle\.model: .* judgements failed, at most 20% may; the last: no verdict in 'no",
        ),
        (lambda body, number: send(500, "broken"), r"game\.oracle\.base_url: .* the last: 500, broken"),
        (
            lambda body, number: send(429, "wait", retry_after="3600"),
            r"game\.oracle\.base_url: .* the last: 429, wait \(Retry-After: 3600\)",
        ),
    ],
)
def test_a_judge_that_fails_too_often_stops_early(server: Server, tmp_path: Path, behave: Any, line: str) -> None:
    server.behave = behave
    answers = ["a" * number for number in range(1, 21)]
    with pytest.raises(InputError, match=f"^{line}") as error:
        judge(server, tmp_path, retries=1).prefer([Comparison(ASK, answers, "")])
    assert "\n" not in str(error.value)
    assert len(server.asked) < 100  # of 380 orders, some of them asked more than once
    with pytest.raises(InputError, match=f"^{line}"):  # also of a few, if there is none that works
        judge(server, tmp_path / "few", retries=0).prefer([Comparison(ASK, answers[:2], "")])


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ([{"message": {"content": "7", "reasoning_content": "Is it 8?"}}], "7"),
        ([{"message": {"content": "7"}}, {"message": {"content": "8"}}], "7"),
        ([{"message": {"content": None, "reasoning": "Is it 8?", "tool_calls": []}, "finish_reason": "length"}], ""),
        ([{"message": {"reasoning_content": "7"}}], None),
        ([{"message": {"content": 7}}], None),
        ([{"message": None}], None),
        ([{"text": "7"}], None),
        ([7], None),
        ({"message": {"content": "7"}}, None),
        (None, None),
    ],
)
def test_an_odd_reply_is_a_text_or_one_failure(server: Server, tmp_path: Path, choices: Any, text: str | None) -> None:
    server.behave = lambda body, number: send(200, json.dumps({"choices": choices}, indent=1))
    endpoint = Endpoint(server.url, "m", tmp_path, "evaluation.judge", retries=0)
    if text is None:
        with pytest.raises(NoReplyError, match=r"^a reply that is no chat completion: ") as error:
            endpoint.ask(ASK)
        assert "\n" not in str(error.value)
    else:
        assert endpoint.ask(ASK) == endpoint.kept(ASK) == text
    assert (endpoint.counts.sent, endpoint.counts.failed) == (1, text is None)


def test_replies_of_earlier_versions_are_found(server: Server, tmp_path: Path) -> None:
    """A file as httpx and tenacity wrote it, before the openai client; other requests are put after it."""
    file = tmp_path / "548f58d1c36c715b44f0.jsonl"
    earlier = [
        '{"request": "31a9bb310f1fb4631384", "text": "7 \\u2603"}\n',
        '{"request": "5207cd383deb6a5e62ed", "text": "[[A]]"}\n',
    ]
    file.write_text("".join(earlier))
    server.behave = lambda body, number: "new"
    endpoint = Endpoint(server.url, "m", tmp_path, "evaluation.judge", extra={"top_p": 0.5})
    assert endpoint.ask(ASK) == "7 ☃" and endpoint.ask(ASK, None, None) == "[[A]]"
    assert server.asked == [] and endpoint.counts.kept == 2
    assert endpoint.ask(ASK, 1.0) == "new" and file.read_text().startswith("".join(earlier))
    assert json.loads(file.read_text().splitlines()[2])["text"] == "new" and list(tmp_path.glob("*.jsonl")) == [file]


def test_no_proxy_comes_between_this_machine_and_itself(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.behave = lambda body, number: "7"
    assert Endpoint(server.url, "m", tmp_path, "evaluation.judge", retries=0).ask(ASK) == "7"


def test_a_kill_loses_nothing(server: Server, tmp_path: Path) -> None:
    """kill -9 at the 9th request; then a reply torn in the middle of its line, as a kill during a write leaves it."""
    answers = ["a", "bb", "ccc", "dddd"]
    program = (
        "import sys; from pathlib import Path; from lowmem_spin.algorithm.preferences import Comparison\n"
        "from lowmem_spin.engines.oracles.judge import LLMJudge\n"
        "judge = LLMJudge(sys.argv[1], 'm', Path(sys.argv[2]), print, concurrency=1)\n"
        f"judge.prefer([Comparison({ASK!r}, {answers!r}, '')])"
    )
    killed: list[int] = []

    def behave(body: Body, number: int) -> str | Callable[[Handler], None]:
        if len(server.asked) == 9 and not killed:
            killed.append(child.pid)
            os.kill(child.pid, signal.SIGKILL)
            return send(500, "")
        return longer(body, number)

    server.behave = behave
    child = subprocess.Popen([sys.executable, "-c", program, server.url, str(tmp_path)])
    assert child.wait(60) == -signal.SIGKILL and len(server.asked) == 9
    (matrix,) = judge(server, tmp_path).prefer([Comparison(ASK, answers, "")])
    assert matrix.tolist() == lengths(*answers).tolist()
    assert len(server.asked) == 13 and set(server.answered.values()) == {1} and len(server.answered) == 12

    (file,) = tmp_path.glob("*.jsonl")
    whole = file.read_text().splitlines()
    file.write_text("\n".join(whole)[:-10])
    judge(server, tmp_path).prefer([Comparison(ASK, answers, "")])
    judge(server, tmp_path).prefer([Comparison(ASK, answers, "")])
    assert len(server.asked) == 14
    assert [json.loads(line) for line in file.read_text().splitlines() if line != whole[-1][:-10]] == [
        json.loads(line) for line in whole
    ]


def test_an_interrupt_keeps_what_is_under_way(server: Server, tmp_path: Path) -> None:
    answers = ["a" * number for number in range(1, 9)]
    ctrl_c = CtrlC()

    def behave(body: Body, number: int) -> str:
        if len(server.asked) >= 20:
            ctrl_c.press()
        time.sleep(0.02)
        return longer(body, number)

    server.behave = behave
    one = judge(server, tmp_path, concurrency=4)
    with ctrl_c:
        one.prefer([Comparison(ASK, answers, "")])
    assert ctrl_c.pressed.is_set()
    assert 20 <= len(server.asked) < 30 and one.failed == 0
    assert one.prefer([Comparison(ASK, answers, "")])[0].tolist() == lengths(*answers).tolist()
    assert len(server.asked) == 56 and set(server.answered.values()) == {1}


def test_an_interrupt_waits_for_no_later_try(server: Server, tmp_path: Path) -> None:
    """Two requests sleep before their next try and two are under way, to be refused, when the interrupt comes."""
    ctrl_c = CtrlC()

    def behave(body: Body, number: int) -> Callable[[Handler], None]:
        if len(server.asked) == 4:
            ctrl_c.press()
        if len(server.asked) > 2:
            time.sleep(0.1)
        return send(500, "", retry_after="100")

    server.behave = behave
    one = judge(server, tmp_path, concurrency=4)
    one.endpoint._stop = waits = Waits()
    with ctrl_c:
        one.prefer([Comparison(ASK, ["a", "bb", "ccc", "dddd"], "")])
    assert waits.ended == [True] * 4  # by the interrupt, not by the hundred seconds
    assert len(server.asked) == 4 and (one.failed, one.endpoint.counts.failed) == (0, 0)  # nobody's verdict failed


def test_nothing_is_sent_after_an_interrupt(server: Server, tmp_path: Path) -> None:
    """What is under way ends with a reply, and those who asked would go on to a second request."""
    ctrl_c = CtrlC()

    def behave(body: Body, number: int) -> str:
        if len(server.asked) == 4:
            ctrl_c.press()
        ctrl_c.pressed.wait()
        time.sleep(0.5)  # until the interrupt has come through
        return "7"

    def twice(number: int) -> list[str]:
        return [endpoint.ask([*ASK, {"role": "user", "content": f"{number} {again}"}]) for again in (False, True)]

    server.behave = behave
    endpoint = Endpoint(server.url, "m", tmp_path, "evaluation.judge", concurrency=4)
    with ctrl_c:
        endpoint.each(twice, range(4))
    assert (len(server.asked), endpoint.counts.sent, endpoint.counts.failed) == (4, 4, 0)
    assert endpoint.each(twice, range(4)) == [["7", "7"]] * 4 and set(server.answered.values()) == {1}


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        ((401, {"error": {"message": "bad key"}}), "api_key_env: .* refuses: 401, bad key; look at A_KEY"),
        ((403, {"detail": "not yours"}), "api_key_env: .* refuses: 403, not yours"),
        ((402, {"error": {"message": "pay"}}), "api_key_env: the account at .* has no credit: 402, pay"),
        ((429, {"error": {"message": "pay", "code": "insufficient_quota"}}), "api_key_env: the account"),
        ((404, {"error": {"message": "The model `the-judge` does not exist."}}), "model: .* does not serve 'the-judge'"),
        ((400, {"error": "the-judge is not a valid model ID"}), "model: .* does not serve 'the-judge'"),
        ((404, {"error": {"message": "gone", "code": "model_not_found"}}), "model: .* does not serve 'the-judge'"),
        ((404, {"detail": "Not Found"}), "base_url: .* has no chat endpoint: 404, Not Found; it mostly ends in /v1"),
        ((301, {}), r"base_url: .* sends elsewhere \(301\), which is not followed"),
    ],
)
def test_what_no_request_can_get_past_ends_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: tuple[int, Body], line: str
) -> None:
    server.behave = lambda body, number: send(reply[0], json.dumps(reply[1]))
    monkeypatch.setenv("A_KEY", "secret")
    endpoint = Endpoint(server.url, "the-judge", tmp_path, "evaluation.judge", "A_KEY", retries=1)
    with pytest.raises(InputError, match=rf"^evaluation\.judge\.{line}") as error:
        endpoint.ask(ASK)
    assert "\n" not in str(error.value)
    assert len(server.asked) == (2 if reply[0] == 429 else 1)  # the client does not know one 429 from another
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_where_nothing_can_be_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-you")
    unused = Server()
    unused.server_close()
    for url, key, line in [
        (server.url, "NO_SUCH_KEY", "api_key_env: the environment variable 'NO_SUCH_KEY' is not set"),
        (unused.url, None, "base_url: .* cannot be reached: "),
        ("localhost:8000/v1", None, "base_url: 'localhost:8000/v1' cannot be used: no address; it looks like"),
        ("http://[::1", None, "base_url: .* cannot be used: no address"),
    ]:
        with pytest.raises(InputError, match=rf"^game\.oracle\.{line}") as error:
            LLMJudge(url, "m", tmp_path, print, key, retries=1).prefer([Comparison(ASK, ["a", "b"], "")])
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"^game\.oracle\.prompt: it has no \{answer_b\}"):
        judge(server, tmp_path, prompt="{conversation} {answer_a} {reference}")
    found = LLMJudge(server.url, "m", tmp_path / "unused", print, "NO_SUCH_KEY")
    assert found.spec() and found.located() == {} and not (tmp_path / "unused").exists()  # a plan needs no key
    assert server.asked == []
    assert judge(server, tmp_path).prefer([Comparison(ASK, ["a", "bb"], "")])[0][1, 0] == 1
    assert "not-for-you" not in str(server.headers[0])


def test_one_request_may_fail_where_others_do_not(server: Server, tmp_path: Path) -> None:
    """The endpoint by itself, as a grader of single answers uses it."""
    server.behave = lambda body, number: send(400, "too long") if "long" in body["messages"][0]["content"] else "7"
    endpoint = Endpoint(server.url, "m", tmp_path, "evaluation.judge", extra={"top_p": 0.5})

    def grade(text: str) -> str | None:
        try:
            return endpoint.ask([{"role": "user", "content": text}], temperature=None, max_tokens=None)
        except NoReplyError:
            return None

    assert endpoint.each(grade, ["short", "long", "brief"]) == ["7", None, "7"]
    assert json.loads(server.asked[0][1]).keys() == {"model", "messages", "top_p"}
    assert (endpoint.counts.sent, endpoint.counts.failed) == (3, 1)
    done: list[float] = []
    with pytest.raises(ZeroDivisionError):
        endpoint.each(lambda number: (done.append(1 / number), time.sleep(0.001)), range(1000))
    assert len(done) < 500  # an error ends the rest
    with ThreadPoolExecutor(4) as pool:  # asked directly, from threads of the caller's
        assert list(pool.map(lambda n: endpoint.ask([{"role": "user", "content": str(n)}]), range(8))) == ["7"] * 8
    for _ in range(2):
        endpoint.close()  # and asked again, it connects again
        assert endpoint.ask([{"role": "user", "content": f"after {len(server.asked)}"}]) == "7"


def test_identity_is_what_decides(tmp_path: Path) -> None:
    def identity(url: str = "http://localhost/v1", model: str = "m", **given: Any) -> dict[str, Any]:
        return LLMJudge(url, model, tmp_path, print, **given).spec()

    asked = identity()
    json.dumps(asked)
    for field, value in (("url", "http://elsewhere/v1"), ("concurrency", 1), ("timeout", 1.0), ("retries", 1)):
        given: dict[str, Any] = {field: value}
        assert identity(**given) == asked, field
    prompt, extra = "{conversation}{answer_a}{answer_b}", {"top_p": 0.5}
    for field, value in (
        *(("model", "n"), ("temperature", 1.0), ("max_tokens", 9), ("tries", 0), ("prompt", prompt), ("extra", extra)),
    ):
        given = {field: value}
        assert identity(**given) != asked, field


REASONER = {"max_tokens": None, "max_completion_tokens": 512, "temperature": None}


def from_recipe(server: Server, cache: Path, **given: Any) -> LLMJudge:
    section = JudgeOracle.model_validate({"base_url": server.url, "model": "m", **given})
    return LLMJudge.from_recipe(section, OracleContext(None, CPU, cache, lambda line: None))  # type: ignore[arg-type]


def test_a_judge_that_refuses_how_it_is_asked_says_what_to_set(server: Server, tmp_path: Path) -> None:
    server.behave = reasoner()
    question = [Comparison(ASK, ["a", "bb"], "")]
    for extra, refused in (({}, "max_tokens"), ({"max_tokens": None}, "temperature")):
        with pytest.raises(InputError) as error:
            from_recipe(server, tmp_path, extra_body=extra).prefer(question)
        line = str(error.value)
        assert line.startswith(f"game.oracle.extra_body: {server.url!r} refuses how it is asked: 400, Unsupported ")
        assert f"'{refused}'" in line and "such as {max_tokens: null, max_completion_tokens: 4096" in line
    asked = from_recipe(server, tmp_path, extra_body=REASONER)
    assert asked.prefer(question)[0].tolist() == lengths("a", "bb").tolist()
    sent = json.loads(server.asked[-1][1])
    assert sent.keys() == {"model", "messages", "max_completion_tokens"} and sent["max_completion_tokens"] == 512


def test_more_fields_make_another_judge_and_none_leaves_it_the_one_it_was(server: Server, tmp_path: Path) -> None:
    """The default's key is the one that earlier versions gave."""
    plain = from_recipe(server, tmp_path)
    assert digest(plain.spec()) == "3834ae72e950d8255011"
    assert digest(Grader(plain.endpoint).spec()) == "6d31dd6fc9b2b03cc53a"
    other = from_recipe(server, tmp_path, extra_body=REASONER)
    assert digest(other.spec()) != digest(plain.spec()) and digest(Grader(other.endpoint).spec()) != digest(
        Grader(plain.endpoint).spec()
    )


@pytest.mark.parametrize("name", ["model", "messages", "stream", "n"])
def test_what_makes_it_another_request_is_refused(name: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot be set here"):
        from_recipe(server, tmp_path, extra_body={name: 1})
