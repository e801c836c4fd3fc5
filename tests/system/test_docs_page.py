"""`/docs` in Chromium: it asks only its own host, with a key, below a path, on a phone."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from server_wire import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.system
PREFIX = "/captions"
KEY = "sesame"


@contextmanager
def proxied(target: str) -> Iterator[str]:
    """A reverse proxy that serves `target` below a path; its address."""

    class Proxy(BaseHTTPRequestHandler):
        def answer(self) -> None:
            if not self.path.startswith(PREFIX + "/"):
                self.send_error(404)
                return
            size = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(size) if size else None
            request = urllib.request.Request(
                target + self.path.removeprefix(PREFIX), body, method=self.command
            )
            for name in ("content-type", "authorization", "accept"):
                if self.headers.get(name):
                    request.add_header(name, self.headers[name])
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            try:
                answer = opener.open(request)
            except urllib.error.HTTPError as error:
                answer = error
            content = answer.read()
            self.send_response(answer.status)
            for name in ("content-type", "content-security-policy"):
                if answer.headers.get(name):
                    self.send_header(name, answer.headers[name])
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, *arguments: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}{PREFIX}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


@contextmanager
def opened(browser: Browser, address: str, width: int = 1280) -> Iterator[Page]:
    """The page; at the end it has asked nobody else, and the browser has blocked nothing."""
    context = browser.new_context(viewport={"width": width, "height": 800})
    page = context.new_page()
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda one: complaints.append(one.text) if one.type == "error" else None)
    page.goto(f"{address}/docs")
    yield page
    context.close()
    assert f"{address}/openapi.json" in asked
    assert [url for url in asked if not url.startswith((f"{address}/", "data:", "blob:"))] == []
    assert [text for text in complaints if "Failed to load resource" not in text] == []


def try_out(page: Page) -> None:
    """Send the example of `/caption` as it stands, and see its caption."""
    route = page.locator("#operations-captions-caption_caption_post")
    route.locator(".opblock-summary-control").click()
    route.get_by_role("button", name="Try it out").click()
    route.get_by_role("button", name="Execute").click()
    status = route.locator(".live-responses-table .response-col_status").last
    expect(status).to_contain_text("200")
    expect(route.locator(".live-responses-table")).to_contain_text("finish_reason")


def test_an_example_is_sent_from_the_page(browser: Browser) -> None:
    with serving() as address, opened(browser, f"http://{address}") as page:
        try_out(page)


def test_below_the_path_of_a_proxy_with_a_key(browser: Browser) -> None:
    with (
        serving(api_keys=[KEY]) as address,
        proxied(f"http://{address}") as proxy,
        opened(browser, proxy) as page,
    ):
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_role("alert")).to_contain_text("none of this server's keys")
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Open").click()
        # The key that opened the document is also sent with what is tried.
        try_out(page)


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser) -> None:
    with serving() as address, opened(browser, f"http://{address}", width=360) as page:
        try_out(page)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360
