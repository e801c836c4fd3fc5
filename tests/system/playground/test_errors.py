"""What the playground shows when the server refuses or is gone, and how it asks for a key."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from playground_page import SSE, TURTLE
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from playground_page import Playground
    from playwright.sync_api import FilePayload

    Open = Callable[..., Playground]

pytestmark = pytest.mark.system

WAITING_SECONDS = 3
STEP = {"step": 1, "steps": 2, "masked": 1, "text": "A▒"}
CHANGE = {"position": 0, "id": 9, "text": "A", "confidence": 0.5, "kind": "reveal", "was": None}


def error_json(code: str, message: str) -> str:
    return json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}})


@pytest.mark.parametrize(
    ("status", "code", "title"),
    [
        (413, "body_too_large", "The picture is too large"),
        (500, "internal", "The server failed"),
        (503, "not_ready", "The server is not available"),
        (504, "deadline", "The caption took too long"),
    ],
)
def test_refusals_are_shown_as_the_server_words_them(
    open_page: Open, status: int, code: str, title: str
) -> None:
    playground = open_page()
    headers = {"content-type": "application/json", "x-request-id": "abc"}
    playground.answer_with(status, headers, error_json(code, "words of the server"))
    playground.page.click("#run")
    said = playground.page.locator(".said")
    for part in (title, "words of the server", f"HTTP {status}", code, "request abc"):
        expect(said).to_contain_text(part)
    expect(playground.page.locator(".again")).to_be_enabled()


def test_a_full_queue_says_when_to_come_back(open_page: Open) -> None:
    playground = open_page()
    headers = {"content-type": "application/json", "retry-after": str(WAITING_SECONDS)}
    playground.answer_with(429, headers, error_json("queue_full", "256 requests wait"))
    playground.page.click("#run")
    again = playground.page.locator(".again")
    expect(again).to_have_text(re.compile("Try again in [123] s"))
    expect(again).to_be_disabled()
    expect(again).to_be_enabled()
    playground.page.unroute("**/caption")
    again.click()
    playground.wait()


def test_what_is_no_picture_is_refused_by_the_server(open_page: Open) -> None:
    playground = open_page()
    page = playground.page
    # Without a type that the page could go by.
    note: FilePayload = {
        "name": "notes",
        "mimeType": "application/octet-stream",
        "buffer": b"hello",
    }
    page.set_input_files("#file", files=[note])
    page.click("#run")
    expect(page.locator(".said")).to_contain_text("not a picture")
    expect(page.locator(".said")).to_contain_text("HTTP 415")


@pytest.mark.parametrize("lost", ["before", "on the way", "error event"])
def test_a_lost_connection_is_told(open_page: Open, lost: str) -> None:
    playground = open_page()
    step = f"event: step\ndata: {json.dumps(STEP | {'changed': [CHANGE]})}\n\n"
    if lost == "before":
        playground.page.route("**/caption", lambda route: route.abort("connectionrefused"))
    elif lost == "on the way":
        playground.answer_with(200, SSE, step)
    else:
        failure = error_json("engine_down", "the engine stopped")
        playground.answer_with(200, SSE, f"{step}event: error\ndata: {failure}\n\n")
    playground.page.click("#run")
    words = {"before": "No connection", "on the way": "broke off", "error event": "engine stopped"}
    expect(playground.page.locator(".said")).to_contain_text(words[lost])
    # What had come before stays to be looked at.
    assert playground.page.locator(".canvas .cell").count() == (0 if lost == "before" else 2)


def test_a_guarded_server_is_asked_with_a_key(open_page: Open) -> None:
    playground = open_page("guarded")
    page = playground.page
    expect(page.locator("#server")).to_have_text("API key needed")
    expect(page.locator("#key")).to_be_focused()
    page.click("#run")
    expect(page.locator(".said")).to_contain_text("An API key is needed")
    page.fill("#key", "sesame")
    page.locator("#key").press("Tab")
    expect(page.locator("#server")).to_have_attribute("data-state", "ready")
    playground.run(tokens_per_step="16")
    stored = "[document.cookie, localStorage.length, sessionStorage.length]"
    assert page.evaluate(stored) == ["", 0, 0]
    page.click(".copy-curl")
    # The command is made while the page goes on.
    expect(page.locator("#curl-text")).to_be_visible()
    command = page.input_value("#curl-text")
    assert "sesame" not in command
    environment = os.environ | {"REDIFF_API_KEY": "sesame"}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout)["caption"] == playground.caption()
    page.locator("#curl button").click()
    big: FilePayload = {
        "name": "big.png",
        "mimeType": "image/png",
        "buffer": TURTLE + bytes(60_000),
    }
    page.set_input_files("#file", files=[big])
    expect(page.locator("#picture-problem")).to_contain_text("pictures of up to 49 kB")
