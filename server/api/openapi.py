"""Adds to the OpenAPI document what routes and middleware do by themselves: bodies, keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic.json_schema import models_json_schema

from server.api.openai_body import ChatBody
from server.api.schemas import CaptionBody, RefineBody

if TYPE_CHECKING:
    from fastapi import FastAPI
    from pydantic import BaseModel

_TEMPLATE: Final = "#/components/schemas/{model}"


def complete(app: FastAPI, *, keyed: bool) -> None:
    """Make `app.openapi()` tell what `/caption`, `/refine` and the chat route take, and of keys."""
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
            content: dict[str, Any] = {"application/json": {"schema": reference}}
            if issubclass(body, CaptionBody):
                content["multipart/form-data"] = {"schema": _form(definitions, body.__name__)}
            request_body = {"required": True, "content": content}
            operation = document["paths"][path]["post"]
            operation["requestBody"] = request_body
            operation["responses"]["200"]["content"]["text/event-stream"] = {
                "schema": {"description": "With `stream`: server-sent events."}
            }
        if keyed:
            document["components"]["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer"}
            }
            document["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _form(definitions: dict[str, Any], name: str) -> dict[str, Any]:
    """The form of a body: its picture as a file, its sampling as JSON in a string."""
    schema: dict[str, Any] = definitions["$defs"][name]
    properties = schema["properties"] | {
        "image": {"type": "string", "format": "binary"},
        "sampling": {"type": "string", "description": "JSON, as in the JSON body."},
    }
    return schema | {"properties": properties}
