"""A judge behind HTTP on this machine, which may misbehave, and other servers that are waited for."""

import json
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Body = dict[str, Any]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and content in one piece: no waiting for the acknowledgement of the first

    def do_POST(self) -> None:
        self.server.serve(self)  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Answers each request with what `behave(body, number of its try)` gives: a text, or what to do wrong."""

    request_queue_size = 64
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave: Callable[[Body, int], str | Callable[[Handler], None]] = longer
        self.asked: list[tuple[float, str]] = []  # every request, with its time
        self.answered: Counter[str] = Counter()  # those that got a text
        self.headers: list[Message] = []
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def requests(self) -> Counter[str]:
        return Counter(text for _, text in self.asked)

    def serve(self, handler: Handler) -> None:
        text = handler.rfile.read(int(handler.headers["Content-Length"])).decode()
        assert handler.path == "/v1/chat/completions"
        with self.guard:
            self.asked.append((time.monotonic(), text))
            self.headers.append(handler.headers)
            number = self.requests[text]
        given = self.behave(json.loads(text), number)
        if isinstance(given, str):
            with self.guard:
                self.answered[text] += 1
            content = json.dumps({"choices": [{"message": {"role": "assistant", "content": given}, "finish_reason": "stop"}]})
            send(200, content)(handler)
        else:
            given(handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hung up


def send(status: int, content: str, cut: int = 0, **headers: str) -> Callable[[Handler], None]:
    """Send this, and `cut` bytes less of it than announced."""

    def do(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content.encode())))
        handler.end_headers()
        handler.wfile.write(content.encode()[: len(content.encode()) - cut])
        handler.close_connection = handler.close_connection or cut > 0

    return do


def shown(body: Body) -> tuple[str, str]:
    """The answers in the places A and B."""
    prompt = body["messages"][0]["content"]
    first, second = (re.search(f"<answer_{name}>\n(.*)\n</answer_{name}>", prompt, re.DOTALL) for name in "AB")
    assert first and second
    return first[1], second[1]


def longer(body: Body, number: int) -> str:
    first, second = map(len, shown(body))
    verdict = "A" if first > second else "B" if second > first else "C"
    return f"If the first were better I would write [[A]], if the second, [[B]]. But\n[[{verdict}]]"


def reasoner(judge: Callable[[Body, int], str] = longer) -> Callable[[Body, int], str | Callable[[Handler], None]]:
    """Refuses what OpenAI's reasoning models refuse, in their words, and else judges as `judge`."""

    def refuse(said: str, **error: str) -> Callable[[Handler], None]:
        return send(400, json.dumps({"error": {"message": said, "type": "invalid_request_error", **error}}))

    def behave(body: Body, number: int) -> str | Callable[[Handler], None]:
        if "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            return refuse(said, param="max_tokens", code="unsupported_parameter")
        if body.get("temperature", 1) != 1:
            said = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) is supported."
            return refuse(said, param="temperature", code="unsupported_value")
        return judge(body, number)

    return behave


def serving(behave: Callable[[Body, int], str | Callable[[Handler], None]]) -> Iterator[Server]:
    """A server under way, for as long as somebody wants it."""
    server = Server()
    server.behave = behave
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])
