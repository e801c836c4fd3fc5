"""Requests that ask a parser for too much, or for what it should never do."""

from __future__ import annotations

import errno
import gzip
import json
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from picture_files import encode, noise
from server_fakes import png, running

from server.api import body
from server.errors import BadBody

if TYPE_CHECKING:
    from pydantic import ValidationError

pytestmark = pytest.mark.anyio

MANY = 30_000
KEYS = "{" + ",".join(f'"k{number}":1' for number in range(MANY)) + "}"
ONES = "[" + ",".join("1" * MANY) + "]"
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/caption", KEYS),
        ("/caption", f'{{"image": {KEYS}}}'),
        ("/caption", f'{{"sampling": {KEYS}}}'),
        ("/caption", f'{{"prompt": {ONES}}}'),
        ("/caption", f'{{"other": {ONES}}}'),
        (CHAT, KEYS),
        (CHAT, f'{{"messages": {ONES}}}'),
        (CHAT, f'{{"messages": [{{"role": "user", "content": {ONES}}}]}}'),
        (CHAT, f'{{"stop": {ONES}, "messages": [{{"role": "user"}}]}}'),
    ],
)
async def test_errors_of_a_body_are_not_collected_by_the_thousand(
    path: str, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each is a kilobyte of memory, and a body could have millions.
    counts = []

    class Counted(BadBody):
        @classmethod
        def of(cls, error: ValidationError, *, prefix: tuple[str, ...] = ()) -> BadBody:
            counts.append(error.error_count())
            return BadBody.of(error, prefix=prefix)

    monkeypatch.setattr(body, "BadBody", Counted)
    async with running() as server:
        answer = await server.client.post(path, content=sent)
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert max(counts, default=0) < 200


@pytest.mark.parametrize("inner", ["1", "[]", '""', "{}", '{"a":1}'])
@pytest.mark.parametrize("field", ["prompt", "other", "messages"])
async def test_what_is_refused_is_not_built_first(field: str, inner: str) -> None:
    sent = f'{{"{field}": [' + ",".join([inner] * MANY) + "]}"
    async with running() as server:
        for path in ("/caption", CHAT):
            answer = await server.client.post(path, content=sent)
            assert answer.status_code == 400
            assert "commas and colons" in answer.json()["error"]["message"]


async def test_errors_of_a_form_are_not_collected_by_the_thousand() -> None:
    async with running() as server:
        parts: Any = [("image", ("a", png())), ("sampling", (None, KEYS))]
        answer = await server.client.post("/caption", files=parts)
        assert answer.status_code == 400
        assert "colons" in answer.json()["error"]["message"]


async def test_a_content_type_of_countless_parameters_is_refused() -> None:
    async with running() as server:
        headers = {"content-type": "multipart/form-data; boundary=x" + ";" * 10_000}
        answer = await server.client.post("/caption", content=b"--x--", headers=headers)
        assert answer.status_code == 400
        assert "content-type" in answer.json()["error"]["message"]


async def test_a_picture_in_letters_of_other_scripts_is_no_base64() -> None:
    async with running() as server:
        answer = await server.client.post("/caption", json={"image": {"base64": "\u20ac" * 10_000}})
        assert answer.json()["error"]["code"] == "invalid_base64"


@pytest.mark.parametrize("charset", ["undefined", "idna", "punycode", "utf-7", "rot13"])
async def test_a_form_cannot_choose_a_codec(charset: str) -> None:
    part = b'Content-Disposition: form-data; name="prompt"\r\n\r\n\xe9'
    sent = b"--x\r\n" + part + b"\r\n--x--\r\n"
    async with running() as server:
        media_type = f'multipart/form-data; boundary=x; charset="{charset}"'
        answer = await server.client.post(
            "/caption", content=sent, headers={"content-type": media_type}
        )
        assert answer.status_code == 400
        assert "charset" in answer.json()["error"]["message"]


@pytest.mark.parametrize("charset", ["", "; charset=utf-8", '; charset="UTF-8"'])
async def test_a_form_may_say_that_it_is_utf_8(charset: str) -> None:
    named = b'Content-Disposition: form-data; name="'
    sent = b"--x\r\n" + named + b'image"; filename="a"\r\n\r\n' + png()
    sent += b"\r\n--x\r\n" + named + b'prompt"\r\n\r\n' + "un été".encode() + b"\r\n--x--\r\n"
    async with running() as server:
        headers = {"content-type": f"multipart/form-data; boundary=x{charset}"}
        answer = await server.client.post("/caption", content=sent, headers=headers)
        assert answer.json()["caption"] == "un été"


@pytest.mark.parametrize("path", ["/caption", CHAT])
async def test_a_deflated_body_is_not_inflated_and_hears_why(path: str) -> None:
    sent = gzip.compress(json.dumps({"prompt": " " * 10**7}).encode())
    async with running() as server:
        headers = {"content-encoding": "gzip"}
        answer = await server.client.post(path, content=sent, headers=headers)
        assert answer.status_code == 415
        assert answer.json()["error"]["code"] == "unsupported_encoding"


@pytest.mark.parametrize("path", ["/", "/web/app.js"])
@pytest.mark.parametrize(
    "asked", ["bytes=0-1", "bytes=9-2", "bytes=x", "bytes=0-,0-,0-", "bytes=9999999-"]
)
async def test_files_of_the_page_come_whole_whatever_part_is_asked_for(
    path: str, asked: str
) -> None:
    async with running() as server:
        whole = await server.client.get(path)
        part = await server.client.get(path, headers={"range": asked})
        assert (part.status_code, part.content) == (200, whole.content)


async def test_a_form_needs_no_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(tempfile, "TemporaryFile", no_room)
    with tempfile.SpooledTemporaryFile(max_size=1) as spool, pytest.raises(OSError, match="large"):
        spool.write(b"ab")
    large = encode(noise(900, 900), "BMP")
    assert len(large) > 2_400_000
    async with running() as server:
        answer = await server.client.post("/caption", files={"image": ("a.bmp", large)})
        assert (answer.status_code, server.runner.pictures[0].size) == (200, (900, 900))
