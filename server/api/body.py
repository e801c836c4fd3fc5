"""From a request's body, JSON or multipart, to a checked model."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.api.schemas import CaptionBody, FileSource, SamplingOptions
from server.errors import BadBody

if TYPE_CHECKING:
    from starlette.requests import Request

M = TypeVar("M", bound=BaseModel)
B = TypeVar("B", bound=CaptionBody)

_SMALL: Final = 2**16
"""Bodies up to this many bytes are parsed in the event loop."""
_MAX_SEPARATORS: Final = 20_000
"""Commas and colons of a JSON body: more than good fields and texts have. What they separate
becomes objects and errors before it is refused, each a hundred times as large."""
_MAX_MEDIA_TYPE: Final = 1000
"""Characters; the time that parsing takes grows with their square."""
_MAX_FIELDS: Final = 20
_MAX_FIELD_BYTES: Final = 2**20


class _InMemory(MultiPartParser):
    """Keeps files out of the file system, which may have no room: the body is in memory anyway."""

    spool_max_size = sys.maxsize


async def read_body(request: Request, kind: type[B]) -> B:
    """A caption request, as JSON or as a form with the picture in the file part `image`.

    Raises:
        BadBody: the body does not fit.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return await _read_form(request, kind)
    try:
        return await read_json(request, kind)
    except BadBody as error:
        if error.code != "invalid_json" or media_type == "application/json":
            raise
        # Whoever sends the picture itself as the body needs another hint than a broken bracket.
        message = "the body is neither JSON nor a multipart form"
        raise BadBody(400, "invalid_json", message) from None


async def read_json(request: Request, kind: type[M]) -> M:
    """A JSON body, types taken strictly.

    Raises:
        BadBody: not JSON, or not of the schema.
    """
    _check_encoding(request)
    # Not `request.body()`, which copies it and keeps it until the answer has been read.
    body = b"".join([chunk async for chunk in request.stream() if chunk])
    if len(body) <= _SMALL:
        return _parse(kind, body)
    return await asyncio.to_thread(_parse, kind, body)


def _check_encoding(request: Request) -> None:
    """Nothing is inflated here: what was deflated would be told to be broken."""
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        message = "the body must have no content-encoding"
        raise BadBody(415, "unsupported_encoding", message)


def _parse(kind: type[M], body: bytes, prefix: tuple[str, ...] = ()) -> M:
    if body.count(b",") + body.count(b":") > _MAX_SEPARATORS:
        message = f"the body has more than {_MAX_SEPARATORS} commas and colons"
        raise BadBody(400, "invalid_value", message)
    try:
        return kind.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise BadBody.of(error, prefix=prefix) from None


async def _read_form(request: Request, kind: type[B]) -> B:
    _check_encoding(request)
    media_type = request.headers["content-type"]
    if len(media_type) > _MAX_MEDIA_TYPE:
        raise BadBody(400, "invalid_value", "the content-type is too long")
    # Parsed as the form parser does, which would look up any codec of Python's by that name.
    _, parameters = parse_options_header(media_type)
    if parameters.get(b"charset", b"utf-8").lower() != b"utf-8":
        raise BadBody(400, "invalid_value", "the charset of a form must be utf-8")
    parser = _InMemory(
        request.headers,
        request.stream(),
        max_files=1,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        reason = f"the form cannot be read: {error.message}"
        raise BadBody(400, "invalid_request", reason) from None
    try:
        values = await _values(form)
    finally:
        await form.close()
    if isinstance(sampling := values.get("sampling"), str):
        values["sampling"] = _parse(SamplingOptions, sampling.encode(), ("sampling",))
    try:
        # All parts of a form are text, so types are taken leniently here.
        return kind.model_validate(values)
    except ValidationError as error:
        raise BadBody.of(error) from None


async def _values(form: FormData) -> dict[str, Any]:
    """The fields of a form, the content of its picture among them."""
    values: dict[str, Any] = {}
    for name, part in form.multi_items():
        if name in values:
            raise BadBody(400, "invalid_value", "a field is given twice")
        values[name] = part
    picture = values.pop("image", None)
    if picture is None:
        # Sent under another name, it would be missing here and unknown there: tell both.
        files = [name for name, part in values.items() if isinstance(part, UploadFile)]
        hint = ", the file must be given as image" if files else ""
        raise BadBody(422, "missing_field", f"image is missing{hint}", "image")
    if not isinstance(picture, UploadFile):
        raise BadBody(422, "wrong_type", "image must be a file part", "image")
    values["image"] = FileSource(content=await picture.read())
    return values
