"""`/docs`: a page of ours that loads nothing from elsewhere, with examples that work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from server_fakes import running
from tiny_server import serving

from server.api import examples
from server.api.schemas import CaptionAnswer, ErrorAnswer
from server.settings import EMBEDDED

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).parents[3] / "server" / "api" / "swagger"
REQUESTS = [
    pytest.param(path, one["value"], id=f"{path[1:]}-{name}")
    for path, named in examples.REQUESTS.items()
    for name, one in named.items()
]


async def test_the_page_and_its_files_come_from_the_server() -> None:
    async with running() as server:
        page = await server.client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert {"docs/swagger-ui-bundle.js", "docs/swagger-ui.css", "docs/docs.js"} <= set(named)
        for path in named:
            # Relative, so that they are right below any path of a proxy.
            assert not path.startswith(("/", "http"))
            assert (await server.client.get(f"/{path}")).status_code == 200, path


@pytest.mark.parametrize("path", ["/docs", "/docs/docs.js", "/docs/swagger-ui.css"])
async def test_the_headers_let_it_load_nothing_else(path: str) -> None:
    async with running() as server:
        headers = (await server.client.get(path)).headers
        policy = dict(
            rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
        assert policy["img-src"] == "'self' blob: data:"
        assert headers["x-content-type-options"] == "nosniff"


def test_the_style_sheets_ask_for_nothing() -> None:
    for file in FOLDER.glob("*.css"):
        links = re.findall(r"url\(\s*[\"']?([^)]{0,30})", file.read_text(encoding="utf-8"))
        assert all(link.startswith("data:") for link in links), file
    assert "@import" not in (FOLDER / "swagger-ui.css").read_text(encoding="utf-8")


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_an_example_gets_a_caption(path: str, body: dict[str, Any]) -> None:
    async with serving(EMBEDDED) as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert "error" not in answer.text


async def test_every_body_and_answer_has_an_example() -> None:
    async with running() as server:
        document = (await server.client.get("/openapi.json")).json()
        posts = {path: one["post"] for path, one in document["paths"].items() if "post" in one}
        assert set(posts) == set(examples.REQUESTS)
        for path, operation in posts.items():
            body = operation["requestBody"]["content"]["application/json"]
            assert body["examples"] == examples.REQUESTS[path]
            for kind in ("application/json", "text/event-stream"):
                assert operation["responses"]["200"]["content"][kind]["example"], path


def test_the_answers_of_the_examples_fit_their_schemas() -> None:
    CaptionAnswer.model_validate(examples.ANSWERS["/caption"])
    for error in (examples.ERROR, examples.UNAUTHORIZED):
        ErrorAnswer.model_validate(error)
