"""The client with await: the same methods as `Client`."""

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
    from collections.abc import AsyncIterator, Mapping

    from server.client.events import Event
    from server.client.request import Fields, Picture
    from server.client.version import Health


class AsyncClient:
    """Talks to one server, from as many tasks as like; raises what `Client` does."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        connections: int = 100,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """
        Raises:
            ValueError: the address, the key or the environment's proxy cannot be used.
        """
        self.connection = Connection(base_url, key)
        self._http = httpx.AsyncClient(
            base_url=self.connection.url,
            headers=self.connection.headers,
            timeout=TIMEOUT,
            transport=transport
            or httpx.AsyncHTTPTransport(
                proxy=self.connection.proxy_url, limits=httpx.Limits(max_connections=connections)
            ),
        )

    async def caption(self, picture: Picture, **fields: Unpack[Fields]) -> CaptionAnswer:
        """Caption a picture."""
        return await self._answer("/caption", picture, fields)

    async def refine(self, picture: Picture, draft: str, **fields: Unpack[Fields]) -> CaptionAnswer:
        """Revise the caption `draft` against a picture."""
        return await self._answer("/refine", picture, {**fields, "draft": draft})

    async def stream(
        self, picture: Picture, *, draft: str | None = None, **fields: Unpack[Fields]
    ) -> AsyncIterator[Event]:
        """Steps of a caption, or of the revision of `draft`, as they come; the answer at the end.

        With a draft or a template a `Canvas` comes first.

        Closing the iterator frees the request's place on the server.
        """
        path = "/caption" if draft is None else "/refine"
        data = form({**fields, "draft": draft, "stream": True})
        files, reader = {"image": file_of(picture)}, EventReader()
        async with self._http.stream("POST", path, data=data, files=files) as response:
            if response.status_code != HTTP_OK:
                await response.aread()
            checked(response)
            async for line in response.aiter_lines():
                event = reader.read(line)
                if event is not None:
                    yield event
        reader.end()

    async def run(
        self, picture: Picture, *, draft: str | None = None, **fields: Unpack[Fields]
    ) -> Run:
        """A caption with all its steps; a notebook shows it as an animation."""
        data = file_of(picture)[1]
        fields.setdefault("return_tokens", True)
        return Run.of(data, [event async for event in self.stream(data, draft=draft, **fields)])

    async def health(self) -> Health:
        """Whether captions can be had."""
        try:
            await self.check_ready()
        except ServerRefused as error:
            return health_of(error)
        return "ready"

    async def check_ready(self) -> None:
        """Raise ServerRefused, with the reason, unless captions can be had."""
        checked(await self._http.get("/health/ready"))

    async def version(self) -> Version:
        """What runs there."""
        response = checked(await self._http.get("/version"))
        return parsed(Version.model_validate_json, response.content)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _answer(
        self, path: str, picture: Picture, fields: Mapping[str, object]
    ) -> CaptionAnswer:
        files = {"image": file_of(picture)}
        response = await self._http.post(path, data=form(fields), files=files)
        return parsed(CaptionAnswer.model_validate_json, checked(response).content)
