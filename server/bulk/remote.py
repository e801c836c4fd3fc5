"""Captions from a running server, a bounded number at a time."""

from __future__ import annotations

import queue
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Self

import httpx
from pydantic import ValidationError

from rediff_model.network.addresses import without_password
from rediff_model.network.proxies import ProxyError, proxy_of
from server.api.schemas import CaptionAnswer
from server.bulk.item import BulkError, Captioned
from server.bulk.pictures import PictureError, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.bulk.item import Item
    from server.offline import Order

_TIMEOUT: Final = httpx.Timeout(600.0, connect=10.0)
"""Of a read: the longest that a server may be told to let a request take."""
_TRY_LATER: Final = frozenset({408, 429, 502, 503})
"""The picture is not to blame: another attempt may give a caption."""
_BUSY: Final = frozenset({408, 429})
"""Of these, what needs no telling: the server is there."""
_PICTURE: Final = frozenset({413, 415})
_NO_KEY: Final = 401
_LONGEST_WAIT: Final = 60.0
_NO_SERVER: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
"""Before the first answer these mean a wrong address, not an outage."""


class Remote:
    """Posts pictures to `/caption` from a pool of threads."""

    def __init__(
        self,
        client: httpx.Client,
        form: dict[str, str],
        max_bytes: int,
        concurrency: int,
        retries: int,
        tell: Callable[[str], None],
    ) -> None:
        """`form` are the fields that go with every picture; `tell` hears of outages."""
        self._client = client
        self._address = without_password(str(client.base_url).rstrip("/"))
        self._way = ""
        """Ends a message about the address: the proxy, if there is one."""
        self._answered = False
        """The server has been reached once."""
        self._tell = tell
        self._away = threading.Event()
        """The server was lost, which has been told, and has not answered since."""
        self._form = form
        self.model = ""
        """Of the server, by the name that it goes by."""
        self._max_bytes = max_bytes
        self._retries = retries
        self.window = 2 * concurrency
        self._threads = ThreadPoolExecutor(concurrency, "caption")
        self._closing = threading.Event()
        self._done: queue.SimpleQueue[tuple[int, Captioned | PictureError | BulkError]] = (
            queue.SimpleQueue()
        )

    @classmethod
    def open(
        cls,
        base_url: str,
        key: str | None,
        order: Order,
        max_bytes: int,
        concurrency: int,
        retries: int,
        tell: Callable[[str], None],
        transport: httpx.BaseTransport | None = None,
    ) -> Self:
        """Ask the server what it runs; one that is starting is waited for.

        Raises:
            BulkError: it cannot be reached, is not this product's, or does not take this key.
        """
        try:
            url = httpx.URL(base_url)
        except httpx.InvalidURL as error:
            raise BulkError(f"--base-url {without_password(base_url)}: {error}") from None
        if key is not None and url.userinfo:
            raise BulkError(
                f"--base-url {without_password(base_url)} has a user name, and there is a key in "
                "REDIFF_API_KEY: a request has room for one of them"
            )
        try:
            proxy = proxy_of(base_url)
        except ProxyError as error:
            raise BulkError(str(error)) from None
        limits = httpx.Limits(max_connections=concurrency)
        client = httpx.Client(
            base_url=url,
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            timeout=_TIMEOUT,
            # With a transport the client itself does not look for proxies.
            transport=transport
            or httpx.HTTPTransport(proxy=None if proxy is None else proxy.url, limits=limits),
        )
        remote = cls(client, {}, max_bytes, concurrency, retries, tell)
        if proxy is not None:
            remote._way = f" through {proxy}"
            tell(f"{remote._address} is asked{remote._way}")
        try:
            remote._form = remote._fields(order)
        except BaseException as error:
            remote.close()
            # There was no picture yet.
            if isinstance(error, PictureError):
                raise BulkError(str(error)) from None
            raise
        return remote

    def submit(self, number: int, item: Item) -> None:
        self._threads.submit(self._work, number, item)

    def take(self) -> tuple[int, Captioned | PictureError]:
        number, result = self._done.get()
        if isinstance(result, BulkError):
            raise result
        return number, result

    def close(self) -> None:
        self._closing.set()
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def _fields(self, order: Order) -> dict[str, str]:
        response = self._patient(self._ready)
        try:
            version = response.json()
            canvas, self.model = int(version["canvas_length"]), str(version["model"])
        except (ValueError, KeyError, TypeError):
            raise BulkError(
                f"--base-url {self._address}{self._way} is no server of captions"
            ) from None
        options = order.options
        if order.max_new_tokens is not None:
            length = min(canvas, order.max_new_tokens)
            options = options.model_copy(update={"canvas_length": length})
        fields = {"sampling": options.model_dump_json(exclude_none=True), "return_tokens": "true"}
        return fields if order.prompt is None else fields | {"prompt": order.prompt}

    def _ready(self) -> httpx.Response:
        """`/version` of a server that is ready, or why it is not."""
        response = self._client.get("/version")
        if response.status_code != 200:
            return response
        ready = self._client.get("/health/ready")
        return response if ready.status_code == 200 else ready

    def _work(self, number: int, item: Item) -> None:
        result: Captioned | PictureError | BulkError
        try:
            result = self._caption(item)
        except (PictureError, BulkError) as error:
            result = error
        # Whatever else is wrong must end the run, not leave it waiting for this picture.
        except Exception as error:
            result = BulkError(f"{item.identity}: {type(error).__name__}: {error}")
        self._done.put((number, result))

    def _caption(self, item: Item) -> Captioned:
        files = {"image": (f"picture{item.suffix}", read(item, self._max_bytes))}
        response = self._patient(
            lambda: self._client.post("/caption", data=self._form, files=files)
        )
        try:
            answer = CaptionAnswer.model_validate_json(response.content)
        except ValidationError:
            raise BulkError(f"{self._address}{self._way} gives no captions") from None
        confidence = answer.caption_confidence
        return Captioned(
            text=answer.caption,
            confidence=0.0 if confidence is None else confidence,
            revisions=answer.revisions,
            steps=answer.steps,
            finish_reason=answer.finish_reason,
            warning="; ".join(answer.warnings or ()),
        )

    def _patient(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """The answer of status 200, after as many attempts as are allowed.

        Raises:
            PictureError: the server refuses or cannot caption this picture.
            BulkError: it refuses everything, or cannot be reached.
        """
        for attempt in range(self._retries + 1):
            wait: float | None = None
            busy = False
            try:
                response = send()
            except httpx.TransportError as error:
                reason = f"{self._address} cannot be reached{self._way}: {_words(error)}"
                if not self._answered and isinstance(error, _NO_SERVER):
                    raise BulkError(f"--base-url {reason}") from None
            else:
                self._answered = True
                if response.status_code == 200:
                    self._away.clear()
                    return response
                reason, param = self._told(response)
                wait = _retry_after(response)
                self._judge(response.status_code, reason, param)
                busy = response.status_code in _BUSY
            if attempt == self._retries:
                break
            if not busy and not self._away.is_set():
                self._away.set()
                self._tell(f"{reason}; trying again")
            # Spread, so that those who were refused together do not come back together.
            backoff = min(_LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
            if self._closing.wait(backoff if wait is None else wait):
                raise BulkError("the run was stopped")
        raise BulkError(f"{reason} ({self._retries + 1} attempts)")

    def _judge(self, status: int, reason: str, param: str | None) -> None:
        """Raise unless another attempt may help."""
        if status in _TRY_LATER:
            return
        if status in _PICTURE or param == "image" or status >= 500:
            raise PictureError(reason)
        if status == _NO_KEY:
            raise BulkError(f"{reason}; the key is read from REDIFF_API_KEY")
        raise BulkError(reason)

    def _told(self, response: httpx.Response) -> tuple[str, str | None]:
        """What the server says is wrong, and with which field."""
        answer = f"the server answers with status {response.status_code}"
        try:
            error: dict[str, Any] = response.json()["error"]
            message, param = str(error["message"]), error.get("param")
        except (ValueError, KeyError, TypeError, AttributeError):
            # Possibly the proxy's own answer.
            return f"{answer} to {response.request.url.path}{self._way}", None
        return f"{answer}: {message}", param


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait, in either form of the header."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    if value.strip().isdecimal():
        return min(_LONGEST_WAIT, float(value))
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = moment.timestamp() - time.time()
    return min(_LONGEST_WAIT, max(0.0, seconds))


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
