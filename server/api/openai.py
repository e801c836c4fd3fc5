"""`POST /v1/chat/completions`, for OpenAI clients."""

# Annotations are not postponed here: FastAPI reads them at run time.
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from rediff_model.sampling.outputs import StepEvent
from server.api.body import read_json
from server.api.errors import error_body
from server.api.openai_body import ChatBody, chunk, cut_at_stop
from server.api.request_builder import Orders
from server.api.schemas import ErrorAnswer, from_url
from server.api.sse import KEEP_ALIVE, EventStream, events_of, sse, unless_left
from server.errors import BadBody, ServeError
from server.logs import RequestRecord
from server.request_handle import Caption, Ticket
from server.service import Service


def openai_routes(service: Service, orders: Orders) -> APIRouter:
    """The chat route; `/v1/models` is with the other descriptions of the server."""
    router = APIRouter(tags=["openai"])

    @router.post(
        "/v1/chat/completions",
        responses={status: {"model": ErrorAnswer} for status in (400, 404, 413, 415, 429, 503)},
    )
    async def chat(request: Request) -> Response:
        """Caption the picture of a user message, given as a data URL."""
        body = await read_json(request, ChatBody)
        if body.model not in (None, service.model_name):
            raise BadBody(404, "model_not_found", "there is no such model here", "model")
        if body.n not in (None, 1):
            raise BadBody(400, "invalid_value", "n must be 1", "n")
        if body.stream_options is not None and not body.stream:
            message = "stream_options is for streams: set stream"
            raise BadBody(400, "invalid_value", message, "stream_options")
        question, stops = body.question(), body.stops()
        longest = service.model.canvas_length if body.canvas_length is None else body.canvas_length
        asked = body.max_completion_tokens or body.max_tokens or longest
        order = orders.make(
            lambda fetch: from_url(question.image_url, "messages", fetch),
            body.model_copy(update={"canvas_length": min(asked, longest)}),
            prompt=question.text,
            wants_steps=bool(body.stream) and body.block_length is not None,
            timeout=body.timeout_seconds,
            priority=body.priority,
        )
        ticket = await unless_left(request, service.submit(order))
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.model_name,
        }
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            block = order.settings.block
            record = request.state.record
            return EventStream(lines(ticket, record, head, stops, block, with_usage), ticket)
        caption = await unless_left(request, ticket.caption())
        request.state.record.add(caption)
        text, finish = finished(caption, stops)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": finish,
        }
        answer = {"object": "chat.completion", "choices": [choice], "usage": usage(caption)}
        return JSONResponse(head | answer)

    def finished(caption: Caption, stops: tuple[str, ...]) -> tuple[str, str]:
        text, cut = cut_at_stop(service.decode(caption.generation.ids), stops)
        return text.strip(), "stop" if cut else caption.generation.finish_reason

    def usage(caption: Caption) -> dict[str, int]:
        prompt, completion = caption.prompt.prompt_tokens, len(caption.generation.ids)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    async def lines(
        ticket: Ticket,
        record: RequestRecord,
        head: dict[str, Any],
        stops: tuple[str, ...],
        block: int,
        with_usage: bool,
    ) -> AsyncIterator[str]:
        """Only text that will not change is sent: that of blocks which are behind the sampler."""
        yield sse(chunk(head, {"role": "assistant", "content": ""}))
        sent = ""
        try:
            async for event in events_of(ticket):
                if event is None:
                    yield KEEP_ALIVE
                elif isinstance(event, StepEvent):
                    final = service.decode(final_ids(event, block))
                    # The end may yet become part of a stop text, or of a character.
                    held = max((len(stop) - 1 for stop in stops), default=0)
                    final, _ = cut_at_stop(final, stops)
                    final = final[: len(final) - held].rstrip("\ufffd").strip()
                    if final.startswith(sent) and len(final) > len(sent):
                        yield sse(chunk(head, {"content": final[len(sent) :]}))
                        sent = final
                else:
                    record.add(event)
                    text, finish = finished(event, stops)
                    if text[len(sent) :]:
                        yield sse(chunk(head, {"content": text[len(sent) :]}))
                    yield sse(chunk(head, {}, finish))
                    if with_usage:
                        last = {"object": "chat.completion.chunk", "choices": []}
                        yield sse(head | last | {"usage": usage(event)})
            yield "data: [DONE]\n\n"
        except ServeError as error:
            record.error = error.code
            yield sse(error_body(error.status, error.code, error.message, error.param))

    def final_ids(event: StepEvent, block: int) -> tuple[int, ...]:
        """The ids of all blocks but the last one that the sampler has written to, up to a stop."""
        model = service.model
        written = [i for i, token in enumerate(event.canvas) if token != model.mask_token_id]
        end = max(written, default=0) // block * block
        ids = event.canvas[:end]
        return ids[: ids.index(model.stop_token_id)] if model.stop_token_id in ids else ids

    return router
