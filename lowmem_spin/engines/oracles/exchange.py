"""Requests to a server that may do anything: each ends in a whole answer or an error, of bounded time and size."""

import asyncio
import threading
import weakref
from concurrent.futures import CancelledError
from typing import Any

import httpx2
import openai

LARGEST = 2**23  # bytes of an answer, unpacked: a thousand times what a judge says
KEPT = ("retry-after", "retry-after-ms", "x-should-retry")


class Client(openai.OpenAI):
    """OpenAI's client, but `stop` ends its waits between tries, which in a thread an interrupt would not. And what OPENAI_
    variables of the environment say, such as an organization, is meant for OpenAI: here it would go to any host."""

    stop: threading.Event

    @property
    def default_headers(self) -> dict[str, str | openai.Omit]:
        return {"Accept": "application/json", "Content-Type": "application/json", "User-Agent": "lowmem-spin"}

    def _sleep_for_retry(self, *, retries_taken: int, max_retries: int, options: Any, response: httpx2.Response | None) -> None:
        headers = None if response is None else response.headers
        if self.stop.wait(self._calculate_retry_timeout(max_retries - retries_taken, options, headers)):
            raise CancelledError


class Exchange(httpx2.BaseTransport):
    """A transport for httpx2's client that reads answers to their end.

    httpx2 limits each read by itself, so that a server which sends a byte a second, or one interim answer after another,
    would keep it for ever. Here an exchange happens in an event loop, which can end it as a whole. Of an answer's headers
    only those that say when to try again are passed on: no cookie, and no character set, for JSON is in Unicode. Each exchange
    has its own connection: on one that is used again, a server that answers twice would have answered the next request, too.

    Args:
        seconds: for all of an exchange, from connecting to the last byte.
        connections: at most, at the same time.
        proxies: whether those that the environment names are used.

    Any thread may use it.
    """

    def __init__(self, seconds: float, connections: int, proxies: bool) -> None:
        self._seconds = seconds
        self._client = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=connections),
            timeout=httpx2.Timeout(seconds, connect=min(seconds, 5.0)),
            trust_env=proxies,
        )
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(self._loop,), name="exchange", daemon=True).start()
        self._end = weakref.finalize(self, _end, self._client, self._loop)  # also where nobody closes it

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """The whole answer.

        Raises:
            httpx2.RequestError: there is none.
        """
        answer = asyncio.run_coroutine_threadsafe(self._in_time(request), self._loop)
        try:
            return answer.result()
        except BaseException:  # an interrupt: nobody waits for it any more
            answer.cancel()
            raise

    def close(self) -> None:
        """Let go of the connections."""
        self._end()

    async def _in_time(self, request: httpx2.Request) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._seconds):
                return await self._answer(request)
        except TimeoutError:
            raise httpx2.ReadTimeout(f"no whole answer within {self._seconds:g} seconds", request=request) from None

    async def _answer(self, request: httpx2.Request) -> httpx2.Response:
        headers = {**request.headers, "connection": "close"}
        mine = self._client.build_request(request.method, request.url, headers=headers, content=request.read())
        answer = await self._client.send(mine, stream=True)
        try:
            content = bytearray()
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > LARGEST:
                    raise httpx2.DecodingError(f"an answer of more than {LARGEST >> 20} MiB", request=request)
        finally:
            await answer.aclose()
        kept = {name: answer.headers[name] for name in KEPT if name in answer.headers}
        return httpx2.Response(answer.status_code, headers=kept, content=bytes(content))


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _end(client: httpx2.AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
    async def leave() -> None:
        await client.aclose()
        loop.stop()

    asyncio.run_coroutine_threadsafe(leave(), loop)
