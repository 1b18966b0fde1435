"""Connections that end when a client is too slow. uvicorn itself waits for a head, or a reader, forever."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from proactor.server.limits import Limits
from proactor.server.metrics import Metrics

FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
"""What a connection beyond the last one gets; it is then closed, so that idle ones use up no files."""


def patient_protocol(limits: Limits, metrics: Metrics) -> type[H11Protocol]:
    """uvicorn's protocol with `Limits.max_connections`, `Limits.head_timeout` and `Limits.write_timeout`."""

    class PatientProtocol(H11Protocol):
        """Drops a client that is one too many, does not finish a head, or does not read its answer."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._timers: dict[str, asyncio.TimerHandle] = {}

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                metrics.refused.inc()
                transport.write(FULL)
                transport.close()
            else:
                self._wait_for("head", limits.head_timeout)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
                self._wait_for("head", limits.head_timeout)
            else:
                self._got("head")

        def connection_lost(self, exc: Exception | None) -> None:
            for what in list(self._timers):
                self._got(what)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait_for("read", limits.write_timeout)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._got("read")

        def _wait_for(self, what: str, seconds: float) -> None:
            if what not in self._timers:
                self._timers[what] = self.loop.call_later(seconds, self._give_up, what)

        def _got(self, what: str) -> None:
            if (timer := self._timers.pop(what, None)) is not None:
                timer.cancel()

        def _give_up(self, what: str) -> None:
            del self._timers[what]
            metrics.stalled.labels(what).inc()
            self.transport.abort()

    return PatientProtocol
