"""The page's server: the page, the list, one dialogue, and its changes. Refusals are one line of JSON."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.types import ASGIApp

from proactor.engine import ProactorError
from proactor.review.desk import Desk
from proactor.review.edit import Edit
from proactor.review.guard import Guard
from proactor.review.page import build_page
from proactor.review.windows_file import Conflict


class AsciiJSON(JSONResponse):
    """JSON in ASCII: whatever a text holds, half of an emoji too, it can be sent."""

    def render(self, content: Any) -> bytes:
        """The bytes of a body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Undo(BaseModel):
    """Bring a dialogue that has ``version`` back to the version ``to``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    version: str
    to: str


def build_app(desk: Desk, token: str, port: int) -> ASGIApp:
    """The ASGI app over ``desk``, for requests to ``port`` of this machine that carry ``token``."""
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=AsciiJSON,
    )
    page = build_page()

    @app.get("/", response_class=HTMLResponse)
    def show() -> str:
        return page.html

    @app.get("/api/overview")
    def overview() -> dict[str, Any]:
        return desk.overview()

    @app.get("/api/search")
    def search(words: str) -> list[str]:
        return desk.search(words)

    @app.get("/api/dialogue")
    def view(id: str) -> dict[str, Any]:
        return desk.view(id)

    @app.post("/api/dialogue")
    def save(edit: Edit) -> dict[str, Any]:
        return desk.save(edit)

    @app.post("/api/undo")
    def undo(wanted: Undo) -> dict[str, Any]:
        return desk.undo(wanted.id, wanted.version, wanted.to)

    _tell_refusals(app)
    return Guard(app, token, port, page.policy)


def _tell_refusals(app: FastAPI) -> None:
    @app.exception_handler(ProactorError)
    def refused(request: Request, error: ProactorError) -> AsciiJSON:
        status = HTTPStatus.CONFLICT if isinstance(error, Conflict) else HTTPStatus.BAD_REQUEST
        return AsciiJSON({"error": str(error)}, status)

    @app.exception_handler(OSError)
    def failed(request: Request, error: OSError) -> AsciiJSON:
        return AsciiJSON({"error": f"{error.filename}: {error.strerror}"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    @app.exception_handler(RequestValidationError)
    def wrong(request: Request, error: RequestValidationError) -> AsciiJSON:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"][1:]))
        return AsciiJSON({"error": f"{key}: {first['msg']}"}, HTTPStatus.UNPROCESSABLE_ENTITY)
