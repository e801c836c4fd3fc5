"""API keys: which routes they guard, what opens them, and what other origins may see."""

from __future__ import annotations

import base64
import hmac
import json
from typing import TYPE_CHECKING, Any

import pytest
from server_fakes import Call, png, running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

BODY = {"image": {"base64": base64.b64encode(png()).decode()}}
KEYS = ("first-key", "second-key")
GUARDED = (
    ("POST", "/caption"),
    ("POST", "/refine"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/version"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
    ("OPTIONS", "/caption"),
)
OPEN = ("/", "/web/app.js", "/docs", "/docs/docs.js", "/health", "/health/live", "/health/ready")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_without_a_key_a_guarded_route_is_401(method: str, path: str) -> None:
    async with running(api_keys=KEYS) as server:
        answer = await server.client.request(method, path)
        assert answer.status_code == 401
        assert answer.json() == {
            "error": {
                "message": "an API key is needed: send the header Authorization: Bearer KEY",
                "type": "authentication_error",
                "param": None,
                "code": "invalid_api_key",
            }
        }
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize("path", OPEN)
async def test_health_and_the_page_need_no_key(path: str) -> None:
    async with running(api_keys=KEYS) as server:
        assert (await server.client.get(path)).status_code == 200


async def test_every_route_but_the_open_ones_is_guarded() -> None:
    async with running(api_keys=KEYS) as server:
        paths = {getattr(route, "path", "") for route in server.app.routes}
        document = (await server.client.get("/openapi.json", headers=bearer(KEYS[0]))).json()
        for path in (paths | set(document["paths"])) - {*OPEN, "", "/web"}:
            for method in ("GET", "POST"):
                answer = await server.client.request(method, path)
                assert answer.status_code == 401, path
        for path, operations in document["paths"].items():
            for operation in operations.values():
                assert operation["security"] == ([] if path in OPEN else [{"key": []}]), path
                assert ("401" in operation["responses"]) == (path not in OPEN), path
        assert document["security"] == [{"key": []}]
        assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


@pytest.mark.parametrize("key", KEYS)
async def test_each_key_opens_every_route(key: str) -> None:
    async with running(api_keys=KEYS) as server:
        answer = await server.client.post("/caption", json=BODY, headers=bearer(key))
        assert answer.status_code == 200
        for path in ("/v1/models", "/version", "/metrics", "/docs"):
            assert (await server.client.get(path, headers=bearer(key))).status_code == 200
        lower = {"authorization": f"bearer  {key} "}
        assert (await server.client.get("/version", headers=lower)).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer first-ke",
        "Bearer first-key2",
        "Bearer FIRST-KEY",
        "Bearer first-key second-key",
        "Bearer first-key,second-key",
        "Basic first-key",
        "first-key",
        "Bearer \xe9\xff",
        "Bearer " + "x" * 50_000,
    ],
)
async def test_anything_else_does_not(authorization: str) -> None:
    async with running(api_keys=KEYS) as server:
        headers = {b"authorization": authorization.encode("latin-1")}
        answer = await server.client.get("/version", headers=headers)
        assert answer.status_code == 401
        assert "first-key" not in answer.text
        told = "holds none of this server's keys" if authorization else "an API key is needed"
        assert told in answer.json()["error"]["message"]


async def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def watch(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return bool(compare(left, right))

    monkeypatch.setattr(hmac, "compare_digest", watch)
    async with running(api_keys=KEYS) as server:
        for key in ("first-key", "second-key", "f", "x" * 1000):
            compared.clear()
            await server.client.get("/version", headers=bearer(key))
            # All keys every time, and digests of one length.
            assert compared == [(32, 32)] * len(KEYS)


@pytest.mark.parametrize(
    "host", ["test/health?", "x/?", "test/health/live#", "x/../health", "a@b/"]
)
async def test_a_host_header_cannot_make_a_route_look_open(host: str) -> None:
    # CVE-2026-48746: the path that was checked came from a URL that held the Host header.
    async with running(api_keys=KEYS) as server:
        call = Call(server.app, "/caption", json.dumps(BODY).encode(), {"host": host})
        await call.task
        assert call.status == 401
        assert server.service.active == 0


@pytest.mark.parametrize(
    "path",
    [
        "/health/../caption",
        "//caption",
        "/caption/",
        "/web/../caption",
        "/web/../version",
        "/docs/../caption",
        "/docs/../version",
    ],
)
async def test_a_crooked_path_leads_nowhere_without_a_key(path: str) -> None:
    async with running(api_keys=KEYS) as server:
        call = Call(server.app, path, json.dumps(BODY).encode(), {})
        await call.task
        assert call.status in (401, 404, 405)
        assert server.runner.batches == []


@pytest.mark.parametrize(
    "path",
    [
        "/web/../../settings.py",
        "/web/%2e%2e/app.py",
        "/web/",
        "/docs/../app.py",
        "/docs/%2e%2e/app.py",
    ],
)
async def test_the_files_of_the_page_are_no_way_to_others(path: str) -> None:
    async with running() as server:
        answer = await server.client.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


async def test_a_refused_body_is_read_but_not_kept() -> None:
    async with running(api_keys=KEYS) as server:
        answer = await server.client.post("/caption", content=b"x" * 100_000)
        assert answer.status_code == 401
        assert answer.headers["connection"] == "close"
        text = (await server.client.get("/metrics", headers=bearer(KEYS[0]))).text
        assert 'rediff_admission_rejections_total{reason="unauthorized"} 1.0' in text


async def test_metrics_can_be_public() -> None:
    async with running(api_keys=KEYS, metrics_public=True) as server:
        assert (await server.client.get("/metrics")).status_code == 200
        assert (await server.client.get("/version")).status_code == 401


async def test_keys_in_a_file_count_as_well(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# those of the team\n\nthird-key\n  fourth-key \n")
    async with running(api_keys=KEYS, api_key_file=str(file)) as server:
        for key in (*KEYS, "third-key", "fourth-key"):
            assert (await server.client.get("/version", headers=bearer(key))).status_code == 200
        for key in ("# those of the team", "fifth-key"):
            assert (await server.client.get("/version", headers=bearer(key))).status_code == 401


async def test_without_keys_everything_is_open() -> None:
    async with running() as server:
        answer = await server.client.get("/version", headers=bearer("whatever"))
        assert answer.status_code == 200
        assert "security" not in (await server.client.get("/openapi.json")).json()


async def test_other_origins_see_nothing_unless_allowed() -> None:
    preflight = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    async with running() as server:
        answer = await server.client.post("/caption", json=BODY, headers=preflight)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (await server.client.options("/caption", headers=preflight)).status_code == 405
    async with running(cors_origins=["https://a.example"], api_keys=KEYS) as server:
        # A preflight bears no key, so it must pass before the keys.
        answer = await server.client.options("/caption", headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        answer = await server.client.post(
            "/caption", json=BODY, headers={"origin": "https://a.example", **bearer(KEYS[0])}
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-credentials" not in answer.headers
        readable = answer.headers["access-control-expose-headers"].split(", ")
        assert readable == ["x-request-id", "retry-after", "x-rediff-warning"]
        refused = await server.client.post("/caption", json=BODY, headers=preflight)
        # A page must be able to read why it was refused.
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
        other = preflight | {"origin": "https://b.example"}
        answer = await server.client.options("/caption", headers=other)
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers


OPENAI_HEADERS = (
    "authorization,content-type,openai-organization,openai-project,x-stainless-arch,"
    "x-stainless-helper-method,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
    "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout"
)


@pytest.mark.parametrize("headers", [OPENAI_HEADERS, "x-my-own", "Authorization, X-Stainless-OS"])
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("allowed", ["https://a.example", "*"])
async def test_a_page_with_the_openai_client_may_ask(
    headers: str, method: str, allowed: str
) -> None:
    preflight = {
        "origin": "https://a.example",
        "access-control-request-method": method,
        "access-control-request-headers": headers,
        "access-control-request-private-network": "true",
    }
    async with running(cors_origins=[allowed], api_keys=KEYS) as server:
        answer = await server.client.options("/v1/chat/completions", headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == allowed
        assert answer.headers["access-control-allow-headers"] == headers
        assert answer.headers["access-control-allow-private-network"] == "true"
    if allowed != "*":
        async with running(cors_origins=["https://b.example"]) as server:
            answer = await server.client.options("/v1/chat/completions", headers=preflight)
            assert answer.status_code == 400
            assert "access-control-allow-origin" not in answer.headers


async def test_the_page_may_load_nothing_from_elsewhere() -> None:
    async with running() as server:
        answer = await server.client.get("/")
        assert answer.headers["content-type"].startswith("text/html")
        policy: dict[str, Any] = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert {policy[name] for name in ("script-src", "style-src", "connect-src")} == {"'self'"}
