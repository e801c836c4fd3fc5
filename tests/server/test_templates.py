"""Templates, alternatives and diffs over HTTP, from a tiny checkpoint with a real tokenizer."""

from __future__ import annotations

import base64
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from server_fakes import png
from tiny_server import serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

PICTURE = base64.b64encode(png()).decode()
IMAGE = {"base64": PICTURE}
TEMPLATE = "A {2} cat. {red|dark blue}!"


def events_in(text: str) -> list[tuple[str, Any]]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event: ")]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in blocks
    ]


def check_holes(caption: str, holes: list[dict[str, Any]]) -> None:
    """Both holes of `TEMPLATE` in a caption."""
    words, colour = holes
    assert caption == f"A {words['text']} cat. {colour['text']}!"
    for hole in holes:
        assert caption[hole["start"] : hole["end"]] == hole["text"]
        assert 0 < hole["confidence"] <= 1
    assert words["token_end"] - words["token_start"] == 2
    assert "choices" not in words
    assert colour["choices"].keys() == {"red", "dark blue"}
    assert sum(colour["choices"].values()) == pytest.approx(1, abs=1e-5)
    assert colour["confidence"] == colour["choices"][colour["text"]]
    assert colour["confidence"] == max(colour["choices"].values())


async def test_a_template_is_filled(checkpoint: Path) -> None:
    async with serving(checkpoint) as client:
        sent = {"image": IMAGE, "template": TEMPLATE, "return_tokens": True}
        answer = await client.post("/caption", json=sent)
        assert answer.status_code == 200, answer.text
        made = answer.json()
        check_holes(made["caption"], made["holes"])
        assert made["finish_reason"] == "stop"
        spans = [range(hole["token_start"], hole["token_end"]) for hole in made["holes"]]
        sure = [token["confidence"] for token in made["tokens"]]
        inside = [sure[place] for span in spans for place in span]
        fixed = [one for place, one in enumerate(sure) if not any(place in s for s in spans)]
        assert set(fixed) == {1.0}
        mean = math.exp(sum(map(math.log, inside)) / len(inside))
        assert made["caption_confidence"] == pytest.approx(mean, rel=1e-3)
        form = await client.post(
            "/caption",
            files={"image": ("picture.png", png(), "image/png")},
            data={"template": TEMPLATE},
        )
        assert (form.json()["caption"], form.json()["holes"]) == (made["caption"], made["holes"])


async def test_white_space_around_a_template_stays(checkpoint: Path) -> None:
    async with serving(checkpoint) as client:
        sent = {"image": IMAGE, "template": " {{ a\n{1}}} "}
        made = (await client.post("/caption", json=sent)).json()
        [hole] = made["holes"]
        assert made["caption"] == f" {{ a\n{hole['text']}}} "


async def test_a_stream_says_what_is_there_before_it_fills(checkpoint: Path) -> None:
    async with serving(checkpoint) as client:
        sent = {"image": IMAGE, "template": TEMPLATE, "stream": True}
        answer = await client.post("/caption", json=sent)
        events = events_in(answer.text)
        names = [name for name, _ in events]
        place = names.index("canvas")
        assert names.count("canvas") == names.count("done") == 1
        canvas, done = events[place][1], events[-1][1]
        # The choices were compared before, on canvases that nothing was written to.
        assert place > 0
        assert all(data["changed"] == [] for _, data in events[:place])
        check_holes(done["caption"], done["holes"])
        assert canvas["holes"] == [
            [hole["token_start"], hole["token_end"]] for hole in done["holes"]
        ]
        said = {one["position"]: one for one in canvas["tokens"]}
        choice = range(*canvas["holes"][1])
        assert {at for at, one in said.items() if one["kind"] == "choice"} == set(choice)
        for name, data in events[place:]:
            for change in data.get("changed", []):
                assert change["position"] in range(*canvas["holes"][0])
                said[change["position"]] = change
            assert name in ("canvas", "step", "done")
        assert "".join(said[at]["text"] for at in sorted(said)) == done["caption"]
        assert [data["step"] for name, data in events if name == "step"] == list(
            range(1, done["steps"] + 1)
        )


async def test_a_stream_of_a_draft_says_what_is_there(checkpoint: Path) -> None:
    async with serving(checkpoint) as client:
        sent = {"image": IMAGE, "draft": "A red cat", "stream": True}
        answer = await client.post("/refine", json=sent)
        [(name, canvas), *_] = events_in(answer.text)
        assert name == "canvas"
        assert "".join(one["text"] for one in canvas["tokens"]) == "A red cat"
        assert {one["kind"] for one in canvas["tokens"]} == {"draft"}
        assert canvas["holes"] == []


@pytest.mark.parametrize(
    ("template", "place"),
    [
        ("no hole", "there is no hole"),
        ("a {0} b", "a {0} b\n  ^"),
        ("a {", "a {\n  ^"),
        ("a {b|b} c", "a {b|b} c\n     ^"),
        ("A cat {16}.", "up to here it has 18 tokens, and a canvas of 16 takes 15"),
    ],
)
async def test_a_template_that_cannot_be_filled_is_400_and_shows_the_place(
    checkpoint: Path, template: str, place: str
) -> None:
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}]
    chat = {"messages": [{"role": "user", "content": content}]}
    async with serving(checkpoint) as client:
        for route, sent in (("/caption", {"image": IMAGE}), ("/v1/chat/completions", chat)):
            answer = await client.post(route, json={**sent, "template": template})
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, "template"), error
            assert place in error["message"]


@pytest.mark.parametrize(
    ("route", "fields", "message"),
    [
        ("/caption", {"sampling": {"block_length": 4}}, "block_length does not go with a template"),
        ("/refine", {"draft": "a cat"}, "draft and template exclude each other"),
        ("/caption", {"sampling": {"canvas_length": 5}}, "a canvas of 5 takes 4"),
    ],
)
async def test_what_does_not_go_with_a_template(
    checkpoint: Path, route: str, fields: dict[str, Any], message: str
) -> None:
    async with serving(checkpoint) as client:
        sent = {"image": IMAGE, "template": TEMPLATE, **fields}
        answer = await client.post(route, json=sent)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_clients_fill_templates(checkpoint: Path, stream: bool) -> None:
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}]
    sent = {
        "messages": [{"role": "user", "content": content}],
        "template": TEMPLATE,
        "stream": stream,
        "logprobs": True,
        "top_logprobs": 2,
    }
    async with serving(checkpoint) as client:
        answer = await client.post("/v1/chat/completions", json=sent)
        assert answer.status_code == 200, answer.text
        if stream:
            lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n")]
            choices = [json.loads(line)["choices"][0] for line in lines if line.startswith("{")]
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            [holes] = [choice["holes"] for choice in choices if "holes" in choice]
        else:
            [choice] = answer.json()["choices"]
            text, holes = choice["message"]["content"], choice["holes"]
            found = choice["logprobs"]["content"]
            assert "".join(one["token"] for one in found) == text
            assert {len(one["top_logprobs"]) for one in found} == {0, 2}
        check_holes(text, holes)


async def test_alternatives_stand_with_the_tokens(checkpoint: Path) -> None:
    async with serving(checkpoint) as client:
        answer = await client.post("/caption", json={"image": IMAGE, "alternatives": 3})
        tokens = answer.json()["tokens"]
        assert tokens
        for token in tokens:
            found = token["alternatives"]
            assert len(found) == 3
            assert found[0]["id"] == token["id"]
            # A token may be a part of a character, which stands with the token that ends it.
            assert found[0]["text"] == token["text"] or "\ufffd" in found[0]["text"]
            assert found[0]["confidence"] == pytest.approx(token["confidence"], abs=2e-6)
        for count in (-1, 21):
            sent = {"image": IMAGE, "alternatives": count}
            assert (await client.post("/caption", json=sent)).status_code == 400


async def test_a_refined_draft_comes_with_what_changed(checkpoint: Path) -> None:
    async with serving(checkpoint) as client:
        sent = {"image": IMAGE, "draft": "A red cat", "return_diff": True}
        made = (await client.post("/refine", json=sent)).json()
        parts = made["diff"]
        assert " ".join(one["was"] for one in parts if one["was"]) == "A red cat"
        now = " ".join(one["text"] for one in parts if one["text"])
        assert now == " ".join(made["caption"].split())
        assert (
            "diff" not in (await client.post("/refine", json=sent | {"return_diff": False})).json()
        )
