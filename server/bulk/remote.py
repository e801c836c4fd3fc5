"""Captions from a running server, a bounded number at a time."""

from __future__ import annotations

import queue
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self, TypeVar

import httpx

from rediff_model.network.addresses import without_password
from rediff_model.network.proxies import ProxyError
from server.bulk.item import BulkError, Captioned, PictureError, read
from server.client import BadAnswer, Client, Fields, ServerRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.bulk.item import Item
    from server.bulk.order import Order
    from server.client import Version

T = TypeVar("T")

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
        client: Client,
        form: Fields,
        max_bytes: int,
        concurrency: int,
        retries: int,
        tell: Callable[[str], None],
    ) -> None:
        """`form` are the fields that go with every picture; `tell` hears of outages."""
        self._client = client
        self._address = without_password(str(client.connection.url).rstrip("/"))
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
            client = Client(base_url, key=key, connections=concurrency, transport=transport)
        except ProxyError as error:
            raise BulkError(str(error)) from None
        except ValueError as error:
            raise BulkError(f"--base-url {without_password(base_url)}: {error}") from None
        if key is not None and client.connection.url.userinfo:
            client.close()
            raise BulkError(
                f"--base-url {without_password(base_url)} has a user name, and there is a key in "
                "REDIFF_API_KEY: a request has room for one of them"
            )
        proxy = client.connection.proxy
        remote = cls(client, Fields(), max_bytes, concurrency, retries, tell)
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

    def _fields(self, order: Order) -> Fields:
        version = self._patient(self._ready)
        if version.canvas_length is None:
            raise self._no_captions()
        self.model = version.model
        options = order.options
        if order.max_new_tokens is not None:
            length = min(version.canvas_length, order.max_new_tokens)
            options = options.model_copy(update={"canvas_length": length})
        fields = Fields(sampling=options.model_dump(exclude_none=True), return_tokens=True)
        if order.prompt is not None:
            fields["prompt"] = order.prompt
        return fields

    def _ready(self) -> Version:
        """What a server says of itself that is ready."""
        version = self._client.version()
        self._client.check_ready()
        return version

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
        data = read(item, self._max_bytes)
        answer = self._patient(lambda: self._client.caption(data, **self._form))
        confidence = answer.caption_confidence
        return Captioned(
            text=answer.caption,
            confidence=0.0 if confidence is None else confidence,
            revisions=answer.revisions,
            steps=answer.steps,
            finish_reason=answer.finish_reason,
            warning="; ".join(answer.warnings or ()),
        )

    def _patient(self, ask: Callable[[], T]) -> T:
        """What `ask` gives, after as many attempts as are allowed.

        Raises:
            PictureError: the server refuses or cannot caption this picture.
            BulkError: it refuses everything, or cannot be reached.
        """
        for attempt in range(self._retries + 1):
            wait: float | None = None
            busy = False
            try:
                answer = ask()
            except httpx.TransportError as error:
                reason = f"{self._address} cannot be reached{self._way}: {_words(error)}"
                if not self._answered and isinstance(error, _NO_SERVER):
                    raise BulkError(f"--base-url {reason}") from None
            except BadAnswer:
                raise self._no_captions() from None
            except ServerRefused as error:
                self._answered = True
                # Without words it is possibly the proxy's own answer.
                reason = f"{error}" if error.message else f"{error}{self._way}"
                wait = error.retry_after
                self._judge(error.status, reason, error.param)
                busy = error.status in _BUSY
            else:
                self._answered = True
                self._away.clear()
                return answer
            if attempt == self._retries:
                break
            if not busy and not self._away.is_set():
                self._away.set()
                self._tell(f"{reason}; trying again")
            # Spread, so that those who were refused together do not come back together.
            backoff = min(_LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
            if self._closing.wait(backoff if wait is None else min(_LONGEST_WAIT, wait)):
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

    def _no_captions(self) -> BulkError:
        return BulkError(f"--base-url {self._address}{self._way} is no server of captions")


def _words(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
