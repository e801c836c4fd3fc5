"""The client for ordinary code; `asynchronous` has the same with await."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, Unpack

import httpx

from server.api.schemas import CaptionAnswer
from server.client.errors import HTTP_OK, ServerRefused, checked
from server.client.events import EventReader, parsed
from server.client.request import DEFAULT_URL, TIMEOUT, Connection, file_of, form
from server.client.run import Run
from server.client.version import Version, health_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from server.client.events import Event
    from server.client.request import Fields, Picture
    from server.client.version import Health


class Client:
    """Talks to one server, from as many threads as like.

    Every request raises `ServerRefused` if the server answers with an error, `BadAnswer` if it
    sends something else than this API, and `httpx.TransportError` if it cannot be reached.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        connections: int = 100,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """
        Raises:
            ValueError: the address, the key or the environment's proxy cannot be used.
        """
        self.connection = Connection(base_url, key)
        self._http = httpx.Client(
            base_url=self.connection.url,
            headers=self.connection.headers,
            timeout=TIMEOUT,
            transport=transport
            or httpx.HTTPTransport(
                proxy=self.connection.proxy_url, limits=httpx.Limits(max_connections=connections)
            ),
        )

    def caption(self, picture: Picture, **fields: Unpack[Fields]) -> CaptionAnswer:
        """Caption a picture."""
        return self._answer("/caption", picture, fields)

    def refine(self, picture: Picture, draft: str, **fields: Unpack[Fields]) -> CaptionAnswer:
        """Revise the caption `draft` against a picture."""
        return self._answer("/refine", picture, {**fields, "draft": draft})

    def stream(
        self, picture: Picture, *, draft: str | None = None, **fields: Unpack[Fields]
    ) -> Iterator[Event]:
        """Steps of a caption, or of the revision of `draft`, as they come; the answer at the end.

        With a draft or a template a `Canvas` comes first.

        Closing the iterator frees the request's place on the server.
        """
        path = "/caption" if draft is None else "/refine"
        data = form({**fields, "draft": draft, "stream": True})
        files, reader = {"image": file_of(picture)}, EventReader()
        with self._http.stream("POST", path, data=data, files=files) as response:
            if response.status_code != HTTP_OK:
                response.read()
            checked(response)
            for line in response.iter_lines():
                event = reader.read(line)
                if event is not None:
                    yield event
        reader.end()

    def run(self, picture: Picture, *, draft: str | None = None, **fields: Unpack[Fields]) -> Run:
        """A caption with all its steps; a notebook shows it as an animation."""
        data = file_of(picture)[1]
        fields.setdefault("return_tokens", True)
        return Run.of(data, list(self.stream(data, draft=draft, **fields)))

    def health(self) -> Health:
        """Whether captions can be had."""
        try:
            self.check_ready()
        except ServerRefused as error:
            return health_of(error)
        return "ready"

    def check_ready(self) -> None:
        """Raise ServerRefused, with the reason, unless captions can be had."""
        checked(self._http.get("/health/ready"))

    def version(self) -> Version:
        """What runs there."""
        response = checked(self._http.get("/version"))
        return parsed(Version.model_validate_json, response.content)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, path: str, picture: Picture, fields: Mapping[str, object]) -> CaptionAnswer:
        files = {"image": file_of(picture)}
        response = self._http.post(path, data=form(fields), files=files)
        return parsed(CaptionAnswer.model_validate_json, checked(response).content)
