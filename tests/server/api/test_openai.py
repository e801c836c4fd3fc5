"""`/v1/chat/completions` and `/v1/models`, as OpenAI clients use them."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from server_fakes import DEFAULT_CAPTION, Call, FakeRunner, png, running

from rediff_model.chat_template import DEFAULT_QUESTION, Turn
from server.engine.taught import ONE_QUESTION, REPLACED

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"


def image_of(file: bytes) -> dict[str, Any]:
    encoded = base64.b64encode(file).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


IMAGE = image_of(png())


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": list(messages) or [user(IMAGE)], **fields}


def chunks_of(stream: str) -> list[dict[str, Any]]:
    lines = [line for line in stream.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def content_of(chunks: list[dict[str, Any]]) -> list[str]:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]


async def test_a_completion_has_the_shape_that_clients_parse() -> None:
    async with running() as server:
        answer = (await server.client.post(PATH, json=chat(user(text("a pear"), IMAGE)))).json()
        assert answer.pop("id").startswith("chatcmpl-")
        assert isinstance(answer.pop("created"), int)
        assert answer == {
            "object": "chat.completion",
            "model": "fake",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "a pear"},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
        }


async def test_a_picture_alone_gets_the_default_prompt() -> None:
    async with running() as server:
        for message in (user(IMAGE), user(IMAGE, text("  "))):
            answer = await server.client.post(PATH, json=chat(message))
            assert answer.json()["choices"][0]["message"]["content"] == DEFAULT_CAPTION


async def test_fields_of_other_servers_are_accepted() -> None:
    async with running() as server:
        body = chat(
            user(IMAGE),
            top_p=1,
            logprobs=False,
            user="me",
            ignore_eos=True,
            temperature=None,
            response_format={"type": "text"},
        )
        answer = await server.client.post(PATH, json=body)
        assert answer.status_code == 200
        assert "x-rediff-warning" not in answer.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_a_header_tells_what_the_model_was_not_asked(stream: bool) -> None:
    runner = FakeRunner()
    runner.info = replace(runner.info, taught_prompts=(DEFAULT_QUESTION, "a pear"))
    async with running(runner) as server:
        for content, warning in (
            (user(IMAGE), None),
            (user(text("a pear"), IMAGE), None),
            (user(IMAGE, text("caption this")), REPLACED),
        ):
            answer = await server.client.post(PATH, json=chat(content, stream=stream))
            assert answer.headers.get("x-rediff-warning") == warning
        conversation = (
            {"role": "system", "content": "be brief"},
            user(IMAGE, text("a pear")),
            {"role": "assistant", "content": "no"},
            user(text(" a pear ")),
        )
        answer = await server.client.post(PATH, json=chat(*conversation, stream=stream, top_p=0.5))
        warnings = f"{ONE_QUESTION}; without effect here: top_p"
        assert answer.headers["x-rediff-warning"] == warnings
        assert server.runner.asked == [None, "a pear", None, "a pear"]


async def test_a_conversation_reaches_a_model_that_takes_any_text() -> None:
    async with running() as server:
        answer = await server.client.post(
            PATH,
            json=chat(
                {"role": "system", "content": "be brief"},
                user(text("Look: "), IMAGE, text("\nWhat?")),
                {"role": "assistant", "content": "a pear"},
                {"role": "user", "content": "is it big"},
            ),
        )
        assert answer.json()["choices"][0]["message"]["content"] == "is it big"
        assert server.runner.asked == [
            (
                Turn("system", "be brief"),
                Turn("user", "Look: ", "\nWhat?"),
                Turn("assistant", "a pear"),
                Turn("user", "is it big"),
            )
        ]


async def test_max_tokens_shortens_the_canvas_and_is_clamped_to_it() -> None:
    async with running() as server:
        for fields, tokens, finish in (
            ({"max_tokens": 3}, 3, "length"),
            ({"max_completion_tokens": 2, "max_tokens": 7}, 2, "length"),
            ({"max_tokens": 10**6}, 5, "stop"),
            ({"canvas_length": 4}, 4, "length"),
        ):
            answer = (await server.client.post(PATH, json=chat(**fields))).json()
            assert answer["usage"]["completion_tokens"] == tokens
            assert answer["choices"][0]["finish_reason"] == finish


async def test_sampling_fields_stand_beside_those_of_openai() -> None:
    async with running() as server:
        body = chat(tokens_per_step=1, refine=False, seed=3, temperature=0.5)
        assert (await server.client.post(PATH, json=body)).status_code == 200
        assert len(server.runner.batches) == 8


async def test_a_stop_text_ends_the_answer() -> None:
    async with running() as server:
        for stop in ("on", ["grass", "on"]):
            for stream in (False, True):
                answer = await server.client.post(PATH, json=chat(stop=stop, stream=stream))
                if stream:
                    assert "".join(content_of(chunks_of(answer.text))) == "two red apples"
                else:
                    choice = answer.json()["choices"][0]
                    assert choice["message"]["content"] == "two red apples"
                    assert choice["finish_reason"] == "stop"


async def test_a_stream_of_one_block_has_its_text_at_the_end() -> None:
    async with running() as server:
        answer = await server.client.post(
            PATH, json=chat(stream=True, stream_options={"include_usage": True})
        )
        assert answer.headers["content-type"].startswith("text/event-stream")
        chunks = chunks_of(answer.text)
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert content_of(chunks) == [DEFAULT_CAPTION]
        assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None, None, "stop"]
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 14


async def test_a_stream_of_blocks_sends_each_block_when_it_is_final() -> None:
    async with running() as server:
        body = chat(user(IMAGE, text("a b c d e f g h")), stream=True)
        body |= {"block_length": 2, "tokens_per_step": 1}
        chunks = chunks_of((await server.client.post(PATH, json=body)).text)
        # The first word is wrong after the first of its block's two steps: that is never sent.
        assert content_of(chunks) == ["a b", " c d", " e f", " g h"]


@pytest.mark.parametrize("extra", [{}, {"block_length": 2, "tokens_per_step": 1}])
@pytest.mark.parametrize("stop", [None, " on"])
async def test_logprobs_are_the_confidences(extra: dict[str, Any], stop: str | None) -> None:
    words = DEFAULT_CAPTION.split()[: 3 if stop else 5]
    tokens = [words[0], *(f" {word}" for word in words[1:])]
    async with running() as server:
        for top in (None, 0, 3):
            body = chat(logprobs=True, top_logprobs=top, stop=stop, **extra)
            choice = (await server.client.post(PATH, json=body)).json()["choices"][0]
            found = choice["logprobs"]
            assert "".join(one["token"] for one in found["content"]) == choice["message"]["content"]
            assert [one["token"] for one in found["content"]] == tokens
            for one in found["content"]:
                alternatives = [(a["token"].strip(), a["logprob"]) for a in one.pop("top_logprobs")]
                own = (one["token"].strip(), pytest.approx(math.log(0.5)))
                assert alternatives == ([own, ("wrong", pytest.approx(math.log(0.25)))] * bool(top))
                assert one["logprob"] == pytest.approx(math.log(0.5))
                assert bytes(one["bytes"]).decode() == one["token"]
            assert found["refusal"] is None

            streamed = await server.client.post(PATH, json=body | {"stream": True})
            choices = [chunk["choices"][0] for chunk in chunks_of(streamed.text)]
            assert "".join(content_of(chunks_of(streamed.text))) == "".join(tokens)
            said = [
                (one["delta"]["content"], "".join(t["token"] for t in one["logprobs"]["content"]))
                for one in choices
                if one["delta"].get("content")
            ]
            assert all(content == spelt for content, spelt in said)
            assert said


async def test_the_role_comes_before_the_first_step() -> None:
    async with running() as server:
        server.runner.free_running = False
        call = Call(server.app, PATH, json.dumps(chat(stream=True)).encode(), {})
        block = await call.block()
        assert block is not None
        assert "assistant" in block
        assert server.runner.batches == []
        await call.leave()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (chat(user(text("no picture"))), "messages"),
        (chat({"role": "user", "content": "no picture"}), "messages"),
        (chat(user(IMAGE), {"role": "assistant", "content": "x"}), "messages"),
        (chat({"role": "system", "content": "x"}), "messages"),
        (chat(user({"type": "input_audio"})), "messages"),
        (chat(user({"type": "image_url"})), "messages"),
        (chat(user({"type": "image_url", "image_url": {"url": "https://a/b.png"}})), "messages"),
        (
            chat(user({"type": "image_url", "image_url": 7})),
            "messages.0.content.parts.0.image_url",
        ),
        (chat({"role": "user", "content": [3]}), "messages.0.content.parts.0"),
        (chat({"role": "user", "content": 3}), "messages.0.content.text"),
        (chat({"role": "wizard", "content": "x"}), "messages.0.role"),
        (chat(n=2), "n"),
        (chat(n=0), "n"),
        (chat(logprobs=5), "logprobs"),
        (chat(logprobs=True, top_logprobs=21), "top_logprobs"),
        (chat(top_logprobs=2), "top_logprobs"),
        (chat(logprobs=False, top_logprobs=0), "top_logprobs"),
        (chat(response_format={"type": "json_object"}), "response_format"),
        (chat(response_format="text"), "response_format"),
        (chat(tools=[], tool_choice="required"), "tool_choice"),
        (chat(tokens_per_steps=2), "tokens_per_steps"),
        (chat(extra_body={"tokens_per_step": 2}), "extra_body"),
        (chat(sampling={"tokens_per_step": 2}), "sampling"),
        (chat(stop=["a", "b", "c", "d", "e"]), "stop"),
        (chat(stop=""), "stop"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(max_tokens="many"), "max_tokens"),
        (chat(temperature=-1), "temperature"),
        (chat(steps=4, tokens_per_step=2), "steps"),
        (chat(block_length=3), "block_length"),
        (chat(user(IMAGE, text("long " * 1000))), "messages"),
        (chat(user(IMAGE, text("a " * 1100))), "messages"),
        (chat(user(image_of(b""))), "messages"),
        ({"model": "fake", "messages": []}, "messages"),
        ({"model": "fake"}, "messages"),
        ({}, "messages"),
    ],
)
async def test_a_bad_request_is_always_400(body: dict[str, Any], param: str) -> None:
    async with running() as server:
        answer = await server.client.post(PATH, json=body)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_another_model_is_404() -> None:
    async with running() as server:
        answer = await server.client.post(PATH, json=chat() | {"model": "gpt"})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"


async def test_an_error_in_a_stream_is_a_data_line() -> None:
    async with running() as server:
        body = chat(user(IMAGE, text("boom step")), stream=True)
        lines = (await server.client.post(PATH, json=body)).text.strip().split("\n\n")
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "internal_error"


async def test_the_model_is_listed() -> None:
    async with running(served_model_name="captioner") as server:
        models = (await server.client.get("/v1/models")).json()
        assert models["object"] == "list"
        assert [(model["id"], model["object"]) for model in models["data"]] == [
            ("captioner", "model")
        ]
        assert (await server.client.get("/v1/models/captioner")).json() == models["data"][0]
        other = await server.client.get("/v1/models/gpt")
        assert other.status_code == 404
        assert other.json()["error"]["code"] == "model_not_found"


async def test_the_document_tells_the_bodies() -> None:
    async with running() as server:
        document = (await server.client.get("/openapi.json")).json()
        assert (await server.client.get("/docs")).status_code == 200
        for path in ("/caption", "/refine", PATH):
            content = document["paths"][path]["post"]["requestBody"]["content"]
            reference = content["application/json"]["schema"]["$ref"]
            name = reference.removeprefix("#/components/schemas/")
            assert document["components"]["schemas"][name]["properties"]
        form = document["paths"]["/caption"]["post"]["requestBody"]["content"]
        assert form["multipart/form-data"]["schema"]["properties"]["image"]["format"] == "binary"
        references = set(json.dumps(document).split('"#/components/schemas/')[1:])
        names = {reference.partition('"')[0] for reference in references}
        assert names <= set(document["components"]["schemas"])
