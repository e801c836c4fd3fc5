"""The shapes in which clients send a picture as text, on every route."""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

import pytest
from picture_files import encode, noise
from server_fakes import Running, running

pytestmark = pytest.mark.anyio

# Of bytes for which base64 has all letters in which its alphabets differ, and padding.
FILE = encode(noise(40, 40), "PNG") + b"\xfb\xff\xfe~"
BASE64 = base64.b64encode(FILE).decode()
SAFE = base64.urlsafe_b64encode(FILE).decode()
HEAD = "data:image/png;base64,"

assert {"+", "/", "="} < set(BASE64)

READ = {
    "plain": HEAD + BASE64,
    "leading blank": "  \n" + HEAD + BASE64 + "\n",
    "raw base64": BASE64,
    "raw base64 in lines": base64.encodebytes(FILE).decode(),
    "unpadded": (HEAD + BASE64).rstrip("="),
    "raw and unpadded": BASE64.rstrip("="),
    "too much padding": HEAD + BASE64 + "==",
    "url-safe": HEAD + SAFE,
    "url-safe, raw, unpadded": SAFE.rstrip("="),
    "percent-encoded": HEAD + quote(BASE64, safe=""),
    "percent-encoded padding": HEAD + BASE64.replace("=", "%3D"),
    "percent-encoded, raw": quote(BASE64, safe=""),
    "percent-encoded line ends": HEAD + BASE64[:80] + "%0A" + BASE64[80:],
    "blanks in the head": "data: image/png ; base64 , " + BASE64,
    "capitals": "DATA:image/PNG;BASE64," + BASE64,
    "parameters": "data:image/png;charset=utf-8;name=a.png;base64," + BASE64,
    "base64 first": "data:image/png;base64;name=a.png," + BASE64,
    "wrong type": "data:application/octet-stream;base64," + BASE64,
    "no type": "data:;base64," + BASE64,
}


async def answered(server: Running, text: str) -> list[Any]:
    """The answers of all routes and fields that take a picture as text."""
    images: list[Any] = [{"base64": text}, {"url": text}, text]
    urls: list[Any] = [{"url": text}, {"url": text, "detail": "low"}, text]
    answers = [await server.client.post("/caption", json={"image": image}) for image in images]
    answers += [
        await server.client.post("/refine", json={"image": image, "draft": "a pear"})
        for image in images
    ]
    for url in urls:
        content = [{"type": "image_url", "image_url": url}]
        body = {"messages": [{"role": "user", "content": content}]}
        answers.append(await server.client.post("/v1/chat/completions", json=body))
    return answers


@pytest.mark.parametrize("name", READ)
async def test_what_has_one_meaning_is_read(name: str) -> None:
    async with running() as server:
        for answer in await answered(server, READ[name]):
            assert answer.status_code == 200, answer.text
        assert {picture.size for picture in server.runner.pictures} == {(40, 40)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("example.org/a.png", "must begin with data: or https:"),
        ("/home/me/a.png", "must begin with data: or https:"),
        ("", "must begin with data: or https:"),
        ("cat", "must begin with data: or https:"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png," + BASE64, "must hold base64"),
        ("data:image/png;base64," + BASE64[:-3], "cut short or lack their padding"),
        ("data:image/png;base64," + BASE64[:9] + "!" + BASE64[9:], "character 10 is not"),
        ("data:image/png;base64," + BASE64[:9] + "\u20ac" + BASE64[9:], "character 10 is not"),
        ("data:image/png;base64,AAA=AAAA", "padding at character 4"),
        ("data:image/png;base64,b'" + BASE64 + "'", "as Python shows bytes"),
        ("blob:https://example.org/1-2-3", "send the picture's base64"),
        ("file:///home/me/a.png", "send the picture's base64"),
        ("https://example.org/a.png", "remote pictures are off"),
        (" https://example.org/a.png", "remote pictures are off"),
        ("ftp://example.org/a.png", "remote pictures are off"),
    ],
)
async def test_anything_else_is_told_what_is_wrong(text: str, message: str) -> None:
    content = [{"type": "image_url", "image_url": text}]
    async with running() as server:
        for path, body, param in (
            ("/caption", {"image": {"url": text}}, "image.url"),
            (
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": content}]},
                "messages",
            ),
        ):
            answer = await server.client.post(path, json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, param)
            assert message in error["message"]
            assert BASE64[:20] not in error["message"]


@pytest.mark.parametrize("text", ["AAA", "A", "_-_-", "AAAA AAA"])
async def test_a_repaired_text_must_give_a_file_that_is_known(text: str) -> None:
    async with running() as server:
        answer = await server.client.post("/caption", json={"image": {"base64": text}})
        assert answer.json()["error"]["code"] == "invalid_base64"


async def test_base64_of_another_format_is_named() -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    async with running() as server:
        for text in (base64.b64encode(heic).decode(), HEAD + base64.b64encode(heic).decode()):
            for answer in await answered(server, text):
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (415, "unsupported_image")
                assert "HEIC" in error["message"]


async def test_a_long_text_that_is_no_picture_is_refused_at_once() -> None:
    async with running() as server:
        for text in ("data:" + ";" * 10**6, "%41" * 10**6, "=" * 10**6, "a" * 10**6, "%" * 10**6):
            for answer in await answered(server, text):
                assert answer.status_code in (400, 415)
