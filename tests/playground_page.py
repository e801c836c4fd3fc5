"""A real server and a real Chromium for the tests of the playground."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Locator, Page

ROOT = Path(__file__).parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SSE = {"content-type": "text/event-stream"}
TURTLE = (ROOT / "server" / "api" / "web" / "samples" / "turtle.png").read_bytes()
"""The picture that is chosen at first."""
LOAD_SECONDS = 120
RUN_MS = 60_000


def find_chromium() -> str | None:
    """Path of a Chromium: `REDIFF_CHROMIUM`, else one of the usual names."""
    found = (shutil.which(name) for name in (os.environ.get("REDIFF_CHROMIUM", ""), *NAMES) if name)
    return next(filter(None, found), None)


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[str]:
    """A server with the embedded checkpoint; its address ends in a slash."""
    command = [sys.executable, "-c", "from server.cli import main; main()", "serve"]
    lines: list[str] = []
    ready = threading.Event()
    with subprocess.Popen(
        [*command, "--port", "0", "--threads", "1", *options],
        cwd=ROOT,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:

        def read() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line)
                if "is ready at" in line:
                    ready.set()
            ready.set()

        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert ready.wait(LOAD_SECONDS)
            address = re.search(r"is ready at (http://\S+)", "".join(lines))
            assert address, "".join(lines)
            yield f"{address[1]}/"
        finally:
            process.terminate()
            process.wait(60)
            reader.join()


class Playground:
    """The page, and everything it asked for and complained about."""

    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text)
                if message.type in ("error", "warning")
                else None
            ),
        )

    def open(self) -> None:
        self.page.goto(self.base)
        expect(self.page.locator("#preview")).to_be_visible()
        expect(self.page.locator("#server")).not_to_have_attribute("data-state", "loading")

    def run(self, *, panels: int = 1, **fields: str) -> None:
        """Fill in the fields (underscores for hyphens), start, and wait for the end."""
        for name, value in fields.items():
            self.page.fill(f"#{name.replace('_', '-')}", value)
        self.page.click("#run")
        self.wait(panels)

    def wait(self, panels: int = 1) -> None:
        expect(self.page.locator(".panel[data-over]")).to_have_count(panels, timeout=RUN_MS)

    def cells(self, kind: str, panel: int = 0) -> Locator:
        return self.page.locator(".panel").nth(panel).locator(f'.cell[data-kind="{kind}"]')

    def count(self, name: str, panel: int = 0) -> str:
        found = self.page.locator(".panel").nth(panel).locator(f'[data-count="{name}"]')
        return found.inner_text()

    def caption(self, panel: int = 0) -> str:
        shown: str = self.page.evaluate(
            "panel => document.querySelectorAll('.caption')[panel].firstChild.data", panel
        )
        return shown

    def answer_with(self, status: int, headers: dict[str, str], body: str) -> None:
        """Let `POST /caption` be answered like this instead of by the server."""
        self.page.route(
            "**/caption", lambda route: route.fulfill(status=status, headers=headers, body=body)
        )

    def check(self) -> None:
        """Nothing was asked of anybody else, and the console is clean.

        The browser itself reports every answer of 400 and above there.
        """
        outside = [url for url in self.asked if not url.startswith((self.base, "blob:"))]
        assert outside == []
        assert [text for text in self.complaints if "Failed to load resource" not in text] == []


def caption_of(base: str, picture: bytes, sampling: dict[str, Any]) -> dict[str, Any]:
    """What the server answers without the page."""
    boundary = "boundary-of-the-test"
    parts = [
        b'name="image"; filename="x.png"\r\n\r\n' + picture,
        b'name="sampling"\r\n\r\n' + json.dumps(sampling).encode(),
    ]
    head = f"--{boundary}\r\nContent-Disposition: form-data; ".encode()
    body = b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    with urllib.request.urlopen(urllib.request.Request(f"{base}caption", body, kind)) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
