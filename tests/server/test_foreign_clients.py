"""What the load generators of other projects send, and what they read in the answer."""

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
