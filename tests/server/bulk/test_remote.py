"""A run on a server: what is sent, what is tried again, and what ends the run."""

from __future__ import annotations

import json
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from bulk_case import NOT_READ, item, png, run_over, write_pictures
from server_fakes import CANVAS, DEFAULT_CAPTION
from server_wire import serving

from server.bulk.inputs import Inputs
from server.bulk.item import BulkError, Captioned, PictureError
from server.bulk.options import BulkOptions
from server.bulk.order import Order
from server.bulk.outputs import Doubt, Sidecars
from server.bulk.remote import Remote
from server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANSWER = {
    "id": "cap-1",
    "model": "m",
    "caption": "a pear",
    "finish_reason": "stop",
    "usage": {"image_tokens": 1, "prompt_tokens": 2, "caption_tokens": 3},
    "steps": 4,
    "revisions": 5,
    "timing": {"decode": 0, "vision": 0, "queue": 0, "generate": 0, "total": 0},
    "tokens": [],
    "words": [],
    "caption_confidence": 0.5,
}
CAPTIONED = Captioned("a pear", 0.5, 5, 4, "stop")


class Scripted:
    """A server that gives these answers to captions, one after the other."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/version":
            return httpx.Response(200, json={"model": "m", "canvas_length": CANVAS})
        if request.url.path == "/health/ready":
            return httpx.Response(200, json={})
        assert request.url.path == "/caption"
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def remote(
    server: Callable[[httpx.Request], httpx.Response],
    *,
    key: str | None = None,
    retries: int = 2,
    prompt: str | None = None,
    told: list[str] | None = None,
    **given: Any,
) -> Remote:
    order = Order.read(Settings.read({"model": "fake"}), given, prompt)
    transport = httpx.MockTransport(server)
    heard: list[str] = [] if told is None else told
    return Remote.open("http://test", key, order, 1000, 2, retries, heard.append, transport)


def result_of(server: Scripted, tmp_path: Path, **given: Any) -> Captioned | PictureError:
    (path,) = write_pictures(tmp_path, ["a.png"])
    captioner = remote(server, **given)
    try:
        captioner.submit(7, item(path))
        number, result = captioner.take()
        assert number == 7
        return result
    finally:
        captioner.close()


def refusal(status: int, param: str | None = None, **headers: str) -> httpx.Response:
    error = {"message": "no", "type": "t", "param": param, "code": "c"}
    return httpx.Response(status, json={"error": error}, headers=headers)


def test_a_picture_goes_with_prompt_settings_and_key(tmp_path: Path) -> None:
    server = Scripted(httpx.Response(200, json=ANSWER))
    given = {"steps": 3, "seed": 1, "max_new_tokens": 5}
    result = result_of(server, tmp_path, key="secret", prompt="what?", **given)
    assert result == CAPTIONED
    (request,) = server.requests
    assert request.headers["authorization"] == "Bearer secret"
    body = request.content
    assert png(0) in body
    assert b'name="prompt"\r\n\r\nwhat?\r\n' in body
    assert b'name="return_tokens"\r\n\r\ntrue\r\n' in body
    sampling = body.split(b'name="sampling"\r\n\r\n')[1].split(b"\r\n")[0]
    expected = {"steps": 3, "seed": 1, "canvas_length": 5}
    assert json.loads(sampling) == expected


@pytest.mark.parametrize(
    "refused",
    [
        refusal(429, **{"retry-after": "0"}),
        refusal(503, **{"retry-after": formatdate(time.time() - 5, usegmt=True)}),
        httpx.Response(502, text="bad gateway", headers={"retry-after": "0"}),
    ],
    ids=["429", "503", "502"],
)
def test_a_busy_server_is_asked_again(tmp_path: Path, refused: httpx.Response) -> None:
    server = Scripted(refused, refused, httpx.Response(200, json=ANSWER))
    assert result_of(server, tmp_path) == CAPTIONED
    assert server.answers == []


def test_a_lost_connection_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    server = Scripted(
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.Response(200, json=ANSWER),
    )
    told: list[str] = []
    assert result_of(server, tmp_path, told=told) == CAPTIONED
    assert told == ["http://test cannot be reached: refused; trying again"]


def test_every_outage_is_told_once_and_a_busy_server_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    captions = [httpx.Response(200, json=ANSWER) for _ in range(2)]
    first, second = httpx.ConnectError("first"), refusal(503, **{"retry-after": "0"})
    server = Scripted(
        refusal(429, **{"retry-after": "0"}), first, first, captions[0], second, captions[1]
    )
    told: list[str] = []
    captioner = remote(server, retries=5, told=told)
    (path,) = write_pictures(tmp_path, ["a.png"])
    for number in range(2):
        captioner.submit(number, item(path))
        captioner.take()
    captioner.close()
    assert [line.split(": ")[1] for line in told] == ["first; trying again", "no; trying again"]


def test_what_the_server_asks_to_wait_is_waited(tmp_path: Path) -> None:
    server = Scripted(refusal(429, **{"retry-after": "1"}), httpx.Response(200, json=ANSWER))
    began = time.monotonic()
    assert result_of(server, tmp_path) == CAPTIONED
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    "answer",
    [refusal(400, "image"), refusal(413), refusal(415, "image"), refusal(500), refusal(504)],
    ids=["broken", "large", "format", "failed", "late"],
)
def test_what_is_wrong_with_one_picture_is_told_of_it(
    tmp_path: Path, answer: httpx.Response
) -> None:
    result = result_of(Scripted(answer), tmp_path)
    assert isinstance(result, PictureError)
    assert str(result) == f"the server answers with status {answer.status_code}: no"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([refusal(401)], "status 401: no; the key is read from REDIFF_API_KEY"),
        ([refusal(400, "sampling.steps")], "status 400: no"),
        ([httpx.Response(404, text="nothing")], "status 404"),
        ([httpx.Response(200, text="<html>")], "is no server of captions"),
        ([refusal(429, **{"retry-after": "0"})] * 3, r"status 429: no \(3 attempts\)"),
    ],
)
def test_what_is_wrong_with_every_picture_ends_the_run(
    tmp_path: Path, answers: list[httpx.Response], message: str
) -> None:
    with pytest.raises(BulkError, match=message):
        result_of(Scripted(*answers), tmp_path)


@pytest.mark.parametrize(
    "base_url",
    ["", "localhost:8000", "ftp://x", "http://", "http://[::1", "/caption", "http://h:1/v1"],
)
def test_an_address_that_is_none_is_refused(base_url: str, tmp_path: Path) -> None:
    with pytest.raises(BulkError, match=r"^--base-url: .*, got "):
        BulkOptions.read({"files": [tmp_path], "base_url": base_url})


def test_an_address_as_it_is_copied_works(tmp_path: Path) -> None:
    options = BulkOptions.read({"files": [tmp_path], "base_url": " http://0.0.0.0:8000/ "})
    assert options.base_url == "http://127.0.0.1:8000"


def test_a_name_that_no_lookup_takes_is_one_line() -> None:
    order = Order.read(Settings.read({"model": "fake"}), {}, None)
    with pytest.raises(BulkError, match=r"^--base-url http://"):
        Remote.open("http://\N{PILE OF POO}", None, order, 1000, 2, 0, print)


def test_a_request_has_room_for_one_identity() -> None:
    order = Order.read(Settings.read({"model": "fake"}), {}, None)
    with pytest.raises(BulkError, match="has room for one") as error:
        Remote.open("http://me:secret@test", "key", order, 1000, 2, 0, print)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ConnectTimeout(""), httpx.ProxyError("407")]
)
def test_a_server_that_was_never_there_is_asked_once(
    error: httpx.TransportError, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[httpx.Request] = []
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@proxy:3128")

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise error

    told: list[str] = []
    with pytest.raises(BulkError) as caught:
        remote(refuse, retries=8, told=told)
    assert len(asked) == 1
    way = "through the proxy http://***@proxy:3128 (HTTP_PROXY)"
    assert str(caught.value).startswith(f"--base-url http://test cannot be reached {way}: ")
    assert told == [f"http://test is asked {way}"]


def test_a_server_that_fails_while_it_is_asked_what_it_runs_is_one_line() -> None:
    with pytest.raises(BulkError, match="status 500"):
        remote(lambda request: httpx.Response(500), retries=0)


def test_loopback_is_reached_whatever_the_proxies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks://127.0.0.1:7890")
    order = Order.read(Settings.read({"model": "fake"}), {}, None)
    with serving() as address:
        Remote.open(f"http://{address}", None, order, 1000, 1, 0, print).close()
    with pytest.raises(BulkError, match=r"^HTTP_PROXY=socks://.* must be one of|^http_proxy="):
        Remote.open("http://example.org", None, order, 1000, 1, 0, print)


def test_another_kind_of_server_is_told() -> None:
    with pytest.raises(BulkError, match="is no server of captions"):
        remote(lambda request: httpx.Response(200, json={"version": "1"}))
    with pytest.raises(BulkError, match="status 404"):
        remote(lambda request: httpx.Response(404))


def test_a_real_server_captions_a_folder_and_refuses_strangers(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, [f"{number}.png" for number in range(9)])
    paths[4].write_bytes(b"no picture")
    order = Order.read(Settings.read({"model": "fake"}), {}, None)
    with serving(max_batch=2, api_keys="secret") as address:
        url = f"http://{address}"
        with pytest.raises(BulkError, match=r"status 401: .* none of this server"):
            Remote.open(url, "wrong", order, 1000, 3, 0, print)
        captioner = Remote.open(url, "secret", order, 1000, 3, 0, print)
        assert captioner.model == "fake"
        output = Sidecars(None, None, Doubt(None), overwrite=False)
        try:
            _, failures = run_over(Inputs((tmp_path,)), output, captioner)
        finally:
            captioner.close()
    assert [(name, reason) for name, _, reason in failures] == [
        (
            "4.png",
            f"the server answers with status 415: {NOT_READ}",
        )
    ]
    texts = [path.read_text() for path in tmp_path.glob("*.txt")]
    assert texts == [DEFAULT_CAPTION + "\n"] * 8
