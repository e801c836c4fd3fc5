"""`POST /v1/chat/completions`, for OpenAI clients."""

# Annotations are not postponed here: FastAPI reads them at run time.
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from rediff_model.sampling.outputs import StepEvent
from rediff_model.sampling.template_text import TemplateText
from rediff_model.words import token_texts
from server.api.body import read_json
from server.api.errors import error_body
from server.api.logprobs import logprobs_of
from server.api.openai_body import ChatBody, Form, chunk, cut_at_stop
from server.api.openai_messages import read_messages
from server.api.picture_source import from_url
from server.api.request_builder import Orders
from server.api.responses import candidates, holes
from server.api.schemas import ErrorAnswer
from server.api.sse import KEEP_ALIVE, EventStream, events_of, sse, unless_left
from server.errors import BadBody, ServeError
from server.logs import RequestRecord
from server.request_handle import Caption, Ticket
from server.service import Service

WARNING: Final = "x-rediff-warning"
"""Header that tells how the answer differs from what was asked."""


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
        idle, form, question = body.check(), body.form(), read_messages(body.messages)
        longest = service.model.canvas_length if body.canvas_length is None else body.canvas_length
        most = body.max_completion_tokens or body.max_tokens or longest
        order = orders.make(
            lambda fetch: from_url(question.image_url, "messages", fetch),
            body.model_copy(update={"canvas_length": min(most, longest)}),
            prompt=question.turns,
            template=body.template,
            alternatives=form.top_logprobs or 0,
            # A confidence may still change with a later step of its block.
            wants_steps=bool(body.stream and body.block_length and not body.logprobs),
            timeout=body.timeout_seconds,
            priority=body.priority,
        )
        ticket = await unless_left(request, service.submit(order))
        head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.model_name,
        }
        warnings = "; ".join(filter(None, (*question.warnings, *order.warnings, idle)))
        headers = {WARNING: warnings} if warnings else {}
        if body.stream:
            block = order.settings.block
            record = request.state.record
            answers = lines(ticket, record, head, form, block, order.template)
            return EventStream(answers, ticket, headers)
        caption = await unless_left(request, ticket.caption())
        request.state.record.add(caption)
        text, finish, logprobs = finished(caption, form)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": logprobs,
            "finish_reason": finish,
            **filled(caption, order.template),
        }
        answer = {"object": "chat.completion", "choices": [choice], "usage": usage(caption)}
        return JSONResponse(head | answer, headers=headers)

    def finished(caption: Caption, form: Form) -> tuple[str, str, dict[str, Any] | None]:
        """The content, the reason why it ends there, and its logprobs if they are asked for."""
        done = caption.generation
        text, cut = cut_at_stop(service.decode(done.ids), form.stops)
        finish = "stop" if cut else done.finish_reason
        # What a template fixes is kept.
        begin, end = (
            (0, len(text)) if done.holes else (len(text) - len(text.lstrip()), len(text.rstrip()))
        )
        if form.top_logprobs is None:
            return text[begin:end], finish, None
        texts = token_texts(done.ids, service.decode)
        tops = [candidates(found, service.decode) for found in done.alternatives]
        logprobs = logprobs_of(texts, done.confidences, tops or [[]] * len(texts), begin, end)
        return text[begin:end], finish, logprobs

    def filled(caption: Caption, template: TemplateText | None) -> dict[str, Any]:
        """The field `holes` of a choice, if there is a template."""
        if template is None:
            return {}
        found = holes(template, caption.generation, service.decode)
        return {"holes": [hole.model_dump(exclude_none=True) for hole in found]}

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
        form: Form,
        block: int,
        template: TemplateText | None,
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
                    held = max((len(stop) - 1 for stop in form.stops), default=0)
                    final, _ = cut_at_stop(final, form.stops)
                    final = final[: len(final) - held].rstrip("\ufffd").strip()
                    if final.startswith(sent) and len(final) > len(sent):
                        yield sse(chunk(head, {"content": final[len(sent) :]}))
                        sent = final
                else:
                    record.add(event)
                    text, finish, logprobs = finished(event, form)
                    if text[len(sent) :]:
                        content = {"content": text[len(sent) :]}
                        yield sse(chunk(head, content, logprobs=logprobs))
                    yield sse(chunk(head, {}, finish, **filled(event, template)))
                    if form.with_usage:
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
