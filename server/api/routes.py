"""The project's own routes: captions, health, version, metrics."""

# Annotations are not postponed here: FastAPI reads them at run time.
import platform
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from rediff_model.files.image_formats.names import FORMATS
from server import __version__
from server.api.body import read_body
from server.api.errors import error_body
from server.api.request_builder import Orders
from server.api.responses import canvas_answer, caption_answer, step_answer
from server.api.schemas import CaptionAnswer, CaptionBody, ErrorAnswer, RefineBody
from server.api.sse import KEEP_ALIVE, EventStream, events_of, sse, unless_left
from server.errors import BadBody, ServeError
from server.logs import RequestRecord
from server.request_handle import Caption, Ticket
from server.service import CaptionRequest, Service


def caption_routes(service: Service, orders: Orders) -> APIRouter:
    """`POST /caption` and `POST /refine`."""
    router = APIRouter(
        tags=["captions"],
        responses={
            status: {"model": ErrorAnswer} for status in (400, 413, 415, 422, 429, 503, 504)
        },
    )

    @router.post("/caption", response_model=CaptionAnswer)
    async def caption(request: Request) -> Response:
        """Caption a picture: JSON with base64, or a form with the file part `image`."""
        return await answer(request, await read_body(request, CaptionBody))

    @router.post("/refine", response_model=CaptionAnswer)
    async def refine(request: Request) -> Response:
        """Revise the caption `draft` against a picture."""
        return await answer(request, await read_body(request, RefineBody))

    async def answer(request: Request, body: CaptionBody) -> Response:
        stream = body.stream or "text/event-stream" in request.headers.get("accept", "")
        order = orders.make(
            body.image.data,
            body.sampling,
            prefix="sampling.",
            prompt=body.prompt,
            draft=body.draft if isinstance(body, RefineBody) else None,
            template=body.template,
            alternatives=body.alternatives,
            wants_steps=stream,
            timeout=body.timeout_seconds,
            priority=body.priority,
        )
        ticket = await unless_left(request, service.submit(order))
        record = request.state.record
        if stream:
            return EventStream(lines(ticket, record, body, order), ticket)
        done = await unless_left(request, ticket.caption())
        record.add(done)
        return JSONResponse(finished(done, body, order))

    def finished(caption: Caption, body: CaptionBody, order: CaptionRequest) -> dict[str, Any]:
        identity = f"cap-{uuid.uuid4().hex}"
        answer = caption_answer(
            caption,
            identity,
            service.model_name,
            service.decode,
            with_tokens=body.return_tokens or body.alternatives > 0,
            with_steps=body.return_steps,
            template=order.template,
            draft=order.draft if isinstance(body, RefineBody) and body.return_diff else None,
            warnings=order.warnings,
        )
        return answer.model_dump(exclude_none=True)

    async def lines(
        ticket: Ticket, record: RequestRecord, body: CaptionBody, order: CaptionRequest
    ) -> AsyncIterator[str]:
        given = order.draft is not None or order.template is not None
        try:
            model = service.model
            async for event in events_of(ticket):
                if event is None:
                    yield KEEP_ALIVE
                elif isinstance(event, Caption):
                    record.add(event)
                    yield sse(finished(event, body, order), "done")
                else:
                    special = (service.decode, model.mask_token_id, model.stop_token_id)
                    if given and not event.choosing:
                        given = False
                        yield sse(canvas_answer(event, *special), "canvas")
                    yield sse(step_answer(event, *special), "step")
        except ServeError as error:
            record.error = error.code
            yield sse(error_body(error.status, error.code, error.message, error.param), "error")

    return router


def operation_routes(service: Service, limits: Mapping[str, int]) -> APIRouter:
    """Health, version, models and metrics; `limits` are those of a request, for `/version`."""
    router = APIRouter(tags=["operation"])
    started = int(time.time())

    def described() -> dict[str, Any]:
        return {
            "id": service.model_name,
            "object": "model",
            "created": started,
            "owned_by": "rediff-serve",
            # vLLM's client takes the first model's `root` for its name.
            "root": service.model_name,
        }

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """200 while the process answers; 503 once the engine has failed after it was ready, which
        only a new process mends."""
        if service.status == "failed" and service.load_error is None:
            service.check_ready()
        return {"status": "live"}

    @router.head("/health", include_in_schema=False)
    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health")
    @router.get("/health/ready")
    async def ready() -> dict[str, str]:
        """200 when captions can be had; 503 while loading, draining, or after a failure."""
        service.check_ready()
        return {"status": "ready"}

    @router.get("/version")
    async def versions() -> dict[str, Any]:
        """What runs here."""
        answer: dict[str, Any] = {
            "version": __version__,
            "model": service.model_name,
            "python": platform.python_version(),
            "torch": version("torch"),
            "status": service.status,
            "limits": dict(limits),
            "image_formats": list(FORMATS),
        }
        if service.status == "ready":
            model = service.model
            answer |= {
                "device": model.device,
                "dtype": model.dtype,
                "parameters": model.parameters,
                "canvas_length": model.canvas_length,
                "preset": model.preferences.preset,
                "block_lengths": list(model.preferences.block_lengths),
                "extra_refine_steps": model.preferences.extra_refine_steps,
                "taught_prompts": list(model.taught_prompts),
                "single_question": model.single_question,
                "domain": model.domain,
                "kernels": model.kernels,
                "attention": model.attention,
                "compiled": model.compiled,
                "cuda_graphs": model.cuda_graphs,
            }
        return answer

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The served model, as OpenAI lists it."""
        return {"object": "list", "data": [described()]}

    @router.get("/v1/models/{name:path}", responses={404: {"model": ErrorAnswer}})
    async def model(name: str) -> dict[str, Any]:
        """The served model, if that is its name."""
        if name != service.model_name:
            raise BadBody(404, "model_not_found", "there is no such model here", "model")
        return described()

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
