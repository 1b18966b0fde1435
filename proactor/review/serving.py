"""Serves the page on this machine until Ctrl-C."""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Callable

from proactor.review.desk import Desk
from proactor.review.windows_file import ReviewError

NO_SERVER = "the page needs fastapi and uvicorn: pip install 'proactor[serve]'"
LOOPBACK = "127.0.0.1"


def serve(desk: Desk, port: int, told: Callable[[str], None]) -> None:
    """Serve ``desk`` on ``port`` of the loopback interface (0: a free one) until a signal ends it.

    ``told`` gets the address once the port is open. Raises ReviewError for a port in use, or without the
    extra `serve`.
    """
    try:
        import uvicorn

        from proactor.review.app import build_app
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] == "proactor":
            raise
        raise ReviewError(NO_SERVER) from None
    listener = listen(port)
    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(24)
    config = uvicorn.Config(
        build_app(desk, token, port),
        log_level="error",
        access_log=False,  # paths hold the token
        server_header=False,
        limit_concurrency=64,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
    )
    told(f"http://{LOOPBACK}:{port}/{token}/")
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # uvicorn has ended in order, and raises it again
    finally:
        listener.close()


def listen(port: int) -> socket.socket:
    """A socket that listens on the loopback interface. Raises ReviewError for a port that cannot be had."""
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ReviewError(f"--port {port}: in use; another one, or 0 for any that is free") from None
        if error.errno == errno.EACCES:
            raise ReviewError(f"--port {port}: not allowed to this user; take one above 1023, or 0") from None
        raise
