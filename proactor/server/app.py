"""`create_app`: the routers of a server, behind one door."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI

from proactor.server import chat, completions, generate, status
from proactor.server.door import Door
from proactor.server.refusals import answer_errors
from proactor.server.serving import Serving

ROUTERS = (status.router, chat.router, completions.router, generate.router)


def create_app(serving: Serving, more: Sequence[APIRouter] = ()) -> FastAPI:
    """The app that serves an engine. ``more``: routers beside those of every server; their routes find the
    state with `Serving.of`.
    """
    app = FastAPI(title="proactor", openapi_url=None)  # no pages that tell about it
    app.state.serving = serving
    for router in (*ROUTERS, *more):
        app.include_router(router)
    answer_errors(app)
    app.add_middleware(Door, serving=serving)
    return app
