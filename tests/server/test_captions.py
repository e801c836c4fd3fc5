"""`POST /caption` and `/refine`: what comes back, in JSON, from forms and as a stream."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from server_fakes import DEFAULT_CAPTION, Call, FakeRunner, png, running

from rediff_model.chat_template import DEFAULT_QUESTION, Question
from rediff_model.config import Preferences
from server.api.responses import caption_confidence
from server.engine.taught import REPLACED

pytestmark = pytest.mark.anyio

PICTURE = base64.b64encode(png()).decode()


def body(**fields: Any) -> dict[str, Any]:
    return {"image": {"base64": PICTURE}, **fields}


async def test_a_picture_in_json_gets_a_caption() -> None:
    async with running() as server:
        answer = await server.client.post("/caption", json=body())
        assert answer.status_code == 200
        caption = answer.json()
        assert caption.pop("id").startswith("cap-")
        timing = caption.pop("timing")
        assert set(timing) == {"decode", "vision", "queue", "generate", "total"}
        assert 0 <= timing["generate"] <= timing["total"]
        assert caption == {
            "model": "fake",
            "caption": DEFAULT_CAPTION,
            "finish_reason": "stop",
            "usage": {"image_tokens": 4, "prompt_tokens": 9, "caption_tokens": 5},
            "steps": 2,
            "revisions": 1,
            "flips": 0,
        }
        assert server.runner.pictures[0].size == (6, 4)
        assert server.service.active == 0


async def test_a_picture_in_a_form_gets_the_same_caption() -> None:
    async with running() as server:
        answer = await server.client.post(
            "/caption",
            files={"image": ("picture.png", png(), "image/png")},
            data={
                "prompt": "what is this",
                "sampling": json.dumps({"tokens_per_step": 1}),
                "return_tokens": "true",
                "timeout_seconds": "5",
                "priority": "3",
            },
        )
        assert answer.status_code == 200
        assert answer.json()["caption"] == "what is this"
        assert answer.json()["steps"] == 8
        assert len(answer.json()["tokens"]) == 3


async def test_a_data_url_and_wrapped_base64_are_taken() -> None:
    wrapped = base64.encodebytes(png()).decode()
    assert "\n" in wrapped
    async with running() as server:
        for image in ({"url": f"data:image/png;base64,{PICTURE}"}, {"base64": wrapped}):
            answer = await server.client.post("/caption", json={"image": image})
            assert answer.status_code == 200, answer.text


async def test_tokens_and_words_carry_confidence_and_revisions() -> None:
    async with running() as server:
        answer = await server.client.post(
            "/caption", json=body(prompt="red apples", return_tokens=True)
        )
        caption = answer.json()
        assert [token["text"] for token in caption["tokens"]] == [" red", " apples"]
        assert [token["revisions"] for token in caption["tokens"]] == [1, 0]
        assert caption["words"] == [
            {"text": "red", "confidence": 0.5},
            {"text": "apples", "confidence": 0.5},
        ]
        assert caption["caption_confidence"] == 0.5


async def test_the_step_map_says_when_each_token_took_its_last_value() -> None:
    async with running() as server:
        for stream in (False, True):
            sent = body(prompt="red apples", return_steps=True, stream=stream)
            answer = await server.client.post("/caption", json=sent)
            last = answer.text.rstrip().rpartition("data: ")[2]
            caption = json.loads(last)
            assert [mark["step"] for mark in caption["step_map"]] == [0, 1]
            assert [mark["revisions"] for mark in caption["step_map"]] == [1, 0]
            assert caption["flips"] == 0
        without = await server.client.post("/caption", json=body(prompt="red apples"))
        assert "step_map" not in without.json()


async def test_presets_and_fields_reach_the_sampler() -> None:
    async with running() as server:
        for sampling, steps in (
            ({}, 2),
            ({"preset": "mask"}, 2),
            ({"tokens_per_step": 2, "canvas_length": 6}, 3),
            ({"canvas_length": 64}, 16),
        ):
            answer = await server.client.post("/caption", json=body(sampling=sampling))
            assert answer.json()["steps"] == steps


@pytest.mark.parametrize("way", ["field", "header"])
async def test_a_stream_tells_reveals_and_revisions_then_the_answer(way: str) -> None:
    async with running() as server:
        answer = await server.client.post(
            "/caption",
            json=body(prompt="red apples", sampling={"tokens_per_step": 4}, stream=way == "field"),
            headers={"accept": "text/event-stream"} if way == "header" else {},
        )
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
        names = [name.removeprefix("event: ") for name, _ in blocks]
        data = [json.loads(line.removeprefix("data: ")) for _, line in blocks]
        assert names == ["step", "step", "done"]
        assert data[0]["step"] == 1
        assert data[0]["steps"] == 2
        assert data[0]["masked"] == 4
        assert data[0]["text"] == " wrong apples"
        assert [c["kind"] for c in data[0]["changed"]] == ["reveal"] * 4
        assert data[1]["masked"] == 0
        assert data[1]["changed"][0] == {
            "position": 0,
            "id": server.runner.words.index("red"),
            "text": " red",
            "confidence": 0.5,
            "kind": "revise",
            "was": server.runner.words.index("wrong"),
        }
        assert data[1]["changed"][1]["was"] is None
        assert data[2]["caption"] == "red apples"
        assert data[2]["revisions"] == 1


async def test_a_stream_sends_each_step_when_it_is_done() -> None:
    async with running() as server:
        server.runner.free_running = False
        call = Call(
            server.app, "/caption", json.dumps(body(stream=True)).encode(), {"accept": "*/*"}
        )
        await server.active(1)
        server.runner.steps_allowed.release()
        event = await call.event()
        assert event is not None
        assert event[0] == "step"
        assert server.service.active == 1
        server.runner.steps_allowed.release()
        names = [(event or ("end",))[0] for event in [await call.event() for _ in range(3)]]
        assert names == ["step", "done", "end"]
        assert server.service.active == 0
        await call.leave()


async def test_refine_starts_from_the_draft() -> None:
    async with running() as server:
        answer = await server.client.post(
            "/refine",
            json=body(draft="a green pear on a a plate", prompt="a red apple", return_tokens=True),
        )
        caption = answer.json()
        assert caption["caption"] == "a red apple"
        assert caption["steps"] == 1
        assert caption["revisions"] == 6


async def test_a_draft_longer_than_the_canvas_is_refused() -> None:
    async with running() as server:
        answer = await server.client.post("/refine", json=body(draft="word " * 9))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "draft"
        assert server.service.active == 0


async def test_requests_that_come_together_share_a_batch() -> None:
    async with running(max_batch=4) as server:
        server.runner.free_running = False
        first = Call(server.app, "/caption", json.dumps(body()).encode(), {})
        await server.active(1)
        server.runner.steps_allowed.release()
        await server.stepped(1)
        rest = [Call(server.app, "/caption", json.dumps(body()).encode(), {}) for _ in range(5)]
        await server.queued(5)
        server.runner.free_running = True
        server.runner.steps_allowed.release(10)
        for call in (first, *rest):
            await call.task
            assert call.status == 200
        assert [len(batch) for batch in server.runner.starts] == [1, 4, 1]


async def test_a_lower_priority_goes_first() -> None:
    async with running(max_batch=1) as server:
        server.runner.free_running = False
        calls = [Call(server.app, "/caption", json.dumps(body(prompt="first")).encode(), {})]
        await server.active(1)
        server.runner.steps_allowed.release()
        await server.stepped(1)
        for name, priority in (("late", 5), ("soon", -1), ("middle", 0)):
            data = json.dumps(body(prompt=name, priority=priority)).encode()
            calls.append(Call(server.app, "/caption", data, {}))
            await server.queued(len(calls) - 1)
        server.runner.free_running = True
        server.runner.steps_allowed.release(100)
        for call in calls:
            await call.task
        assert server.runner.starts == [["first"], ["soon"], ["middle"], ["late"]]


@pytest.mark.parametrize("prompt", ["", " \n\t", None])
async def test_a_blank_prompt_is_the_default_one(prompt: str | None) -> None:
    async with running() as server:
        answer = await server.client.post("/caption", json=body(prompt=prompt))
        assert answer.json()["caption"] == DEFAULT_CAPTION


@pytest.mark.parametrize(
    ("sampling", "steps"),
    [
        ({}, 2 + 3),
        ({"extra_refine_steps": 0}, 2),
        ({"tokens_per_step": 1}, 8),
        ({"refine": False}, 2),
    ],
)
async def test_what_the_checkpoint_prefers_holds_where_a_request_leaves_it_open(
    sampling: dict[str, Any], steps: int
) -> None:
    runner = FakeRunner()
    runner.info = replace(runner.info, preferences=Preferences((4,), 3), compiled=True)
    async with running(runner) as server:
        version = (await server.client.get("/version")).json()
        assert (version["compiled"], version["cuda_graphs"]) == (True, False)
        assert (version["block_lengths"], version["extra_refine_steps"]) == ([4], 3)
        answer = await server.client.post("/caption", json=body(stream=True, sampling=sampling))
        [first] = re.findall("^event: step\ndata: (.*)$", answer.text, re.MULTILINE)[:1]
        assert json.loads(first)["steps"] == steps


@pytest.mark.parametrize(
    ("route", "fields", "steps"),
    [
        ("/caption", {}, 2 + 8),
        ("/caption", {"canvas_length": 4}, 1 + 8),
        ("/caption", {"tokens_per_step": 4}, 2),
        ("/caption", {"preset": "rediff"}, 2),
        ("/refine", {}, 2 + 8),
        ("/refine", {"steps": 3}, 3),
    ],
)
async def test_the_checkpoint_s_preset_holds_where_neither_a_preset_nor_a_pace_is_given(
    route: str, fields: dict[str, Any], steps: int
) -> None:
    runner = FakeRunner()
    runner.info = replace(runner.info, preferences=Preferences(preset="adaptive"))
    draft = {"draft": "red"} if route == "/refine" else {}
    async with running(runner) as server:
        assert (await server.client.get("/version")).json()["preset"] == "adaptive"
        sent = body(stream=True, sampling=fields, **draft)
        answer = await server.client.post(route, json=sent)
        [first] = re.findall("^event: step\ndata: (.*)$", answer.text, re.MULTILINE)[:1]
        assert json.loads(first)["steps"] == steps


async def test_the_version_tells_what_may_be_asked() -> None:
    runner = FakeRunner()
    runner.info = replace(runner.info, domain="Pears.")
    async with running(runner, max_image_bytes=4096) as server:
        version = (await server.client.get("/version")).json()
        assert version["domain"] == "Pears."
        assert version["limits"]["max_image_bytes"] == 4096
        assert version["limits"].keys() == {
            *("max_image_bytes", "max_image_pixels", "max_image_side", "max_body_bytes")
        }
        assert version["image_formats"][:3] == ["JPEG", "PNG", "WEBP"]


async def test_a_prompt_that_the_model_was_not_taught_is_replaced_and_told() -> None:
    runner = FakeRunner()
    runner.info = replace(runner.info, taught_prompts=(DEFAULT_QUESTION, "a pear"))
    async with running(runner) as server:
        for prompt, caption, warned in (
            (None, DEFAULT_CAPTION, False),
            (" a pear\n", "a pear", False),
            ("caption this", DEFAULT_CAPTION, True),
            ("long " * 2000, DEFAULT_CAPTION, True),
        ):
            answer = (await server.client.post("/caption", json=body(prompt=prompt))).json()
            assert answer["caption"] == caption
            assert answer.get("warnings", []) == [REPLACED] * warned
            streamed = await server.client.post("/caption", json=body(prompt=prompt, stream=True))
            done = json.loads(streamed.text.split("event: done\ndata: ")[1])
            assert done.get("warnings", []) == [REPLACED] * warned
        refined = await server.client.post("/refine", json=body(prompt="caption", draft="a pear"))
        assert refined.json()["warnings"] == [REPLACED]
        version = (await server.client.get("/version")).json()
        assert version["taught_prompts"] == [DEFAULT_QUESTION, "a pear"]


@pytest.mark.parametrize(
    ("caption", "confidences", "expected"),
    [
        ("", (), 0.0),
        (" ", (0.99,), 0.0),
        ("a pear", (1.0, 1.0), 1.0),
        ("a pear", (0.25, 1.0), 0.5),
        ("a pear", (0.0, 1.0), 0.0),
    ],
)
def test_the_confidence_of_a_caption(
    caption: str, confidences: tuple[float, ...], expected: float
) -> None:
    assert caption_confidence(caption, confidences) == expected


async def test_an_empty_caption_is_not_sure() -> None:
    class Silent(FakeRunner):
        def prepare(self, image: Any, question: Question | None) -> Any:
            return replace(super().prepare(image, question), rows=" ")

    async with running(Silent()) as server:
        answer = (await server.client.post("/caption", json=body(return_tokens=True))).json()
        assert (answer["caption"], answer["caption_confidence"]) == ("", 0.0)


async def test_negative_seeds_are_taken_on_every_route() -> None:
    url = {"type": "image_url", "image_url": f"data:image/png;base64,{PICTURE}"}
    chat = {"messages": [{"role": "user", "content": [url]}]}
    async with running() as server:
        for seed in (-1, -2, -(2**63), 0, 2**63 - 1):
            answers = [
                await server.client.post("/caption", json=body(sampling={"seed": seed})),
                await server.client.post("/refine", json=body(draft="a", sampling={"seed": seed})),
                await server.client.post("/v1/chat/completions", json=chat | {"seed": seed}),
                await server.client.post(
                    "/caption",
                    files={"image": ("a", png())},
                    data={"sampling": json.dumps({"seed": seed})},
                ),
            ]
            assert [answer.status_code for answer in answers] == [200] * 4
            expected = None if seed == -1 else seed
            assert server.runner.seeds[-4:] == [expected] * 4
