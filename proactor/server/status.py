"""``/v1/models``, the adapters behind them, ``/health`` and ``/metrics``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from proactor.server.refusals import Refused, as_json
from proactor.server.serving import Serving

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Response:
    """Whether requests are taken."""
    ending = Serving.of(request).ending
    return as_json({"status": "ending" if ending else "ok"}, 503 if ending else 200)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Everything that is counted, in Prometheus' text format."""
    return Response(Serving.of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The names that a request may give."""
    return as_json({"object": "list", "data": Serving.of(request).models.cards()})


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    """One of them."""
    for card in Serving.of(request).models.cards():
        if card["id"] == name:
            return as_json(card)
    raise Refused(404, f"no model {name!r}", "model_not_found")


@router.post("/v1/load_lora_adapter")
async def load_lora_adapter(request: Request) -> Response:
    """Load the adapter ``lora_path`` as ``lora_name``, in place of the present one."""
    serving = Serving.of(request)
    fields = await serving.fields(request)
    name = fields.get("lora_name")
    before = await serving.models.load(name, fields.get("lora_path"))
    replaced = (
        f"; it replaced '{before}', as one adapter is loaded at a time" if before not in ("", name) else ""
    )
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully{replaced}.")


@router.post("/v1/unload_lora_adapter")
async def unload_lora_adapter(request: Request) -> Response:
    """Forget the adapter ``lora_name``."""
    serving = Serving.of(request)
    name = (await serving.fields(request)).get("lora_name")
    await serving.models.unload(name)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")
