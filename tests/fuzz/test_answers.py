"""What models and servers answer, with something wrong in it: every reader gives a value, whatever comes."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from types import SimpleNamespace

from proactor.annotation import MarkReader
from proactor.dialogue import parse, state_graph
from proactor.dialogue.json_values import find_values
from proactor.endpoint import Endpoint
from proactor.endpoint_errors import EndpointError, Retryable
from proactor.ruler.verdict import read_verdict
from proactor.transport import _bounded, guard
from tests.fuzz.harness import fuzz
from tests.fuzz.mutations import dump, spoil_json, spoil_text
from tests.proactor.annotation.scripted import BOOKING, TOOLS

ANSWERS = (
    '<think>book lacks time.</think><graph>[{"PENDING":"book","day":"Monday","time":null}]</graph>[]',
    '[{"READY":"book","day":"monday","time":"7 pm"},{"PENDING":"cancel"}]',
    '{"actions": [{"name": "book", "status": "READY", "params": {"day": "monday"}, "evidence": [1, 3]}]}',
    "Sure:\n```json\n[{'name': 'book', 'params': {'day': None, 'n': 5,},},]\n```\n",
    '{"scores": [{"id": "1", "explanation": "late", "score": 0.5}, {"id": "2", "score": 1e400}]}',
    '{"id": 1, "score": 0.25}\n{"id": 2, "score": NaN}\n',
)


def test_model_output() -> None:
    reader = MarkReader(BOOKING, TOOLS)

    def case(draw: Random, folder: Path) -> object:
        text = spoil_text(draw, draw.choice(ANSWERS) * draw.choice((1, 1, 1, 2, 200)))
        graph, _ = state_graph.read(text)
        return (
            parse.parse(text),
            graph.render(),
            state_graph.NO_GRAPH.after(text),
            find_values(text),
            read_verdict(text, ["1", "2"], ("tone",)),
            reader.read(draw.choice(BOOKING.decision_turns), text),
        )

    fuzz("model output", case, 250)


def test_endpoint_bodies() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    message = {"role": "assistant", "content": "[]"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    body = {"id": "x", "object": "chat.completion", "choices": choices, "usage": usage}
    endpoint = Endpoint("m", base_url="http://127.0.0.1:1/v1")

    def case(draw: Random, folder: Path) -> object:
        return endpoint._read(spoil_json(draw, dump(draw, body)).decode("utf-8", "replace"))

    fuzz("endpoint bodies", case, 500, EndpointError, Retryable)


class _Pieces:
    """A response's body as it comes from the wire."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


def test_packed_bodies() -> None:
    async def read(stream: _Pieces, most: int) -> int:
        return sum([len(piece) async for piece in _bounded(stream, most, packed=True)])

    def case(draw: Random, folder: Path) -> object:
        data = bytearray(gzip.compress(b"\0" * draw.choice((10, 10**4, 10**7)), compresslevel=9))
        for _ in range(draw.randrange(3)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        cut = draw.randrange(len(data) + 1)
        size = asyncio.run(read(_Pieces([bytes(data[:cut]), bytes(data[cut:])]), 2**20))
        assert size <= 2**20
        return size

    fuzz("packed bodies", case, 100)


def test_headers() -> None:
    places = ("http://user:key@host:80/v1?token=x#y", "//[::1]/v1", "/v1", "https://host")

    def case(draw: Random, folder: Path) -> object:
        headers = {"location": spoil_text(draw, draw.choice(places))}
        if draw.random() < 0.5:
            headers["content-encoding"] = spoil_text(draw, draw.choice(("gzip", "identity")))
        redirects, stream = draw.random() < 0.5, _Pieces([])
        response = SimpleNamespace(is_redirect=redirects, headers=headers, stream=stream)
        return asyncio.run(guard(100)(response))

    fuzz("headers", case, 100)
