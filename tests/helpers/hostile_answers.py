"""What a hostile server may answer: every way to wrap a reply, and every way to have none."""

import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

KEY = "canary-Key/with+signs=0123456789"
TEXTS = [
    "[[A]]",
    "[[7]]",
    "",
    "x" * 3000,
    "ünï ☃ \u0000 \x1b[31mred",
    "lone \ud800 half",
    f"it was {KEY}.",
    '{"a": "b"}',
    "\r\n\r\n",
]


@dataclass
class Answer:
    """What is sent: pieces, and seconds of silence between them; and what a client has to make of it."""

    pieces: Iterable[bytes | float]
    text: str | None = None  # of the reply; None: this is none
    reset: bool = False  # whether the connection is torn down at the end, not closed
    last: bool = True  # whether it ends there


def head(status: object = "200 OK", *lines: str, version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"{version} {status}", *lines, "", ""]).encode("utf-8", "surrogateescape")


def plain(body: bytes, status: object = "200 OK", *lines: str) -> list[bytes]:
    return [head(status, *lines, f"Content-Length: {len(body)}"), body]


def completion(text: str | None, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text, **more}
    return json.dumps({"id": "1", "choices": [{"index": 0, "message": message}]}).encode()


def endless(first: bytes, piece: bytes, pause: float = 0.0) -> Iterator[bytes | float]:
    yield first
    while True:
        yield piece
        yield pause


# What is a reply, however it is wrapped.


def honest(rng: random.Random, text: str) -> Answer:
    return Answer(plain(completion(text), "200 OK", "Content-Type: application/json"), text)


def odd_type(rng: random.Random, text: str) -> Answer:
    kind = rng.choice(["a/json; charset=utf-99", "text/html; charset=base64", "a/b; charset=utf-16", "x" * 5000, ";;;="])
    return Answer(plain(completion(text), rng.choice(["200 OK", "201", "206 Some"]), f"Content-Type: {kind}"), text)


def other_unicode(rng: random.Random, text: str) -> Answer:
    content = completion(text).decode()
    return Answer(plain(content.encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-le"]))), text)


def packed(rng: random.Random, text: str) -> Answer:
    name, pack = rng.choice([("gzip", gzip.compress), ("deflate", zlib.compress), ("x-none, identity", bytes)])
    return Answer(plain(pack(completion(text)), "200 OK", f"Content-Encoding: {name}"), text)


def chunked(rng: random.Random, text: str) -> Answer:
    content = completion(text)
    size = rng.randint(1, len(content))
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    chunks = [f"{len(part):x};odd=yes\r\n".encode() + part + b"\r\n" for part in parts]
    return Answer([head("200 OK", "Transfer-Encoding: chunked"), b"".join(chunks), b"0\r\nTrailer: 1\r\n\r\n"], text)


def to_the_end(rng: random.Random, text: str) -> Answer:
    return Answer([head(version="HTTP/1.0"), completion(text)], text)


def in_pieces(rng: random.Random, text: str) -> Answer:
    whole = b"".join(plain(completion(text)))
    middle = rng.randint(1, len(whole) - 1)
    return Answer([whole[:middle], 0.05, whole[middle:]], text)


def after_interim_answers(rng: random.Random, text: str) -> Answer:
    early = [head(rng.choice(["100 Continue", "102 Wait", "103 Hints"]), "Link: </a>") for _ in range(rng.randint(1, 20))]
    return Answer([*early, *plain(completion(text))], text)


def with_more(rng: random.Random, text: str) -> Answer:
    more = rng.choice([{"tool_calls": [{"id": None}]}, {"refusal": "no"}, {"n": 10**300}, {"reasoning_content": text}])
    deep = json.dumps({"usage": [[[[{}]]]] * 9, "x": "y" * 9999})[1:-1].encode()
    return Answer(plain(completion(text, **more).replace(b"{", b'{"score": NaN, ' + deep + b", ", 1)), text)


def silent(rng: random.Random, text: str) -> Answer:
    more = rng.choice([{"refusal": f"I will not say {KEY}"}, {"tool_calls": [{}]}, {}])
    return Answer(plain(completion(None, **more)), "")


def long(rng: random.Random, text: str) -> Answer:
    longer = text + "Ж[[B]]" * rng.randint(1, 60_000)
    return Answer(plain(completion(longer)), longer)


def twice(rng: random.Random, text: str) -> Answer:
    """With an answer to a question that nobody asked, which is not that of the next."""
    return Answer([b"".join([*plain(completion(text)), *plain(completion("of another"))])], text)


# What is none.


def refused(rng: random.Random, text: str) -> Answer:
    status = rng.choice(
        [400, 401, 402, 403, 404, 405, 408, 409, 413, 418, 422, 429, 451, 499, 500, 502, 503, 504, 529, 599, 999]
    )
    says = rng.choice(["no", f"Bearer {KEY}", KEY.upper(), "The model `m` does not exist", "context of m is 8", text, None, 7])
    error = {"message": says, "code": rng.choice([None, 404, "insufficient_quota", "unsupported_value", [], {"a": 1}, "x"])}
    nested: Any = rng.choice(
        [{"error": error}, error, {"error": says}, {"detail": says}, [error], says, {"detail": [error]}, {}]
    )
    body = rng.choice([json.dumps(nested), f"<html>{KEY}</html>", "[" * 5000, "", "\x00", '{"error": NaN', KEY[:20]])
    when = rng.choice(
        [None, "1e9", "-5", "Thu, 01 Jan 1970 00:00:00 GMT", "soon", "nan", "inf", "1e400", KEY, " ", ",", "0.01", "9" * 999]
    )
    lines = [f"Retry-After: {when}"] if when is not None else []
    lines += rng.choice([[], ["x-should-retry: true"], ["x-should-retry: false"], [f"retry-after-ms: {when}"]])
    lines += [
        f"Content-Type: text/html; charset={rng.choice(['utf-8', 'utf-99', 'base64', 'unicode_escape', 'idna', 'utf-16'])}"
    ]
    return Answer(plain(body.encode("utf-8", "surrogatepass"), f"{status} {rng.choice(['', 'Because', KEY])}", *lines))


def elsewhere(rng: random.Random, text: str) -> Answer:
    where = rng.choice(
        [f"http://other.invalid/{KEY}", f"/v1?key={KEY}", "http://[", "", "http://a:99999/", "javascript:x", "\xff"]
    )
    return Answer(plain(b"", rng.choice([300, 301, 302, 303, 304, 307, 308]), f"Location: {where}"))


def no_content(rng: random.Random, text: str) -> Answer:
    return Answer([head(rng.choice(["204 None", "205 Reset", "200 OK", "226 Used"]), "Content-Length: 0")])


def switched(rng: random.Random, text: str) -> Answer:
    return Answer([head("101 Switching Protocols", "Upgrade: websocket", "Connection: upgrade"), completion(text)])


def other_json(rng: random.Random, text: str) -> Answer:
    wrong: list[Any] = [
        *(None, [], {}, 7, text, {"choices": []}, {"choices": {}}, {"choices": None}, {"choices": [None]}, {"choices": [[]]}),
        *({"choices": [{"message": {}}]}, {"choices": [{"text": text}]}, {"choices": "abc"}, {"error": KEY}),
        {"choices": [{"message": {"content": [{"type": "text", "text": text}]}}]},
        {"choices": [{"message": {"content": {"text": text}}}]},
        {"choices": [{"delta": {"content": text}}]},
        {"choices": [{"message": {"content": 10**400}}]},
    ]
    return Answer(plain(json.dumps(rng.choice(wrong)).encode()))


def no_json(rng: random.Random, text: str) -> Answer:
    whole = completion(text)
    return Answer(
        plain(
            rng.choice(
                [
                    f"<!DOCTYPE html><p>{KEY}".encode(),
                    whole[: rng.randint(0, len(whole) - 1)],
                    whole + whole,
                    b'{"choices": ' + b"[" * 100_000,
                    b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
                    b'{"choices": [{"message": {"content": ' + b"9" * 6000 + b"}}]}",
                    b"data: " + whole,
                    rng.randbytes(500),
                    completion("\xfc").replace(b"\\u00fc", b"\xfc"),
                ]
            )
        )
    )


def cut(rng: random.Random, text: str) -> Answer:
    """The connection ends before the answer does."""
    content = completion(text)
    short = content[: rng.randint(0, len(content) - 1)]
    made = rng.choice(
        [
            [head("200 OK", f"Content-Length: {len(content)}"), short],
            [head("200 OK", "Transfer-Encoding: chunked"), f"{len(content):x}\r\n".encode() + short],
            [head("200 OK", "Transfer-Encoding: chunked"), f"{len(content):x}\r\n".encode() + content + b"\r\n"],
            [head("200 OK", "Content-Length: 9", "Content-Encoding: gzip"), gzip.compress(content)[:9]],
            [b"HTTP/1.1 200 OK\r\nContent-Le"],
            [b""],
        ]
    )
    return Answer(made, reset=rng.random() < 0.5)


def garbled(rng: random.Random, text: str) -> Answer:
    """Not HTTP, or not quite."""
    content = completion(text)
    sized = f"Content-Length: {len(content)}"
    made = rng.choice(
        [
            [rng.randbytes(300)],
            [b"\x16\x03\x01\x02\x00\x01\x00" + rng.randbytes(50)],
            [f"Authorization: Bearer {KEY}\r\n\r\n".encode()],
            [b"SSH-2.0-OpenSSH_9.6\r\n"],
            [content],
            [head("200 OK", sized, "Content-Length: 3"), content],
            [head("200 OK", "Content-Length: -1"), content],
            [head("200 OK", "Content-Length: 9999999999999999999999"), content],
            [head("200 OK", "Transfer-Encoding: chunked"), b"zz\r\n" + content],
            [head("200 OK", "Transfer-Encoding: chunked"), b"-5\r\n" + content],
            [head("200 OK", "Transfer-Encoding: gzip, chunked"), b"5\r\n" + content],
            [head("200 OK", "Content-Encoding: gzip", sized), content],
            [head("200 OK", "Bad Header: x", sized), content],
            [head("200 OK", ": x", sized), content],
            [head("200 OK", f"X: {KEY}\x00", sized), content],
            [head("abc", sized), content],
            [head("20", sized), content],
            [head("200 OK", *["X: y"] * 30_000), content],
            [head("200 OK", "X: " + "y" * 300_000), content],
        ]
    )
    return Answer(made)


def dripping(rng: random.Random, text: str) -> Answer:
    """A byte again and again, far from any single read's limit, of headers or content."""
    first, piece = rng.choice(
        [
            (head("200 OK", "Content-Length: 9999"), b" "),
            (head("200 OK", "Transfer-Encoding: chunked"), b"1\r\n \r\n"),
            (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
            (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
            (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
            (head("500 No", "Content-Length: 9999"), b"e"),
            (b"", b""),
        ]
    )
    return Answer(endless(first, piece, 0.05))


def flooding(rng: random.Random, text: str) -> Answer:
    """More than anybody wants, as fast as it goes."""
    bomb = gzip.compress(bytes(2**25), 1)
    first, piece = rng.choice(
        [
            (head("200 OK", "Transfer-Encoding: chunked"), b"10000\r\n" + b" " * 65536 + b"\r\n"),
            (head(version="HTTP/1.0"), completion(text) + b" " * 65536),
            (head("400 No"), b"e" * 65536),
            (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 5000),
            (b"", b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 500),
            (head("200 OK", "Content-Encoding: gzip", f"Content-Length: {len(bomb)}"), bomb),
            (head("200 OK", "Content-Encoding: gzip, gzip"), gzip.compress(bomb, 1)),
        ]
    )
    return Answer(endless(first, piece))


def mute(rng: random.Random, text: str) -> Answer:
    return Answer(rng.choice([[3.0], [head("200 OK", "Content-Length: 90"), 3.0], []]))


Behaviour = Callable[[random.Random, str], Answer]
REPLIES = [
    honest,
    odd_type,
    other_unicode,
    packed,
    chunked,
    to_the_end,
    in_pieces,
    after_interim_answers,
    with_more,
    silent,
    long,
    twice,
]
FAILURES = [refused, elsewhere, no_content, switched, other_json, no_json, cut, garbled, dripping, flooding, mute]
WAYS: dict[Behaviour, int] = {**dict.fromkeys([*REPLIES, *FAILURES], 1), refused: 5, garbled: 2, no_json: 2, dripping: 2}
