"""Servers and pages for the tests of the playground."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playground_page import Playground, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser

    Open = Callable[..., Playground]


@pytest.fixture(scope="session")
def base() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture(scope="session")
def guarded() -> Iterator[str]:
    """A server that wants a key and takes small bodies only."""
    with serving(
        "--max-body-bytes", "50000", "--max-image-bytes", "50000", REDIFF_API_KEYS="sesame"
    ) as address:
        yield address


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens the page with context options; checks every page at the end."""
    opened: list[Playground] = []

    def open_one(server: str = "base", **options: Any) -> Playground:
        address: str = request.getfixturevalue(server)
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        opened.append(Playground(context.new_page(), address))
        opened[-1].open()
        return opened[-1]

    yield open_one
    for playground in opened:
        playground.page.context.close()
        playground.check()
