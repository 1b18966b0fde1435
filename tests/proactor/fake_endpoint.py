"""A real HTTP server on localhost that speaks /v1/chat/completions and misbehaves to order.

    with FakeEndpoint([rate_limit(), ok("[]")]) as fake:
        endpoint = Endpoint("fake", fake.url, timeout=0.5, sleep=no_sleep)

Behaviours are taken in order, one per request; after the last, ``otherwise`` answers (default: ``ok("[]")``).
``fake.requests`` has the decoded bodies, in order of arrival.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from proactor.endpoint import Endpoint
from proactor.endpoint_errors import EndpointError

Body = dict[str, Any]
Response = tuple[int, dict[str, str], str | Iterator[bytes]]
Behaviour = Callable[["FakeEndpoint", Body], Response | None]
"""(server, request) -> status, headers and text (or its pieces); None drops the connection."""

JSON = {"content-type": "application/json"}


def completion(
    text: str | None, finish_reason: str = "stop", tokens_in: int = 11, tokens_out: int = 7
) -> str:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    usage = {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
    }
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "fake",
            "choices": [choice],
            "usage": usage,
        }
    )


def ok(text: str | None) -> Behaviour:
    """An answer."""
    return lambda server, body: (200, JSON, completion(text))


def computed(answer: Callable[[Body], str]) -> Behaviour:
    """An answer made from the request."""
    return lambda server, body: (200, JSON, completion(answer(body)))


def half_json(text: str = '{"scores":[{"id":"A","sco') -> Behaviour:
    """An answer whose text was cut off."""
    return lambda server, body: (200, JSON, completion(text, finish_reason="length"))


def timeout() -> Behaviour:
    """No answer until the server closes."""

    def wait(server: FakeEndpoint, body: Body) -> Response | None:
        server.closing.wait(30)
        return None

    return wait


def trickle() -> Behaviour:
    """A byte now and then, and never an end."""

    def drops(server: FakeEndpoint) -> Iterator[bytes]:
        while not server.closing.wait(0.05):
            yield b" "

    return lambda server, body: (200, JSON | {"content-length": "10000"}, drops(server))


def rate_limit(retry_after: str = "0") -> Behaviour:
    """429, as OpenAI words it."""
    headers = JSON | {"retry-after": retry_after}
    return lambda server, body: (
        429,
        headers,
        json.dumps({"error": {"message": "slow down", "code": "rate_limit"}}),
    )


def http_error(status: int = 500, message: str = "broken") -> Behaviour:
    """An error status."""
    return lambda server, body: (status, JSON, json.dumps({"error": {"message": message}}))


def http_500() -> Behaviour:
    """A server that fell over."""
    return http_error(500)


def malformed(text: str = '{"choices": "none"', status: int = 200) -> Behaviour:
    """A body that is no chat completion, or with an error status not worded as OpenAI does."""
    return lambda server, body: (status, JSON, text)


def redirect(place: str, status: int = 307) -> Behaviour:
    """An answer that another address is to be asked."""
    return lambda server, body: (status, {"location": place, "content-length": "0"}, "")


def packed(text: bytes, coding: str = "gzip", status: int = 200) -> Behaviour:
    """A body that was packed unasked."""
    data = gzip.compress(text)
    headers = JSON | {"content-encoding": coding, "content-length": str(len(data))}
    return lambda server, body: (status, headers, iter([data]))


def dropped() -> Behaviour:
    """The connection closes without an answer."""
    return lambda server, body: None


def refusing(field: str, then: Behaviour, when: Callable[[Any], bool] = lambda value: True) -> Behaviour:
    """400 while the request holds ``field`` (with a value that ``when`` dislikes), else ``then``."""

    def answer(server: FakeEndpoint, body: Body) -> Response | None:
        if field in body and when(body[field]):
            return http_error(400, f"Unsupported parameter: '{field}'")(server, body)
        return then(server, body)

    return answer


class FakeEndpoint:
    """The server; a context manager. ``url`` is the base_url of a client."""

    def __init__(self, script: Iterable[Behaviour] = (), otherwise: Behaviour | None = None) -> None:
        self.script = list(script)
        self.otherwise = otherwise or ok("[]")
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake.headers.append({name.lower(): value for name, value in self.headers.items()})
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                answer = fake.answer(self.path, body)
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, text = answer
                chunks = [text.encode()] if isinstance(text, str) else text
                if isinstance(text, str):
                    headers = headers | {"content-length": str(len(text.encode()))}
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for chunk in chunks:
                        self.wfile.write(chunk)
                except (BrokenPipeError, ConnectionResetError):  # the client gave up
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def answer(self, path: str, body: Body) -> Response | None:
        if path != "/v1/chat/completions":
            return 404, JSON, json.dumps({"error": {"message": f"no {path}"}})
        with self._lock:
            self.requests.append(body)
            behaviour = self.script.pop(0) if self.script else self.otherwise
        return behaviour(self, body)

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> FakeEndpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


async def no_sleep(seconds: float) -> None:
    """For `Endpoint(sleep=...)`: tests do not wait."""


ASK = [{"role": "user", "content": "q"}]
SCHEMA = {"type": "object"}


class Waits(list[float]):
    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def ask(fake: FakeEndpoint, **settings: Any) -> tuple[str | EndpointError, Endpoint, Waits]:
    """One request to the server: (reply or error, the endpoint, the seconds that it waited)."""
    waits = Waits()
    endpoint = Endpoint("fake", fake.url, **{"timeout": 5.0, "sleep": waits, **settings})

    async def go() -> str | EndpointError:
        try:
            return await endpoint.reply(ASK, schema=SCHEMA, seed=3, max_tokens=9)
        except EndpointError as error:
            return error
        finally:
            await endpoint.aclose()

    return asyncio.run(go()), endpoint, waits
