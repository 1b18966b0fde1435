"""``proactor serve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proactor.commands.common import UsageError, console, terminal

if TYPE_CHECKING:
    from fastapi import APIRouter

    from proactor.engine import Engine
    from proactor.event_loop import BackgroundLoop
    from proactor.server.limits import Limits
    from proactor.server.opening import Opening

EXTRA = ("fastapi", "starlette", "uvicorn", "prometheus_client")
"""What the extra ``serve`` brings."""


def serve(
    target: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="a model's folder or hub id, or a run's folder")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[engine.KEY=VALUE]...", help="engine.kv_tokens=65536", show_default=False),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="an adapter beside the model; of a run also best, …"),
    ] = None,
    host: Annotated[str, typer.Option(help="address; beyond loopback with keys alone")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="keys, one a line; without any, everybody may ask")
    ] = None,
    key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="an environment variable that holds a key")
    ] = None,
    name: Annotated[str | None, typer.Option(help="the model's name; default: its folder's")] = None,
    adapters_from: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="let requests swap the adapter for one in this folder"),
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="bytes of a request's body")] = 8 << 20,
    max_concurrent: Annotated[int, typer.Option(min=1, help="requests that are answered at once")] = 256,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="new tokens of a sample")] = None,
    max_samples: Annotated[int, typer.Option(min=1, help="samples of a request")] = 64,
    timeout: Annotated[float, typer.Option(help="seconds for a request")] = 600.0,
    max_conversations: Annotated[int, typer.Option(min=1, help="an agent's conversations at once")] = 10000,
    conversation_idle: Annotated[
        float, typer.Option(help="seconds until a conversation without a turn is closed")
    ] = 21600.0,
    drain: Annotated[float, typer.Option(help="seconds for what runs, once SIGTERM comes")] = 30.0,
) -> None:
    """Serve a model or a trained run over HTTP, as OpenAI's and vLLM's clients ask for it.

    Of a run on dialogues the agent is served too (/v1/agent/observe), unless its adapter may be swapped.
    """
    _find_extra()
    from proactor.event_loop import BackgroundLoop
    from proactor.server.app import create_app
    from proactor.server.keys import Keys
    from proactor.server.limits import Limits
    from proactor.server.models import Models
    from proactor.server.opening import Opening
    from proactor.server.run import bind, make_room, run
    from proactor.server.serving import Serving

    limits = Limits(
        max_body=max_body,
        max_concurrent=max_concurrent,
        max_tokens=max_tokens,
        max_samples=max_samples,
        timeout=timeout,
        max_conversations=max_conversations,
        conversation_idle=conversation_idle,
        drain=drain,
    )
    keys = Keys.read(key_file, key_env)
    opening = Opening.of(target, adapter or [], overrides or [])
    _check_adapters(opening, name or opening.base, adapters_from)
    make_room(limits)
    bound = bind(host, port, bool(keys))  # before the model is loaded: a port that is taken is known at once
    with terminal() as ui:
        engine = opening.load(lambda done, total: ui.substep("loading the model", done, total))
    models = Models(engine, name or opening.base, opening.adapter, adapters_from)
    serving = Serving(engine, models, limits, keys, host)
    home = BackgroundLoop("agent")
    routers = [] if adapters_from is not None else _agent_routers(opening, engine, home, limits)
    place = "[{}]:{}" if ":" in host else "{}:{}"

    def ready() -> None:
        names = ", ".join(card["id"] for card in models.cards())
        address = place.format(host, bound.getsockname()[1])
        console.print(f"serving {names} at http://{address}/v1", markup=False, soft_wrap=True)

    run(create_app(serving, routers), serving, bound, ready)
    home.close()
    console.print("served; all requests have ended", markup=False)
    engine.release()


def _find_extra() -> None:
    """Raise UsageError where a package of the extra ``serve`` is missing."""
    try:
        from proactor.server import app, run  # noqa: F401
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise UsageError(f"serve: {error.name} is missing: pip install 'proactor[serve]'") from None


def _check_adapters(opening: Opening, model: str, adapters_from: Path | None) -> None:
    """Raise UsageError for a folder of adapters without use, or one name for model and adapter."""
    if adapters_from is not None and (opening.folder is None or not adapters_from.is_dir()):
        what = "no adapter to swap: give --adapter" if opening.folder is None else "no such folder"
        raise UsageError(f"--adapters-from {adapters_from}: {what}")
    if opening.adapter == model:
        raise UsageError(
            f"the model and its adapter are both named {opening.adapter!r}: --name gives another"
        )


def _agent_routers(opening: Opening, engine: Engine, home: BackgroundLoop, limits: Limits) -> list[APIRouter]:
    """The routes of the run's agent; none for what has none, which is said."""
    from proactor.engine import ProactorError
    from proactor.server.agent_routes import agent_router

    try:
        agent = opening.agent(engine)
    except ProactorError as error:
        console.print(f"without /v1/agent: {error}", markup=False, soft_wrap=True)
        return []
    return [] if agent is None else [agent_router(agent, home, limits)]
