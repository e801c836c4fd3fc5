"""Clients that end their side of a connection first, to wait for the answer or to leave."""

from __future__ import annotations

import base64
import json
import socket
from typing import TYPE_CHECKING

import httpx
import pytest
from server_fakes import DEFAULT_CAPTION, FakeRunner, png
from server_wire import serving

from server.api import half_close

if TYPE_CHECKING:
    from collections.abc import Iterator


PICTURE = base64.b64encode(png()).decode()


def request(
    path: str = "/caption", version: str = "1.1", more: str = "", **fields: object
) -> bytes:
    body = json.dumps({"image": {"base64": PICTURE}, **fields}).encode()
    return (
        f"POST {path} HTTP/{version}\r\nhost: test\r\n{more}content-length: {len(body)}\r\n\r\n"
    ).encode() + body


def ask(address: str, sent: bytes) -> bytes:
    """Whatever comes back to a client that ends its side at once."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(2**16):
            received += part
    return received


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def address(runner: FakeRunner) -> Iterator[str]:
    with serving(lambda: runner) as address:
        yield address


@pytest.mark.parametrize(
    "sent",
    [
        request(),
        request(more="connection: close\r\n"),
        request(more="connection: keep-alive\r\n"),
        request(version="1.0"),
        request(stream=True),
        request("/refine", draft="a pear"),
    ],
)
def test_a_client_that_ends_its_side_first_is_answered(address: str, sent: bytes) -> None:
    answer = ask(address, sent)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert DEFAULT_CAPTION.encode() in answer or b"a pear" in answer
    metrics = httpx.get(f"http://{address}/metrics").text
    assert 'rediff_requests_total{outcome="caption"} 1.0' in metrics
    assert 'outcome="cancelled"' not in metrics


def test_every_request_that_was_sent_is_answered(address: str) -> None:
    assert (
        ask(address, request() + request() + b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").count(
            b"HTTP/1.1 200 "
        )
        == 3
    )


def test_a_part_of_a_request_gets_no_answer(address: str) -> None:
    assert ask(address, request()[:-1]) == b""
    assert ask(address, b"GET / HTTP/1.1\r\n") == b""
    assert ask(address, b"") == b""


def test_a_client_that_waits_long_gets_its_answer_after_words_of_patience(
    address: str, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_close, "LOOK_SECONDS", 0.005)
    runner.free_running = False
    host, port = address.split(":")
    patience = b"HTTP/1.1 100 Continue\r\n\r\n"
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(request())
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while received.count(patience) < 3:
            received += connection.recv(2**16)
        runner.free_running = True
        runner.steps_allowed.release(100)
        while part := connection.recv(2**16):
            received += part
    answer = received.replace(patience, b"")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert DEFAULT_CAPTION.encode() in answer


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_has_left_frees_its_place(
    address: str, runner: FakeRunner, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    monkeypatch.setattr(half_close, "LOOK_SECONDS", 0.005)
    runner.free_running = False
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(request(stream=stream))
    with httpx.Client(base_url=f"http://{address}") as client:
        # Only the steps of the others end, and they are never allowed: the test's own limit of
        # time is what fails.
        while 'outcome="cancelled"} 1.0' not in client.get("/metrics").text:
            continue
    runner.free_running = True
    runner.steps_allowed.release(100)
