"""`bind` and `run`: a server on a port, from its first connection to its clean end."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import resource
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from proactor.engine import ProactorError
from proactor.server.connection import patient_protocol
from proactor.server.limits import Limits
from proactor.server.serving import Serving

LARGEST_HEAD = 64 * 1024
"""Bytes of a request's head."""
BACKSTOP = 5.0
"""Seconds after `Limits.drain` in which what was cut short may end by itself."""

OWN_FILES = 256
"""Files that a server opens beside its connections, at the most: the model's, libraries, logs."""


class ServeError(ProactorError):
    """A server that cannot begin. One line that says what to do."""


def make_room(limits: Limits) -> None:
    """Let this process open a file for each connection. Raises ServeError where the system does not."""
    needed = limits.max_connections + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ServeError(
            f"--max-concurrent {limits.max_concurrent}: takes up to {limits.max_connections} connections, "
            f"and this process may open {hard} files; give a smaller one, or run `ulimit -Hn {needed}` before"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def bind(host: str, port: int, keys: bool) -> socket.socket:
    """A socket at an address, not listening yet: what was sent there is refused until `run`.

    Raises ServeError for an address that is taken or does not exist, and, without keys, for one that other
    machines reach.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ServeError(f"--host {host}: no such address ({error})") from None
    if not keys and not ipaddress.ip_address(address[0]).is_loopback:
        raise ServeError(
            f"--host {host}: other machines reach it, so keys are needed: --key-file FILE (one a line)"
        )
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _not_ours(f"{host}:{port}", error) from None
    return bound


def _not_ours(address: str, error: OSError) -> ServeError:
    hint = "; stop what listens there, or give another --port" if error.errno == errno.EADDRINUSE else ""
    return ServeError(f"{address}: {os.strerror(error.errno or 0)}{hint}")


def run(
    app: ASGIApp, serving: Serving, bound: socket.socket, ready: Callable[[], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT: then nothing new is taken, what runs may end within `Limits.drain`, and
    this returns. A second signal ends at once. ``ready`` is called once connections are taken.

    Raises ServeError where another process has begun to listen at the address since `bind`.
    """
    host, port = bound.getsockname()[:2]
    try:
        bound.listen()
    except OSError as error:
        bound.close()
        raise _not_ours(f"{host}:{port}", error) from None
    asyncio.run(server_of(app, serving, ready).serve([bound]))


def server_of(app: ASGIApp, serving: Serving, ready: Callable[[], None] | None = None) -> Server:
    """The server of an app."""
    limits = serving.limits
    config = uvicorn.Config(
        app,
        http=patient_protocol(limits, serving.metrics),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=round(limits.idle_timeout) or 1,
        timeout_graceful_shutdown=round(limits.drain + BACKSTOP),
        h11_max_incomplete_event_size=LARGEST_HEAD,
    )
    return Server(config, serving, ready)


class Server(uvicorn.Server):
    """uvicorn's, which drains the engine and then returns, where uvicorn would end by the signal."""

    def __init__(
        self, config: uvicorn.Config, serving: Serving, ready: Callable[[], None] | None = None
    ) -> None:
        super().__init__(config)
        self._serving, self._ready = serving, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        if self._ready is not None:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, and wait for what runs."""
        self._serving.ending = True
        cut = asyncio.get_running_loop().call_later(self._serving.limits.drain, self._serving.end_visits)
        await super().shutdown(sockets)
        cut.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On a signal: begin to end; on the second one, end."""
        self.force_exit = self.should_exit
        self.should_exit = True
