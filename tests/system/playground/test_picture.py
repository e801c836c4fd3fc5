"""The picture of a run, what the server takes, and how the server is, in a real Chromium."""

from __future__ import annotations

import json
import urllib.request
from typing import TYPE_CHECKING

import pytest
from playground_page import TURTLE, serving
from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from playground_page import Playground
    from playwright.sync_api import Browser, FilePayload, Route

    Open = Callable[..., Playground]

pytestmark = pytest.mark.system


def png(name: str, extra: int = 0) -> FilePayload:
    """A picture; bytes behind a PNG's end make it larger and change nothing."""
    return {"name": name, "mimeType": "image/png", "buffer": TURTLE + bytes(extra)}


def test_a_click_on_a_sample_captions_it(open_page: Open) -> None:
    playground = open_page()
    page = playground.page
    page.click("[data-sample=rocket]")
    playground.wait()
    assert "rocket" in playground.caption()
    expect(page.locator("#run-picture")).to_have_attribute(
        "alt", "The picture of this run: rocket.png"
    )
    expect(page.locator("#stale")).to_be_hidden()


def test_a_run_belongs_to_its_picture(open_page: Open) -> None:
    playground = open_page()
    page = playground.page
    page.fill("#tokens-per-step", "1")
    page.click("[data-sample=rocket]")
    expect(page.locator("#timeline")).to_be_visible()
    page.set_input_files("#file", files=[png("mine.png")])
    expect(page.locator("#stage")).to_have_attribute("data-stale", "")
    expect(page.locator("#stale")).to_have_text("This run is of rocket.png, not of mine.png.")
    expect(page.locator(".said")).to_contain_text("Stopped")
    expect(page.locator("#run-picture")).to_have_attribute(
        "alt", "The picture of this run: rocket.png"
    )
    playground.run(tokens_per_step="16")
    expect(page.locator("#stale")).to_be_hidden()
    expect(page.locator("#run-picture")).to_have_attribute(
        "alt", "The picture of this run: mine.png"
    )
    assert playground.complaints == []


def test_aborted_runs_leave_no_error_in_the_console(open_page: Open) -> None:
    playground = open_page()
    page = playground.page
    page.fill("#tokens-per-step", "1")
    page.check("#compare")
    page.click("#run")
    expect(page.locator("#timeline")).to_be_visible()
    page.click("#run")
    expect(page.locator("#run")).to_have_text("Caption the picture")
    # Stopped before its first step, and replaced by another run.
    page.click("#run")
    page.click("#run")
    page.click("[data-sample=snail]")
    page.click("[data-sample=horse]")
    expect(page.locator(".canvas .cell").first).to_be_visible()
    page.click("#run")
    expect(page.locator(".said")).to_have_count(2)
    # Not even what the browser itself says of failed requests.
    assert playground.complaints == []


def test_the_page_tells_what_the_checkpoint_knows(open_page: Open, base: str) -> None:
    with urllib.request.urlopen(f"{base}version") as answer:
        version = json.load(answer)
    notice = open_page().page.locator("#domain")
    expect(notice).to_have_text(f"What {version['model']} knows {version['domain']}")
    assert "stickers" in version["domain"]


def test_pictures_that_the_server_would_refuse_are_not_sent(open_page: Open, base: str) -> None:
    playground = open_page()
    page = playground.page
    problem = page.locator("#picture-problem")
    note: FilePayload = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    page.set_input_files("#file", files=[note])
    expect(problem).to_contain_text("notes.txt is text/plain; this server reads JPEG, PNG")
    page.set_input_files("#file", files=[png("big.png", 21 * 2**20)])
    expect(problem).to_have_text(
        "big.png has 21.0 MB; this server takes pictures of up to 20.0 MB."
    )
    page.click("#run")
    assert f"{base}caption" not in playground.asked
    page.set_input_files("#file", files=[png("small.png")])
    expect(problem).to_be_hidden()
    assert page.get_attribute("#file", "accept") == ",".join(
        f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")
    )
    playground.run(tokens_per_step="16")


def test_a_slow_link_shows_how_far_it_is(open_page: Open) -> None:
    playground = open_page()
    page = playground.page
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 60_000}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    page.set_input_files("#file", files=[png("mine.png", 200_000)])
    page.fill("#tokens-per-step", "16")
    page.click("#run")
    sending = page.locator(".sending")
    expect(sending).to_contain_text("of 209 kB")
    part = page.evaluate("document.querySelector('.sending progress').value")
    assert 0 < part < 1
    playground.wait()
    expect(sending).to_be_hidden()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("loading", "embedded is loading"),
        ("draining", "embedded is stopping and takes no new requests"),
        ("failed", "embedded has failed"),
    ],
)
def test_the_badge_follows_the_server(open_page: Open, status: str, words: str) -> None:
    page = open_page().page
    badge = page.locator("#server")
    expect(badge).to_have_text("embedded on cpu")

    def answer(route: Route) -> None:
        route.fulfill(json=route.fetch().json() | {"status": status})

    page.route("**/version", answer)
    page.locator("#key").evaluate("key => key.dispatchEvent(new Event('change'))")
    expect(badge).to_have_text(words)
    expect(badge).to_have_attribute("data-state", status)
    # It is asked again by itself.
    page.unroute("**/version")
    expect(badge).to_have_text("embedded on cpu")


def test_the_badge_sees_the_server_go(browser: Browser) -> None:
    from playground_page import Playground

    with serving() as address:
        playground = Playground(browser.new_page(), address)
        playground.open()
    badge = playground.page.locator("#server")
    expect(badge).to_have_text("The server is gone")
    expect(badge).to_have_attribute("data-state", "gone")
    playground.page.close()
    playground.check()


def test_the_drop_overlay_covers_the_page(open_page: Open) -> None:
    playground = open_page()
    playground.run(tokens_per_step="16")
    page = playground.page
    page.evaluate("document.body.toggleAttribute('data-dropping', true)")
    above = page.evaluate(
        """() => {
            const overlay = getComputedStyle(document.body, "::after");
            const others = [...document.querySelectorAll("body *")].filter((e) => e.offsetParent);
            return Number(overlay.zIndex) - Math.max(
                ...others.map((e) => Number(getComputedStyle(e).zIndex) || 0));
        }"""
    )
    assert above > 0
