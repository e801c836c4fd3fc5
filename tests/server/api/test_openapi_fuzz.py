"""schemathesis against our OpenAPI document: what is sent and answered fits it, or is refused."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import pytest
import schemathesis
from fuzz_settings import examples
from hypothesis import given
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance
from server_fakes import running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemathesis import Case

OPERATIONS = (
    ("/caption", "POST"),
    ("/refine", "POST"),
    ("/v1/chat/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{name}", "GET"),
    ("/version", "GET"),
    ("/metrics", "GET"),
    ("/health", "GET"),
    ("/health/live", "GET"),
    ("/health/ready", "GET"),
)


@contextmanager
def api() -> Iterator[tuple[Any, Any]]:
    """The document as schemathesis sees it, and the server it describes."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(running(max_canvas=64)) as server,
    ):
        yield schemathesis.openapi.from_asgi("/openapi.json", server.app), server


def conform(path: str, method: str, count: int) -> None:
    with api() as (schema, server):

        @examples(count)
        @given(schema[path][method].as_strategy())
        def send(case: Case[Any]) -> None:
            # No schema can say that a text is a picture in base64, so what fits may be refused.
            excluded: list[Any] = [positive_data_acceptance, not_a_server_error]
            answer = case.call_and_validate(excluded_checks=excluded)
            if answer.status_code >= 500:
                # A caller may ask for an answer within no time at all.
                assert answer.json()["error"]["code"] == "deadline_exceeded"

        send()
        assert server.service.active == 0
        assert server.service.status == "ready"


def test_every_operation_is_tried() -> None:
    with api() as (schema, _):
        operations = [result.ok() for result in schema.get_all_operations()]
        assert {(one.path, one.method.upper()) for one in operations} == set(OPERATIONS)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_fit_the_document(path: str, method: str) -> None:
    conform(path, method, 15 if method == "POST" or "{" in path else 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("path", "method"), OPERATIONS[:3])
def test_many_answers_fit_the_document(path: str, method: str) -> None:
    conform(path, method, 1000)
