"""A model behind an OpenAI-compatible chat endpoint: many requests at once, tries where they help, every reply kept."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_random_exponential,
)

from lowmem_spin.common.errors import InputError
from lowmem_spin.common.keys import digest
from lowmem_spin.engines.oracles.reply_cache import Replies

Messages = Sequence[Mapping[str, str]]
PATIENCE = 300.0  # the longest Retry-After that is waited for, in seconds
PASSING = {408, 409, 425, 429}  # as are all from 500 on
Item = TypeVar("Item")
Result = TypeVar("Result")


def part(field: str, name: str) -> str:
    """How a user calls a part of `field`: a recipe's field has a dot, a command's option a dash."""
    return f"{field}-{name.replace('_', '-')}" if field.startswith("--") else f"{field}.{name}"


def check_key(field: str, name: str) -> str:
    """The key in an environment variable.

    Raises:
        InputError: there is none.
    """
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(f"{part(field, 'api_key_env')}: the environment variable {name!r} is not set; export it")
    return key


class NoReplyError(Exception):
    """One request has no reply, after all its tries or because the server refuses it; others may have theirs."""


class _PassingError(Exception):
    """What may be gone at the next try, in `wait` seconds if the server said so."""

    def __init__(self, what: str, wait: float | None = None) -> None:
        super().__init__(what)
        self.wait = wait


@dataclass
class Counts:
    """What an endpoint was asked in this process."""

    sent: int = 0  # HTTP requests, tries included
    kept: int = 0  # replies that were on disk already
    failed: int = 0  # requests without a reply in the end


class Endpoint:
    """One model at one address.

    A reply is on disk before anyone sees it, and the same request is not sent again: not in this process, not after a
    kill. A request is the model's name, the messages, and how to sample. The address is not part of it, so a server can
    move; nor is the key. Two models of one name, at two addresses, need two caches.

    Args:
        base_url: of the API, up to and with its version: https://host/v1.
        model: by its name there.
        cache: a folder for the replies, shared by any endpoints and processes.
        field: where a recipe or a command speaks of it; InputErrors name the `part` of it that is wrong.
        api_key_env: the environment variable with the key; None sends none, as for a local server.
        extra: more fields of every request, such as top_p, seed, or max_completion_tokens where max_tokens is refused.
        concurrency: how many requests are under way at once.
        timeout: seconds that a reply may take.
        retries: tries after the first, with exponential backoff, or after the time that the server asks for.
        backoff: seconds, at most, before the second try.

    Nothing is read, written or sent before it is asked for the first time.

    Raises:
        InputError: the address is none.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        cache: Path,
        field: str,
        api_key_env: str | None = None,
        extra: Mapping[str, Any] | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
    ) -> None:
        self.base_url, self.model, self.field, self.api_key_env = base_url, model, field, api_key_env
        self.extra, self.concurrency, self.timeout, self.counts = dict(extra or {}), concurrency, timeout, Counts()
        self._url = self._address()
        self._replies = Replies(cache / f"{digest({'model': model})}.jsonl")
        self._client: httpx.Client | None = None
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._spoke = self._agreed = False  # whether the server ever answered, and ever with a reply
        self._backoff = wait_random_exponential(multiplier=backoff, max=60)
        self._tries = Retrying(
            stop=stop_after_attempt(retries + 1) | stop_when_event_set(self._stop),
            wait=self._wait,
            sleep=sleep_using_event(self._stop),
            retry=retry_if_exception_type(_PassingError),
            reraise=True,
        )

    def _address(self) -> httpx.URL:
        try:
            url = httpx.URL(self.base_url)
        except httpx.InvalidURL as error:
            raise InputError(f"{part(self.field, 'base_url')}: {self.base_url!r} is no address: {error}") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError(f"{part(self.field, 'base_url')}: {self.base_url!r} is no address; it looks like https://host/v1")
        return url

    def _connected(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> httpx.Client:
        key = check_key(self.field, self.api_key_env) if self.api_key_env else None
        return httpx.Client(
            base_url=self._url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self.timeout, connect=min(self.timeout, 15.0)),
            limits=httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
            trust_env=self._url.host not in ("localhost", "127.0.0.1", "::1"),  # a proxy does not know this machine
        )

    def close(self) -> None:
        """Let go of the connections; they are made again when it is asked again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def reach(self) -> None:
        """Ask the server what it serves, to know before long work that it is there and takes the key.

        Raises:
            InputError: it cannot be reached, or refuses.
        """
        try:
            response = self._connected().get("models")
        except httpx.RequestError as error:
            raise self._unreachable(error) from None
        if response.status_code in (401, 403):
            raise self._refusal(response)

    def ask(self, messages: Messages, temperature: float | None = 0.0, max_tokens: int | None = 1024) -> str:
        """The text of the reply, from disk or from the server; None as a limit or temperature leaves it to the server.

        Raises:
            NoReplyError: there is none to this request.
            InputError: there will be none to any: no server, no key, no such model.
        """
        body = self._body(messages, temperature, max_tokens)
        key = digest(body)
        kept = self._replies.get(key)
        if kept is not None:
            self._count("kept")
            return kept
        try:
            text = self._tries(self._post, body)
        except (NoReplyError, _PassingError) as error:
            if self._stop.is_set():
                raise CancelledError from error
            self._count("failed")
            raise NoReplyError(str(error)) from error
        self._replies.keep(key, text)
        return text

    def kept(self, messages: Messages, temperature: float | None = 0.0, max_tokens: int | None = 1024) -> str | None:
        """The text of the reply if it is on disk; nothing is sent."""
        return self._replies.get(digest(self._body(messages, temperature, max_tokens)))

    def _body(self, messages: Messages, temperature: float | None, max_tokens: int | None) -> dict[str, Any]:
        sampling = {"temperature": temperature, "max_tokens": max_tokens}
        return {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            **{name: value for name, value in sampling.items() if value is not None},
            **self.extra,
        }

    def each(self, do: Callable[[Item], Result], work: Sequence[Item]) -> list[Result]:
        """do(item) for every item, `concurrency` at a time; results in the order of `work`.

        An error, or an interrupt, ends the rest: replies under way are awaited and kept, nothing more is sent.
        """
        self._stop.clear()
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="endpoint")
        try:
            futures = [pool.submit(do, item) for item in work]
            for future in as_completed(futures):
                future.result()
            return [future.result() for future in futures]
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self.counts, what, getattr(self.counts, what) + 1)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.wait if isinstance(error, _PassingError) else None
        return self._backoff(state) if asked is None else asked

    def _post(self, body: dict[str, Any]) -> str:
        """Send a request once."""
        if self._stop.is_set():
            raise CancelledError
        client = self._connected()
        self._count("sent")
        try:
            response = client.post("chat/completions", json=body)
        except httpx.RequestError as error:
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not self._spoke:
                raise self._unreachable(error) from None
            raise _PassingError(str(error) or type(error).__name__) from error
        self._spoke = True
        if response.status_code != 200:
            raise self._refusal(response)
        text = _text(response)
        self._agreed = True
        return text

    def _unreachable(self, error: httpx.RequestError) -> InputError:
        why = str(error) or type(error).__name__
        return InputError(f"{part(self.field, 'base_url')}: {self.base_url!r} cannot be reached: {why}")

    def _refusal(self, response: httpx.Response) -> Exception:
        """What an answer other than 200 means: for this try, this request, or all of them."""
        status, (why, code) = response.status_code, _complaint(response)
        said = f"{status}, {why}" if why else str(status)
        if status == 401 or (status == 403 and not self._agreed):
            remedy = f"look at {self.api_key_env}" if self.api_key_env else "name the variable that holds a key"
            return InputError(f"{part(self.field, 'api_key_env')}: {self.base_url!r} refuses: {said}; {remedy}")
        if status == 402 or code == "insufficient_quota":
            return InputError(f"{part(self.field, 'api_key_env')}: the account at {self.base_url!r} has no credit: {said}")
        unknown = self.model in why and (status == 404 or (status == 400 and not self._agreed))
        if unknown or code == "model_not_found":
            return InputError(f"{part(self.field, 'model')}: {self.base_url!r} does not serve {self.model!r}: {said}")
        if status in (404, 405) or status < 400:
            return InputError(
                f"{part(self.field, 'base_url')}: {self.base_url!r} has no chat endpoint: {said}; it mostly ends in /v1"
            )
        if status not in PASSING and status < 500:
            return NoReplyError(said)
        wait = _retry_after(response.headers.get("retry-after"))
        if wait is not None and wait > PATIENCE:
            return NoReplyError(f"{said}; it asks to wait {wait:.0f} s")
        return _PassingError(said, wait)


def _text(response: httpx.Response) -> str:
    """The reply's text; "" where the model said nothing, as when it thought to the limit."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        content = response
    if content is not None and not isinstance(content, str):
        raise _PassingError(f"a reply that is no chat completion: {response.text[:100]!r}")
    return content or ""


def _complaint(response: httpx.Response) -> tuple[str, str]:
    """(what a server says is wrong, its code for that), as far as it says so in one of the usual ways."""
    try:
        content = response.json()
    except ValueError:
        return response.text[:200], ""
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return str(error)[:200], ""
    return str(error.get("message") or error.get("detail") or "")[:200], str(error.get("code") or "")


def _retry_after(header: str | None) -> float | None:
    """Seconds to wait: the header has them, or a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # neither: as if it were not there
        return None
