"""What load generators, front ends and gateways of other projects send, and what they read."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from server_fakes import DEFAULT_CAPTION, png, running

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
PARTS = [
    {"type": "text", "text": DEFAULT_CAPTION},
    {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png()).decode()}"},
    },
]
VLLM = {
    "model": "fake",
    "messages": [{"role": "user", "content": PARTS}],
    "max_completion_tokens": 256,
    "stream": True,
    "stream_options": {"include_usage": True},
}
VLLM_RANDOM = VLLM | {"max_completion_tokens": 128, "ignore_eos": True, "temperature": 0.0}
GUIDELLM = {
    "model": "fake",
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "messages": [{"role": "user", "content": PARTS}],
}
GUIDELLM_COUNTED = GUIDELLM | {"max_completion_tokens": 64, "stop": None, "ignore_eos": True}


def data_of(stream: str) -> list[dict[str, Any]]:
    """The JSON of every message, cut at blank lines as both clients do; comments are skipped."""
    messages = [message for message in stream.split("\n\n") if message]
    payloads = [m.removeprefix("data: ") for m in messages if not m.startswith(":")]
    assert payloads[-1] == "[DONE]"
    return [json.loads(payload) for payload in payloads[:-1]]


@pytest.mark.parametrize("body", [VLLM, VLLM_RANDOM, GUIDELLM, GUIDELLM_COUNTED])
async def test_a_stream_has_the_text_and_then_the_usage(body: dict[str, Any]) -> None:
    async with running() as server:
        headers = {"x-request-id": "bench-5f2c-0"}
        answer = await server.client.post(PATH, json=body, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "bench-5f2c-0"
        chunks = data_of(answer.text)
        assert all(chunk["id"] == chunks[0]["id"] for chunk in chunks)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
        assert "".join(delta.get("content", "") for delta in deltas) == DEFAULT_CAPTION
        # vLLM's client reads the usage only of a chunk without output.
        assert [chunk["choices"] for chunk in chunks if chunk.get("usage")] == [[]]
        usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
        assert chunks[-1]["usage"] == usage


async def test_a_plain_answer_has_text_and_usage() -> None:
    async with running() as server:
        body = {
            key: value for key, value in GUIDELLM_COUNTED.items() if not key.startswith("stream")
        }
        answer = (await server.client.post(PATH, json=body)).json()
        assert answer["choices"][0]["message"]["content"] == DEFAULT_CAPTION
        assert answer["usage"]["prompt_tokens"] == 9
        assert answer["usage"]["completion_tokens"] == 5


async def test_what_they_ask_for_first_is_there() -> None:
    async with running() as server:
        assert (await server.client.get("/health")).status_code == 200
        first = (await server.client.get("/v1/models")).json()["data"][0]
        assert first["id"] == first["root"] == "fake"


async def test_text_completions_are_refused_in_the_usual_form() -> None:
    async with running() as server:
        body = {"model": "fake", "prompt": "a", "max_tokens": 8, "stream": True}
        answer = await server.client.post("/v1/completions", json=body)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


OPEN_WEBUI = {
    "stream": True,
    "model": "fake",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": PARTS},
    ],
    "stream_options": {"include_usage": True},
    "metadata": {"user_id": "1", "chat_id": "2", "variables": {"{{USER_NAME}}": "A"}},
    "user": {"name": "A", "id": "1", "email": "a@example.com", "role": "admin"},
    "chat_id": "2",
    "session_id": "3",
    "id": "4",
    "features": {"web_search": False, "image_generation": False},
    "variables": {"{{CURRENT_DATE}}": "2026-11-30"},
    "background_tasks": {"title_generation": True, "tags_generation": True},
    "model_item": {"id": "fake", "object": "model"},
    "params": {},
    "tool_ids": [],
    "files": [],
}
"""A chat of a front end, with fields that it keeps for itself."""


@pytest.mark.parametrize("stream", [True, False])
async def test_a_front_end_s_chat_and_its_second_turn_are_answered(stream: bool) -> None:
    fields: dict[str, Any] = dict(OPEN_WEBUI)
    if not stream:
        fields |= {"stream": False, "stream_options": None}
    later = [
        *fields["messages"],
        {"role": "assistant", "content": DEFAULT_CAPTION},
        {"role": "user", "content": "And the grass?"},
    ]
    async with running() as server:
        for messages, answered in (
            (fields["messages"], DEFAULT_CAPTION),
            (later, "And the grass?"),
        ):
            answer = await server.client.post(PATH, json=fields | {"messages": messages})
            assert answer.status_code == 200, answer.text
            if stream:
                choices = [one["choices"] for one in data_of(answer.text)]
                deltas = [choice[0]["delta"].get("content", "") for choice in choices if choice]
                assert "".join(deltas) == answered
            else:
                assert answer.json()["choices"][0]["message"]["content"] == answered
        assert len(server.runner.pictures) == 2


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("task", ["title", "tags", "follow-up questions", "search query"])
async def test_a_front_end_s_task_without_a_picture_is_told_what_to_send(
    limit: str, task: str
) -> None:
    history = f"<chat_history>\nUSER: hi\nASSISTANT: {DEFAULT_CAPTION}\n</chat_history>"
    body = {
        "model": "fake",
        "messages": [{"role": "user", "content": f"### Task:\nGenerate a {task}.\n{history}"}],
        "stream": False,
        limit: 1000,
        "metadata": {"task": task},
    }
    async with running() as server:
        answer = await server.client.post(PATH, json=body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "messages"
        assert error["message"].startswith("there is no picture: send one")
        assert server.runner.batches == []


async def test_a_gateway_s_request_is_answered() -> None:
    """As LiteLLM sends it to a provider that it knows as `openai`."""
    body = {
        "model": "fake",
        "messages": [{"role": "user", "content": PARTS}],
        "presence_penalty": 0.4,
        "top_p": 0.2,
        "user": "me",
        "logprobs": True,
        "top_logprobs": 2,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "auto",
        "tokens_per_step": 8,
    }
    async with running() as server:
        answer = await server.client.post(PATH, json=body)
        assert answer.status_code == 200
        warning = "without effect here: top_p, presence_penalty, tools"
        assert answer.headers["x-rediff-warning"] == warning
        assert answer.json()["choices"][0]["logprobs"]["content"][0]["token"] == "two"
