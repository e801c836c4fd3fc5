"""Adds to the OpenAPI document what routes and middleware do by themselves: bodies, keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic.json_schema import models_json_schema

from server.api import examples
from server.api.openai_body import ChatBody
from server.api.schemas import CaptionBody, RefineBody

if TYPE_CHECKING:
    from collections.abc import Collection

    from fastapi import FastAPI
    from pydantic import BaseModel

_TEMPLATE: Final = "#/components/schemas/{model}"


def complete(app: FastAPI, open_paths: Collection[str] | None) -> None:
    """Add bodies, examples and the API key to `app.openapi()`.

    `open_paths` are the routes that need no key; None: the server has no keys.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = generate()
        names: dict[str, type[BaseModel]] = {
            "/caption": CaptionBody,
            "/refine": RefineBody,
            "/v1/chat/completions": ChatBody,
        }
        _, definitions = models_json_schema(
            [(body, "validation") for body in names.values()], ref_template=_TEMPLATE
        )
        document["components"]["schemas"] |= definitions["$defs"]
        for path, body in names.items():
            reference = {"$ref": _TEMPLATE.format(model=body.__name__)}
            content: dict[str, Any] = {
                "application/json": {"schema": reference, "examples": examples.REQUESTS[path]}
            }
            if issubclass(body, CaptionBody):
                content["multipart/form-data"] = {"schema": _form(definitions, body.__name__)}
            request_body = {"required": True, "content": content}
            operation = document["paths"][path]["post"]
            operation["requestBody"] = request_body
            answers = operation["responses"]["200"]["content"]
            answers["application/json"]["example"] = examples.ANSWERS[path]
            answers["text/event-stream"] = {
                "schema": {"description": "With `stream`: server-sent events."},
                "example": examples.STREAMS[path],
            }
            operation["responses"]["400"]["content"]["application/json"]["example"] = examples.ERROR
        if open_paths is not None:
            _require_key(document, open_paths)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _require_key(document: dict[str, Any], open_paths: Collection[str]) -> None:
    """Add the security scheme, and to each route whether it needs a key."""
    document["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "One of the server's API keys: `Authorization: Bearer KEY`.",
        }
    }
    document["security"] = [{"key": []}]
    error = {"$ref": _TEMPLATE.format(model="ErrorAnswer")}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path in open_paths:
                operation["security"] = []
                continue
            operation["security"] = [{"key": []}]
            operation["responses"]["401"] = {
                "description": "No key, or none of this server's.",
                "content": {
                    "application/json": {"schema": error, "example": examples.UNAUTHORIZED}
                },
            }


def _form(definitions: dict[str, Any], name: str) -> dict[str, Any]:
    """The form of a body: its picture as a file, its sampling as JSON in a string."""
    schema: dict[str, Any] = definitions["$defs"][name]
    properties = schema["properties"] | {
        "image": {"type": "string", "format": "binary"},
        "sampling": {"type": "string", "description": "JSON, as in the JSON body."},
    }
    return schema | {"properties": properties}
