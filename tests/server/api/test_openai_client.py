"""The `openai` package against our chat route, point by point, unmodified."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from server_fakes import DEFAULT_CAPTION, Running, png, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

IMAGE: Any = {
    "type": "image_url",
    "image_url": {
        "url": f"data:image/png;base64,{base64.b64encode(png()).decode()}",
        "detail": "high",
    },
}


TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
NAMED: Any = {"type": "function", "function": {"name": "f"}}


def user(*parts: Any) -> Any:
    return [{"role": "user", "content": list(parts)}]


def text(words: str) -> Any:
    return {"type": "text", "text": words}


@asynccontextmanager
async def talking(
    key: str = "a-key", **settings: Any
) -> AsyncIterator[tuple[openai.AsyncOpenAI, Running]]:
    async with running(**settings) as server:
        # Some versions of the client want httpx's successor by type; this one does as well.
        http: Any = httpx.AsyncClient(transport=httpx.ASGITransport(server.app))
        async with openai.AsyncOpenAI(
            base_url="http://test/v1", api_key=key, http_client=http, max_retries=0
        ) as client:
            yield client, server


async def ask(client: openai.AsyncOpenAI, messages: Any = None, **fields: Any) -> Any:
    return await client.chat.completions.create(
        model="fake", messages=messages or user(IMAGE), **fields
    )


async def test_a_picture_alone_or_with_a_text_in_either_order() -> None:
    async with talking() as (client, _):
        assert (await ask(client)).choices[0].message.content == DEFAULT_CAPTION
        for parts in ((IMAGE, text("a pear")), (text("a pear"), IMAGE)):
            answer = await ask(client, user(*parts))
            assert answer.choices[0].message.content == "a pear"
            assert answer.choices[0].finish_reason == "stop"
            assert answer.usage is not None
            assert answer.usage.total_tokens == 11


async def test_models_are_listed() -> None:
    async with talking() as (client, _):
        assert [model.id async for model in client.models.list()] == ["fake"]


async def test_both_names_of_the_length_limit_work() -> None:
    async with talking() as (client, _):
        for name in ("max_tokens", "max_completion_tokens"):
            answer = await ask(client, **{name: 3})
            assert answer.choices[0].finish_reason == "length"
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 3
            assert (await ask(client, **{name: 4096})).choices[0].finish_reason == "stop"


async def test_stop_seed_and_temperature_are_taken() -> None:
    async with talking() as (client, _):
        answer = await ask(client, stop=["on"], seed=7, temperature=0.3)
        assert answer.choices[0].message.content == "two red apples"
        assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("usage", [None, False, True])
async def test_a_stream_is_parsed_to_its_end(usage: bool | None) -> None:
    async with talking() as (client, _):
        options = {} if usage is None else {"stream_options": {"include_usage": usage}}
        stream = await ask(client, stream=True, **options)
        chunks = [chunk async for chunk in stream]
        contents = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(contents) == DEFAULT_CAPTION
        finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
        assert finishes[-1] == "stop"
        assert set(finishes[:-1]) == {None}
        assert [c.usage.total_tokens for c in chunks if c.usage] == ([14] if usage else [])
        assert (not chunks[-1].choices) == bool(usage)


async def test_what_is_streamed_by_blocks_never_changes() -> None:
    async with talking() as (client, _):
        stream = await ask(
            client,
            user(IMAGE, text("a b c d e f g h")),
            stream=True,
            extra_body={"block_length": 2, "tokens_per_step": 1},
        )
        contents = [c.choices[0].delta.content async for c in stream]
        assert [content for content in contents if content] == ["a b", " c d", " e f", " g h"]


async def test_settings_of_the_sampler_go_in_extra_body() -> None:
    async with talking() as (client, server):
        extra = {"tokens_per_step": 1, "refine": False, "preset": "mask", "unknown": 1}
        await ask(client, extra_body=extra)
        assert len(server.runner.batches) == 8


async def test_fields_that_mean_nothing_here_are_ignored() -> None:
    async with talking() as (client, _):
        answer = await ask(
            client,
            top_p=0.5,
            presence_penalty=1,
            frequency_penalty=1,
            logprobs=False,
            user="me",
            n=1,
            response_format={"type": "text"},
            metadata={"a": "b"},
            store=False,
        )
        assert answer.choices[0].message.content == DEFAULT_CAPTION


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (user(text("no picture")), "there is no picture: send one in a user message"),
        ([*user(IMAGE), {"role": "assistant", "content": "hello"}], "last message must be"),
        ([{"role": "system", "content": [IMAGE]}, *user(IMAGE)], "not the system's"),
    ],
)
async def test_what_cannot_be_answered_is_a_bad_request_with_a_reason(
    messages: Any, reason: str
) -> None:
    async with talking() as (client, _):
        with pytest.raises(openai.BadRequestError, match=reason) as caught:
            await ask(client, messages)
        assert caught.value.param == "messages"
        assert caught.value.code == "invalid_value"
        assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": 99}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": NAMED}, "tool_choice"),
        ({"extra_body": {"tokens_per_steps": 2}}, "tokens_per_steps"),
        ({"extra_body": {"extra_body": {"tokens_per_step": 2}}}, "extra_body"),
        ({"extra_body": {"tokens_per_step": 0}}, "tokens_per_step"),
        ({"extra_body": {"steps": 8, "tokens_per_step": 2}}, "steps"),
    ],
)
async def test_a_value_out_of_range_is_a_bad_request(fields: Any, param: str) -> None:
    async with talking() as (client, _):
        with pytest.raises(openai.BadRequestError) as caught:
            await ask(client, **fields)
        assert caught.value.param == param


async def test_logprobs_are_parsed() -> None:
    async with talking() as (client, _):
        answer = await ask(client, logprobs=True, top_logprobs=1)
        content = answer.choices[0].logprobs.content
        assert [one.token for one in content] == ["two", " red", " apples", " on", " grass"]
        assert content[1].top_logprobs[0].logprob == content[1].logprob
        stream = await ask(client, logprobs=True, stream=True)
        pieces = [c.choices[0].logprobs.content async for c in stream if c.choices[0].logprobs]
        assert [one.token for piece in pieces for one in piece] == [one.token for one in content]


async def test_a_second_turn_is_answered() -> None:
    async with talking() as (client, _):
        turns = [*user(IMAGE), {"role": "assistant", "content": "a pear"}, *user(text("is it"))]
        assert (await ask(client, turns)).choices[0].message.content == "is it"


async def test_a_key_goes_as_the_client_sends_it() -> None:
    async with talking("right", api_keys=["right"]) as (client, _):
        assert (await ask(client)).choices
    async with talking("wrong", api_keys=["right"]) as (client, _):
        with pytest.raises(openai.AuthenticationError):
            await ask(client)


async def test_errors_have_the_classes_that_clients_catch() -> None:
    async with talking() as (client, server):
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="other", messages=user(IMAGE))
        with pytest.raises(openai.InternalServerError):
            await ask(client, user(IMAGE, text("boom step")))
        stream = await ask(client, user(IMAGE, text("boom step")), stream=True)
        with pytest.raises(openai.APIError, match="could not be computed"):
            [chunk async for chunk in stream]
        await server.service.drain(0.01)
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(client)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"]
