"""A judge's server that does whatever servers do, and worse: for each request another behaviour, drawn from a seed.

    PYTHONPATH=tests python -m helpers.fuzz_servers --count 1000 --seed 7

asks it so many questions and checks that each ends in a reply, a NoReplyError or an InputError, that a reply is what was
sent for it, that the key is in no text, and that an honest server is asked again for what had no reply and for nothing else.
"""

import argparse
import json
import os
import random
import re
import socket
import socketserver
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from helpers.hostile_answers import KEY, TEXTS, WAYS, Answer, honest
from lowmem_spin.common.errors import InputError
from lowmem_spin.engines.oracles.endpoint import Endpoint, NoReplyError

VARIABLE = "HOSTILE_SERVERS_KEY"
NEVER = 20.0  # seconds after which a request counts as one that does not end


class Handler(socketserver.BaseRequestHandler):
    """One connection, and requests on it for as long as both sides want."""

    server: "Server"  # pyright: ignore[reportIncompatibleVariableOverride] - socketserver has it so

    def handle(self) -> None:
        self.request.settimeout(NEVER)
        while (asked := self._asked()) is not None:
            answer, began = self.server.answer(asked), time.monotonic()
            for piece in answer.pieces:
                if time.monotonic() - began > NEVER:
                    return
                if isinstance(piece, float):
                    time.sleep(piece)
                else:
                    self.request.sendall(piece)
            if answer.reset:
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if answer.last:
                return

    def _asked(self) -> str | None:
        read = b""
        while b"\r\n\r\n" not in read:
            more = self.request.recv(65536)
            if not more:
                return None
            read += more
        headers, _, body = read.partition(b"\r\n\r\n")
        length = int(found[1]) if (found := re.search(rb"(?i)content-length: (\d+)", headers)) else 0
        while len(body) < length:
            body += self.request.recv(65536)
        return body.decode()


class Server(socketserver.ThreadingTCPServer):
    """Draws a behaviour for each try of each request: the same for one seed, whatever comes first."""

    request_queue_size = 64
    daemon_threads = True
    block_on_close = False

    def __init__(self, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seed, self.hostile, self.guard = seed, True, threading.Lock()
        self.given: dict[str, list[tuple[str, str | None]]] = defaultdict(list)  # of each request: behaviour and text per try

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, asked: str) -> Answer:
        question = json.loads(asked)["messages"][0]["content"]
        with self.guard:
            rng = random.Random(f"{self.seed} {question} {len(self.given[question])}")
            behaviour = rng.choices(list(WAYS), list(WAYS.values()))[0] if self.hostile else honest
            answer = behaviour(rng, rng.choice(TEXTS))
            self.given[question].append((behaviour.__name__, answer.text))
        return replace(answer, last=answer.text is None or rng.random() < 0.5)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hung up


@dataclass
class Found:
    """What a campaign found."""

    asked: int
    tries: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)  # of requests
    late: int = 0  # that had a reply on its way, on a machine that was too slow for it
    problems: list[str] = field(default_factory=list)


def shown(text: str) -> str:
    return text.replace(KEY, "***")


def ask(endpoint: Endpoint, question: str) -> tuple[str | Exception, float]:
    """What came of it, and how long it took."""
    began = time.monotonic()
    try:
        outcome: str | Exception = endpoint.ask([{"role": "user", "content": question}])
    except Exception as error:  # noqa: BLE001 - what kind it may be is what is looked at
        outcome = error
    return outcome, time.monotonic() - began


def campaign(folder: Path, count: int, seed: int, timeout: float = 1.0) -> Found:
    """Ask a hostile server `count` questions, then an honest one the same, with replies kept in `folder`."""
    server, found = Server(seed), Found(count)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    questions = [f"question {number}" for number in range(count)]
    try:
        with patch.dict(os.environ, {VARIABLE: KEY}), ThreadPoolExecutor(16) as pool:
            arguments = (server.url, "m", folder, "game.oracle", VARIABLE)
            known = Endpoint(*arguments, concurrency=16, timeout=timeout, retries=1)

            def ask_first(number: int) -> tuple[str | Exception, float]:
                if number % 8:
                    return ask(known, questions[number])
                unknown = Endpoint(*arguments, timeout=timeout, retries=1)  # a server that has not replied yet
                try:
                    return ask(unknown, questions[number])
                finally:
                    unknown.close()

            first = list(pool.map(ask_first, range(count)))
            known.close()
            tried = {question: list(server.given[question]) for question in questions}
            server.given.clear()
            server.hostile = False
            endpoint = Endpoint(*arguments, concurrency=16, timeout=NEVER, retries=1)
            second = list(pool.map(lambda question: ask(endpoint, question)[0], questions))
            endpoint.close()
    finally:
        server.shutdown()
        server.server_close()
    for question, (outcome, seconds), again in zip(questions, first, second, strict=True):
        look(found, question, tried[question], outcome, seconds)
        look_again(found, question, server.given.get(question), outcome, again)
    found.problems += [f"the key is in {path}" for path in folder.rglob("*") if KEY.lower() in path.read_text().lower()]
    (kept,) = folder.glob("*.jsonl")
    if len(kept.read_text().splitlines()) != count:
        found.problems.append(f"{len(kept.read_text().splitlines())} replies are kept")
    return found


def look(found: Found, question: str, tries: list[tuple[str, str | None]], outcome: str | Exception, seconds: float) -> None:
    """Check what came of one request to the hostile server."""
    behaviour, text = tries[-1] if tries else ("nothing", None)
    found.tries += len(tries)
    found.outcomes["reply" if isinstance(outcome, str) else type(outcome).__name__] += 1
    said, wrong = str(outcome), []
    if isinstance(outcome, Exception):
        said = "".join([said, repr(outcome), *traceback.format_exception(outcome)])
        if not isinstance(outcome, NoReplyError | InputError):
            wrong.append(said)
        elif text is not None:
            found.late += "within" in said
            wrong += [f"no reply, but {outcome}"] * ("within" not in said)
        if len(str(outcome).splitlines()) > 1 or len(str(outcome)) > 1000:
            wrong.append(f"not one short line: {outcome}")
    elif text is None or outcome != shown(text):
        wrong.append(f"the reply {outcome[:80]!r}, where {str(text)[:80]!r} was sent")
    if KEY.lower() in said.lower():
        wrong.append(f"the key in {said}")
    if seconds > NEVER:
        wrong.append(f"{seconds:.0f} seconds")
    found.problems += [f"{question}, {behaviour}: {problem}" for problem in wrong]


def look_again(
    found: Found, question: str, tries: list[tuple[str, str | None]] | None, outcome: str | Exception, again: str | Exception
) -> None:
    """Check what came of it when an honest server was asked."""
    if isinstance(outcome, str):
        if again != outcome or tries:
            found.problems.append(f"{question}: {outcome[:80]!r} was kept, then {str(again)[:80]!r} came of {tries}")
    elif not tries or again != shown(tries[-1][1] or ""):
        found.problems.append(f"{question}: no reply was kept, then {again!r} came of {tries}")


def main() -> None:
    """Run a campaign and say what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), arguments.count, arguments.seed)
    print(f"{found.asked} requests, {found.tries} tries: {dict(found.outcomes)}, {found.late} too late for this machine")
    print(*found.problems, f"{len(found.problems)} problems", sep="\n")
    sys.exit(bool(found.problems))


if __name__ == "__main__":
    main()
