"""A model behind an OpenAI-compatible chat endpoint: many requests at once, tries where they help, every reply kept."""

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2

from lowmem_spin.common.checked import warn
from lowmem_spin.common.errors import InputError
from lowmem_spin.common.files import Notice
from lowmem_spin.common.keys import digest
from lowmem_spin.config.endpoint_fields import SecretError, check_address, check_key, subfield
from lowmem_spin.engines.oracles.reply_cache import Replies
from lowmem_spin.engines.oracles.server_words import repeated, says_no_such_model

if TYPE_CHECKING:
    import openai  # takes half a second, and most games have no endpoint

    from lowmem_spin.engines.oracles.exchange import Client

Messages = Sequence[Mapping[str, str]]
Item = TypeVar("Item")
Result = TypeVar("Result")


class NoReplyError(Exception):
    """One request has no reply, after all its tries or because the server refuses it; others may have theirs."""


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

    The key goes to this address alone: redirects are not followed. Where the server repeats it, it is *** in what comes out.

    Args:
        base_url: of the API, up to and with its version: https://host/v1.
        model: by its name there.
        cache: a folder for the replies, shared by any endpoints and processes.
        field: where a recipe or a command speaks of it; InputErrors name the `part` of it that is wrong.
        api_key_env: the environment variable with the key; None sends a placeholder, as to a local server.
        extra: more fields of every request, such as top_p, seed, or max_completion_tokens where max_tokens is refused; None
            leaves a field out.
        concurrency: how many requests are under way at once.
        timeout: seconds that a try may take, from connecting to the reply's last byte.
        retries: tries after the first, with exponential backoff, or after the time that the server asks for if that is at
            most two minutes; see openai.OpenAI.
        notify: told, in a line, that kept replies are damaged.

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
        notify: Notice = warn,
    ) -> None:
        self.base_url, self.model, self.field, self.api_key_env = base_url, model, field, api_key_env
        self.extra, self.concurrency, self.timeout, self.counts = dict(extra or {}), concurrency, timeout, Counts()
        self.retries, self._host = retries, self._checked_host()
        self._replies = Replies(cache / f"{digest({'model': model})}.jsonl", notify)
        self._client: Client | None = None
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._agreed = False  # whether the server ever gave a reply
        self._key: re.Pattern[str] | None = None  # as a server may spell it

    def _checked_host(self) -> str:
        try:
            check_address(self.base_url)
            return httpx2.URL(self.base_url).host
        except SecretError as error:
            raise InputError(f"{subfield(self.field, 'base_url')}: {error}") from None
        except (ValueError, httpx2.InvalidURL) as error:
            raise InputError(f"{subfield(self.field, 'base_url')}: {self.base_url!r} cannot be used: {error}") from None

    def _connected(self) -> "Client":
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> "Client":
        from lowmem_spin.engines.oracles.exchange import Client, Exchange

        key = check_key(self.field, self.api_key_env) if self.api_key_env else None
        self._key = None if key is None else repeated(key)
        elsewhere = self._host not in ("localhost", "127.0.0.1", "::1")  # a proxy does not know this machine
        try:
            exchange = Exchange(self.timeout, self.concurrency, proxies=elsewhere)
        except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
            remedy = "look at HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE"
            raise InputError(f"{subfield(self.field, 'base_url')}: the environment's proxy fails: {error}; {remedy}") from None
        hooks = {"request": [self._sending], "response": [self._received]}
        client = Client(
            base_url=self.base_url,
            api_key=key or "none",  # without any it would send OPENAI_API_KEY, wherever that goes
            max_retries=self.retries,
            http_client=httpx2.Client(transport=exchange, event_hooks=hooks),
        )
        client.stop = self._stop
        return client

    def _sending(self, request: httpx2.Request) -> None:
        if self._stop.is_set():
            raise CancelledError
        if request.method == "POST":
            self._count("sent")

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
        import openai

        try:
            self._connected().get("models", cast_to=httpx2.Response, options={"max_retries": 0})
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self._refusal(error) from None
        except openai.APIStatusError:  # not every server says what it serves
            pass

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
            text = self._post(body)
        except NoReplyError as error:
            if self._stop.is_set():
                raise CancelledError from error
            self._count("failed")
            raise
        self._replies.keep(key, text)
        return text

    def kept(self, messages: Messages, temperature: float | None = 0.0, max_tokens: int | None = 1024) -> str | None:
        """The text of the reply if it is on disk; nothing is sent."""
        return self._replies.get(digest(self._body(messages, temperature, max_tokens)))

    def _body(self, messages: Messages, temperature: float | None, max_tokens: int | None) -> dict[str, Any]:
        sampling = {"temperature": temperature, "max_tokens": max_tokens, **self.extra}
        return {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            **{name: value for name, value in sampling.items() if value is not None},
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

    def _post(self, body: dict[str, Any]) -> str:
        import openai

        client, content = self._connected(), json.dumps(body).encode()
        try:
            response = client.post("chat/completions", cast_to=httpx2.Response, content=content)
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout) and not self._agreed:
                raise self._unreachable(error) from None
            raise NoReplyError(self._cause(error)) from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        self._agreed = True
        return self._text(response)

    def _unreachable(self, error: "openai.APIConnectionError") -> InputError:
        remedy = "start its server, or correct the address, and give the same command again: what is finished is kept"
        return InputError(
            f"{subfield(self.field, 'base_url')}: {self.base_url!r} cannot be reached: {self._cause(error)}; {remedy}"
        )

    def _refusal(self, error: "openai.APIStatusError") -> Exception:
        """What an answer without success means: for this request, or for all of them."""
        status, code, why = error.status_code, error.code, self._reason(error)
        cause = f"{status}, {why}" if why else str(status)
        if status == 401 or (status == 403 and not self._agreed):
            remedy = f"look at {self.api_key_env}" if self.api_key_env else "name the variable that holds a key"
            return InputError(f"{subfield(self.field, 'api_key_env')}: {self.base_url!r} refuses: {cause}; {remedy}")
        if status == 402 or code == "insufficient_quota":
            return InputError(f"{subfield(self.field, 'api_key_env')}: the account at {self.base_url!r} has no credit: {cause}")
        if status == 400 and str(code).startswith("unsupported"):
            remedy = "leave that field out or set another, such as {max_tokens: null, max_completion_tokens: 4096}"
            return InputError(
                f"{subfield(self.field, 'extra_body')}: {self.base_url!r} refuses how it is asked: {cause}; {remedy}"
            )
        if code == "model_not_found" or (status in (400, 404) and says_no_such_model(why, self.model)):
            return InputError(f"{subfield(self.field, 'model')}: {self.base_url!r} does not serve {self.model!r}: {cause}")
        if 300 <= status < 400 and not self._agreed:
            remedy = "which is not followed; give the address that answers itself"
            return InputError(f"{subfield(self.field, 'base_url')}: {self.base_url!r} sends elsewhere ({cause}), {remedy}")
        if (status in (404, 405) or status < 200) and not self._agreed:
            return InputError(
                f"{subfield(self.field, 'base_url')}: {self.base_url!r} has no chat endpoint: {cause}; it mostly ends in /v1"
            )
        wait = error.response.headers.get("retry-after")
        return NoReplyError(f"{cause} (Retry-After: {self._shown(wait, 40)})" if wait else cause)

    def _reason(self, error: "openai.APIStatusError") -> str:
        """In the server's own words, why there is no reply."""
        why = error.body
        if isinstance(why, dict):
            why = why.get("message") or why.get("detail") or (why and error.response.text)
        return self._shown(why if isinstance(why, str) else error.response.text if why else "")

    def _cause(self, error: "openai.APIConnectionError") -> str:
        return self._shown(str(error.__cause__)) or type(error.__cause__).__name__

    def _shown(self, text: str, length: int = 200) -> str:
        """The beginning of something that a server said, on one line."""
        return " ".join(self._without_key(text).split())[:length]

    def _without_key(self, text: str) -> str:
        """All that comes from a server goes through here."""
        return text if self._key is None else self._key.sub("***", text)

    def _received(self, response: httpx2.Response) -> None:
        """The client tries again where a connection breaks, but not where what came is no reply: so that breaks it here."""
        if response.is_success and response.request.method == "POST":
            self._text(response)

    def _text(self, response: httpx2.Response) -> str:
        """The reply's text; "" where the model said nothing, as when it thought to the limit."""
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            content = response
        if content is not None and not isinstance(content, str):
            raise httpx2.DecodingError(f"a reply that is no chat completion: {self._shown(response.text, 100)!r}")
        return self._without_key(content or "")
